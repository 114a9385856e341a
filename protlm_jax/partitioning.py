"""The mesh, the table of rules, and the shardings of state and batch.

The only place that knows which mesh axis a logical axis is laid on. A mesh has three axes:
`data` (replicas), `fsdp` (replicas that also split parameters and optimizer state) and `tensor`
(heads, MLP and vocabulary split).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from protlm_jax.errors import ProtlmError
from protlm_jax.models.axes import Rules, logical_spec

MESH_AXES = ("data", "fsdp", "tensor")

# Most important first: a mesh axis goes to the first name that can take it.
RULES: Rules = (
    ("batch", ("data", "fsdp")),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("embed_out", "tensor"),
    ("positions", "tensor"),
    ("layers", None),  # never: a layer program indexes it
)

Sharded = Any


def make_mesh(shape: dict[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, tensor) mesh.

    Args:
        shape: size of each axis; at most one may be -1, "all devices that are left".
        devices: those of the process group by default.

    Raises:
        ProtlmError: when the shape does not match the number of devices.
    """
    devices = devices if devices is not None else jax.devices()
    sizes = [shape.get(axis, 1) for axis in MESH_AXES]
    wanted = f"mesh (data, fsdp, tensor) = {tuple(sizes)}"
    if unknown := sorted(set(shape) - set(MESH_AXES)):
        raise ProtlmError(f"unknown mesh axis {unknown[0]!r}; the axes are {', '.join(MESH_AXES)}")
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ProtlmError(f"{wanted}: sizes are positive, and at most one may be -1")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) > len(devices) or len(devices) % known:
        raise ProtlmError(f"{wanted} does not fit {len(devices)} device(s); change config.mesh")
    # linen's init fails under explicit axes, which is what jax.make_mesh would give.
    auto = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=auto, devices=_first(devices, sizes))


def _first(devices: list[jax.Device], sizes: list[int]) -> list[jax.Device]:
    return list(np.asarray(devices)[: math.prod(sizes)])


@contextlib.contextmanager
def on_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Inside, logical constraints act. `with mesh:` would drop them without a word."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def shardings(abstract: Any, axes: Any, mesh: Mesh, rules: Rules = RULES) -> Sharded:
    """A NamedSharding per array.

    Args:
        abstract: tree of shapes.
        axes: the same tree with a tuple of logical names per array; () is replicated.
    """

    def one(leaf: Any, names: tuple[str, ...]) -> NamedSharding:
        spec = logical_spec(names, leaf.shape, dict(mesh.shape), rules) if names else None
        return NamedSharding(mesh, spec or PartitionSpec())

    return jax.tree.map(one, abstract, axes)


def batch_sharding(mesh: Mesh, batch_size: int, rules: Rules = RULES) -> NamedSharding:
    """Rows over the data axes.

    Raises:
        ProtlmError: when the rows do not divide evenly.
    """
    spec = logical_spec(("batch", "length"), (batch_size, 1), dict(mesh.shape), rules)
    replicas = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % replicas:
        raise ProtlmError(
            f"train.batch_size {batch_size} does not divide over data x fsdp = {replicas} replicas"
        )
    return NamedSharding(mesh, spec)


def local_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
    """The rows of a batch that devices of this process hold, ascending."""
    held = sharding.addressable_devices_indices_map((batch_size, 1)).values()
    return sorted({row for index in held if index for row in range(batch_size)[index[0]]})


def put_rows(
    batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int
) -> dict[str, jax.Array]:
    """A batch on the devices of all processes, from the `local_rows` of each."""
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))
        for name, rows in batch.items()
    }


def describe(abstract: Any, axes: Any, mesh: Mesh, rules: Rules = RULES) -> str:
    """One line per parameter: path, shape, dtype, logical axes, mesh spec; then the totals."""
    rows = [("parameter", "shape", "dtype", "logical axes", "mesh axes")]
    total = local = whole = 0
    layout = shardings(abstract, axes, mesh, rules)
    names = jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    flat = jax.tree_util.tree_leaves_with_path(abstract)
    for (path, leaf), logical, sharding in zip(flat, names, jax.tree.leaves(layout), strict=True):
        parts = [str(axis) for axis in sharding.spec] if len(sharding.spec) else ["replicated"]
        name = "/".join(str(key.key) for key in path)
        rows.append((name, str(leaf.shape), str(leaf.dtype), ", ".join(logical), ", ".join(parts)))
        total += math.prod(leaf.shape)
        local += math.prod(sharding.shard_shape(leaf.shape))
        whole += all(axis is None for axis in sharding.spec)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    lines.append(
        f"{total:,} parameters, {local:,} per device, on mesh {dict(mesh.shape)}; "
        f"{whole} of {len(flat)} arrays replicated"
    )
    return "\n".join(line.rstrip() for line in lines) + "\n"


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
