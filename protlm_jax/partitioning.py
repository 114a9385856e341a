"""The mesh, the table of rules, and the shardings of state and batch.

The only module that knows which mesh axis a logical axis is laid on. A mesh has three axes: `data`
(replicas), `fsdp` (replicas that also split parameters and optimizer state) and `tensor` (heads,
MLP and vocabulary split). Where devices are joined by two networks, a fast one within slices and a
slow one between them, `slices` comes before the three: replicas of all the rest.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from protlm_jax.errors import ProtlmError
from protlm_jax.models.axes import Rules, Undivided, logical_spec, undivided

MESH_AXES = ("data", "fsdp", "tensor")
SLICES = "slices"
REPLICAS = (SLICES, "data", "fsdp")  # what the rows of a batch are split over

# Most important first: a mesh axis goes to the first name that can take it.
RULES: Rules = (
    ("batch", REPLICAS),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("embed_out", "tensor"),
    ("positions", "tensor"),
    ("layers", None),  # never: a layer program indexes it
)

# Additional rules inside a step, for activations: how the stream between sublayers is split over
# `tensor`, whose devices would otherwise hold equal copies.
STREAM: dict[str, Rules] = {
    "whole": (),
    "length": (("length", "tensor"),),
    "embed": (("embed", "tensor"),),
}

Sharded = Any


def make_mesh(shape: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, tensor) mesh; (slices, data, fsdp, tensor) of several slices.

    -1 on at most one of data, fsdp and tensor is all remaining devices. TPUs report their slice
    themselves; other devices are divided into `slices` equal parts, in their order. Raises a
    ProtlmError where the shape does not match the number of devices.
    """
    devices = list(devices) if devices is not None else jax.devices()
    if unknown := sorted(set(shape) - {*MESH_AXES, SLICES}):
        raise ProtlmError(f"unknown mesh axis {unknown[0]!r}; the axes are {', '.join(MESH_AXES)}")
    slices = split_slices(devices, shape.get(SLICES, 1))
    sizes = _sizes(shape, len(slices[0]), len(slices))
    # Splitting a physical axis is the last resort, where nothing else gives this shape.
    grids = [
        mesh_utils.create_device_mesh(
            sizes, own[: math.prod(sizes)], allow_split_physical_axes=True
        )
        for own in slices
    ]
    several = len(slices) > 1
    axes = (SLICES, *MESH_AXES) if several else MESH_AXES
    # linen's init fails under explicit axes, which is what jax.make_mesh would give.
    grid = np.stack(grids) if several else grids[0]
    return Mesh(grid, axes, axis_types=(AxisType.Auto,) * len(axes))


def _sizes(shape: dict[str, int], devices: int, slices: int) -> tuple[int, ...]:
    """Sizes of the three axes on so many devices of each slice."""
    sizes = [shape.get(axis, 1) for axis in MESH_AXES]
    mesh = f"mesh (data, fsdp, tensor) = {tuple(sizes)}"
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ProtlmError(f"{mesh}: sizes are positive, and at most one may be -1")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) > devices or devices % known or not math.prod(sizes):
        each = f" of each of {slices} slices" if slices > 1 else ""
        raise ProtlmError(f"{mesh} does not fit {devices} device(s){each}; choose another mesh")
    return tuple(sizes)


def split_slices(devices: Sequence[jax.Device], slices: int = 1) -> list[list[jax.Device]]:
    """The devices of each slice; see `make_mesh`. Raises a ProtlmError for another number of
    slices.
    """
    found: dict[int, list[jax.Device]] = {}
    for device in devices:
        index = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        found.setdefault(index, []).append(device)
    if len(found) > 1:
        if slices not in (1, len(found)):
            raise ProtlmError(f"mesh.slices is {slices}; the devices are of {len(found)} slices")
        return [found[index] for index in sorted(found)]
    if slices < 1 or len(devices) % slices:
        raise ProtlmError(f"mesh.slices is {slices}; {len(devices)} device(s) do not divide so")
    each = len(devices) // slices
    return [list(devices[i * each : (i + 1) * each]) for i in range(slices)]


@contextlib.contextmanager
def on_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Applies logical constraints inside the block; `with mesh:` would drop them silently."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def step_rules(stream: str, shape: dict[str, int], mesh: Mesh) -> Rules:
    """The rules of activations inside a step.

    `stream` is the dimension of the stream that is split over `tensor`, a key of STREAM, and
    `shape` has the sizes of "length" and "embed". Raises a ProtlmError where it does not divide.
    """
    tensor = mesh.shape["tensor"]
    if stream != "whole" and shape[stream] % tensor:
        raise ProtlmError(
            f"mesh.stream={stream}: its size {shape[stream]} does not divide over tensor = {tensor}"
        )
    return (*RULES, *STREAM[stream])


def shardings(abstract: Any, axes: Any, mesh: Mesh | AbstractMesh, rules: Rules = RULES) -> Sharded:
    """A NamedSharding per array, from shapes and tuples of logical names, of which () is
    replicated.
    """

    def one(leaf: Any, names: tuple[str, ...]) -> NamedSharding:
        spec = logical_spec(names, leaf.shape, dict(mesh.shape), rules) if names else None
        return NamedSharding(mesh, spec or PartitionSpec())

    return jax.tree.map(one, abstract, axes)


def batch_sharding(mesh: Mesh, batch_size: int, rules: Rules = RULES) -> NamedSharding:
    """Rows over the data axes; raises a ProtlmError where they do not divide evenly."""
    spec = logical_spec(("batch", "length"), (batch_size, 1), dict(mesh.shape), rules)
    axes = [axis for axis in REPLICAS if axis in mesh.shape]
    replicas = math.prod(mesh.shape[axis] for axis in axes)
    if batch_size % replicas:
        raise ProtlmError(
            f"train.batch_size {batch_size} does not divide over {' x '.join(axes)} = {replicas} "
            f"replicas"
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
    """One line per parameter: path, shape, dtype, logical axes, mesh spec; then the totals, and
    dimensions that do not divide."""
    rows = [("parameter", "shape", "dtype", "logical axes", "mesh axes")]
    total = local = whole = 0
    layout = jax.tree.leaves(shardings(abstract, axes, mesh, rules))
    flat = _with_names(abstract, axes)
    for (name, leaf, logical), sharding in zip(flat, layout, strict=True):
        parts = [str(axis) for axis in sharding.spec] if len(sharding.spec) else ["replicated"]
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
    lines += left_whole(abstract, axes, mesh, rules)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def left_whole(
    abstract: Any, axes: Any, mesh: Mesh | AbstractMesh, rules: Rules = RULES
) -> list[str]:
    """Dimensions that do not divide over their mesh axes, with their arrays: one line for each."""
    found: dict[Undivided, list[str]] = {}
    for name, leaf, logical in _with_names(abstract, axes):
        for one in undivided(logical, leaf.shape, dict(mesh.shape), rules):
            found.setdefault(one, []).append(name)
    return [
        f"{one.name} of {one.size:,} does not divide over {' x '.join(one.axes)} = {one.parts}: "
        f"whole on each device in {', '.join(names)}"
        for one, names in found.items()
    ]


def _with_names(abstract: Any, axes: Any) -> list[tuple[str, Any, tuple[str, ...]]]:
    """Path, shape and logical axes of each array."""
    names = jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    flat = jax.tree_util.tree_leaves_with_path(abstract)
    return [
        ("/".join(str(key.key) for key in path), leaf, logical)
        for (path, leaf), logical in zip(flat, names, strict=True)
    ]


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
