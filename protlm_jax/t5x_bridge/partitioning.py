"""Our logical axes on T5X's mesh, which is ("data", "model"), with "replica" for several slices.

"model" is what "tensor" is to us, and "data" both "data" and "fsdp": parameters and moments are
split over the replicas too (T5X calls this two-dimensional parameter partitioning).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict
from jax.sharding import Mesh
from t5x import partitioning as t5x_partitioning

from protlm_jax.errors import ProtlmError
from protlm_jax.models.axes import Rules, logical_spec

# Most important first, as in protlm_jax.partitioning; T5X asks for a rule of every name it looks up
# itself, which is "batch" alone.
RULES: Rules = (
    ("batch", "data"),
    ("heads", "model"),
    ("mlp", "model"),
    ("vocab", "model"),
    ("embed", "data"),
    ("embed_out", "model"),
    ("positions", "model"),
    ("layers", None),
)


def axis_rules(split_over_replicas: bool = True) -> Rules:
    """The table for `Partitioner`.

    Args:
        split_over_replicas: False keeps a whole copy of parameters and optimizer on every replica.
    """
    return tuple(rule for rule in RULES if split_over_replicas or rule != ("embed", "data"))


class Partitioner(t5x_partitioning.PjitPartitioner):
    """T5X's partitioner with our rules, which leave whole what does not divide.

    T5X's own would refuse 30 rows of a vocabulary over 4 devices. On CPUs `num_partitions` counts,
    too: T5X gives all devices of a process to "model" there.
    """

    @functools.cached_property
    def mesh(self) -> Mesh:
        devices = jax.devices(self._backend)
        if devices[0].platform != "cpu" or not self._num_partitions:
            return super().mesh
        if len(devices) % self._num_partitions:
            raise ProtlmError(
                f"Partitioner.num_partitions={self._num_partitions} does not divide "
                f"{len(devices)} devices"
            )
        return Mesh(np.asarray(devices).reshape(-1, self._num_partitions), ("data", "model"))

    def get_mesh_axes(self, train_state: Any) -> Any:
        """The train state with a PartitionSpec, or None for replicated, per array."""
        logical = self.get_logical_axes(train_state)
        shapes = _flat(train_state)
        sizes = dict(self.mesh.shape)

        def spec(path: str, names: Any) -> Any:
            if names is None or names is empty_node:
                return names
            return logical_spec(tuple(names), shapes[path].shape, sizes, self.logical_axis_rules)

        specs = {path: spec(path, names) for path, names in _flat(logical).items()}
        return logical.restore_state(unflatten_dict(specs, sep="/"))


def _flat(state: Any) -> dict[str, Any]:
    """The arrays of a train state, or what stands in their place, by path."""
    return flatten_dict(state.state_dict(), keep_empty_nodes=True, sep="/")
