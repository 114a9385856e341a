"""The mesh of a run whose config says `mesh=auto`.

1. `tensor` is the smallest number of devices of a slice over which the rows computed at once divide
   no further. The stream is then split over them by its length, where that divides.
2. `fsdp` is the smallest number of devices at which state and gradients (float32) take at most half
   of a device's memory; the other half is for activations (see `protlm plan`).
3. `data` is the rest.
"""

from __future__ import annotations

import math
from typing import Any

from jax.sharding import AbstractMesh

from protlm_jax.partitioning import MESH_AXES, SLICES
from protlm_jax.training.state import TrainState, bytes_on_device, lay_out

SHARE = 0.5  # of a device's memory, for state and gradients


def choose_mesh(
    abstract: TrainState,
    axes: Any,
    rows: int,
    devices: int,
    memory: int,
    slices: int = 1,
    base_axes: Any = None,
) -> tuple[dict[str, int], str]:
    """Sizes of slices, data, fsdp and tensor, and the reason in one line for people.

    `rows` are computed at once on all devices; `devices` are those of one slice, with `memory`
    bytes each, where 0 is not known and gives every device a whole copy.
    """
    replicas = math.gcd(devices, max(rows // slices, 1))
    tensor = devices // replicas
    sizes = [size for size in range(1, replicas + 1) if replicas % size == 0]
    needed = {}
    for fsdp in sizes if memory else sizes[:1]:
        shape = {SLICES: slices, "data": replicas // fsdp, "fsdp": fsdp, "tensor": tensor}
        needed[fsdp] = state_and_gradients(abstract, axes, shape, base_axes)
        if needed[fsdp] <= SHARE * memory:
            break
    chosen = " x ".join(f"{axis} {shape[axis]}" for axis in MESH_AXES)
    several = f" on each of {slices} slices" if slices > 1 else ""
    reason = f"state and gradients take {needed[fsdp] / 2**30:.2f} GiB of a device"
    if not memory:
        reason += ", whose memory is not known"
    else:
        reason += f" with {memory / 2**30:.2f}"
        if needed[fsdp] > SHARE * memory:
            reason += ", more than half, and cannot be split further"
        elif fsdp > 1:
            reason += f"; a whole copy would take {needed[1] / 2**30:.2f}"
    if tensor > 1:
        reason += f"; {rows} rows at once do not divide over more than so many replicas"
    return shape, f"mesh: {chosen}{several}, chosen: {reason}"


def state_and_gradients(
    abstract: TrainState, axes: Any, shape: dict[str, int], base_axes: Any = None
) -> int:
    """Bytes on one device of a mesh with these axes, in their order."""
    mesh = AbstractMesh(tuple(shape.values()), tuple(shape))
    layout = lay_out(abstract, axes, mesh, base_axes)
    return bytes_on_device(abstract, layout) + bytes_on_device(abstract.params, layout.params)
