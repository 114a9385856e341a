"""Where the parameters of a loaded model lie: on one device, or divided over a mesh.

They are divided by the axis rules of training, and laid on the devices tensor by tensor as they
are read, so that the host never holds the whole model.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from types import EllipsisType
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from protlm_jax.errors import ProtlmError
from protlm_jax.models.build import abstract_params, logical_axes, parameter_count
from protlm_jax.partitioning import MESH_AXES, make_mesh, shardings
from protlm_jax.training.hardware import memory_of
from protlm_jax.training.mesh_choice import SHARE

Wanted = Mapping[str, int] | Literal["auto"] | None
Index = int | EllipsisType

log = logging.getLogger(__name__)


def parse_mesh(text: str) -> Wanted:
    """A value of `mesh` from "auto" or text such as "data=2,fsdp=4"; raises ProtlmError."""
    if text == "auto":
        return "auto"
    shape: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in MESH_AXES or not size.isdecimal() or axis in shape:
            raise ProtlmError(f"--mesh {text}: write auto, or sizes such as data=2,fsdp=4,tensor=1")
        shape[axis] = int(size)
    return shape


def mesh_for(model: nn.Module, wanted: Wanted) -> Mesh | None:
    """The devices of this process that share the parameters; None where one device holds them.

    Args:
        model: a family's module.
        wanted: sizes of the axes data, fsdp and tensor; "auto" divides parameters over as few
            devices as leave half of each one's memory free, and the rows over the others.

    Raises:
        ProtlmError: the mesh does not fit this process's devices.
    """
    devices = jax.local_devices()
    if wanted is not None and wanted != "auto":
        return make_mesh(dict(wanted), devices)
    limit = memory_of(devices[0])
    if wanted is None or not limit or len(devices) == 1:
        return None
    size = 4 * parameter_count(abstract_params(model))
    counts = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
    fsdp = next((n for n in counts if size <= n * SHARE * limit), len(devices))
    if fsdp == 1:
        return None
    log.info("%.1f GB of parameters are divided over %d devices (fsdp)", size / 1e9, fsdp)
    return make_mesh({"data": len(devices) // fsdp, "fsdp": fsdp}, devices)


class Placement:
    """Makes the arrays of a model's parameters, from parts.

    Attributes:
        mesh: the devices; None is the default device.
        shardings: of the parameters, a tree like theirs; None without a mesh.
    """

    def __init__(self, model: nn.Module | None = None, mesh: Mesh | None = None) -> None:
        self.mesh, self.shardings = mesh, None
        if model is not None and mesh is not None:
            self.shardings = shardings(abstract_params(model), logical_axes(model), mesh)
            self._of = flatten_dict(self.shardings, sep="/")

    def start(self, name: str, shape: tuple[int, ...]) -> Any:
        """An array to fill: float32, of the parameter at this path."""
        if self.mesh is None:
            return np.empty(shape, np.float32)
        return _zeros(shape, self._of[name])

    def fill(self, name: str, array: Any, index: Index, part: np.ndarray) -> Any:
        """The array with `part` as its layer `index`, or as a whole (...)."""
        if self.mesh is None:
            array[index] = part
            return array
        sharding = self._of[name]
        if index is ...:
            return jax.device_put(part, sharding)
        layer = NamedSharding(self.mesh, PartitionSpec(*sharding.spec[1:]))
        return _set_layer(array, jax.device_put(part, layer), index)

    def finish(self, array: Any) -> jax.Array:
        """A filled array, on its devices."""
        return jnp.asarray(array)

    def place(self, params: Any) -> Any:
        """A tree of whole arrays, on its devices."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, params)
        return jax.tree.map(jax.device_put, params, self.shardings)


def _zeros(shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
    return jax.jit(functools.partial(jnp.zeros, shape, jnp.float32), out_shardings=sharding)()


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stacked: jax.Array, layer: jax.Array, index: int) -> jax.Array:
    return stacked.at[index].set(layer)
