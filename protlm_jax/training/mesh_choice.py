"""The mesh of a run whose config says `mesh=auto`, by a fixed rule.

1. Where the rows of a part of the batch do not divide over the devices of a slice, `tensor` takes
   as few of them as leave rows that do. The stream is then split over them by its length, where
   that divides.
2. `fsdp` is the smallest number of devices at which the state (parameters, the optimizer's moments,
   a recurrent model's memory) and the gradients (float32) take at most half of a device's memory.
   The other half is for activations. 1, and no parameter is sent anywhere, where a whole copy fits.
3. `data` takes what is left.

Whether activations fit depends on rematerialisation and `train.accumulate`; see `protlm plan`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jax.sharding import AbstractMesh

from protlm_jax.partitioning import MESH_AXES, SLICES
from protlm_jax.training.state import TrainState, bytes_on_device, lay_out

SHARE = 0.5  # of a device's memory, for state and gradients


@dataclasses.dataclass(frozen=True)
class Choice:
    """A mesh, and why it is this one.

    Attributes:
        shape: sizes of data, fsdp and tensor, and slices.
        why: for people, one line.
    """

    shape: dict[str, int]
    why: str


def choose_mesh(
    abstract: TrainState, axes: Any, rows: int, devices: int, memory: int, slices: int = 1
) -> Choice:
    """Applies the rule of this module.

    Args:
        abstract: shapes of the state.
        axes: logical axes of its parameters.
        rows: of what is computed at once, on all devices.
        devices: of one slice.
        memory: bytes of a device; 0 where it is not known, and then every device has a whole copy.
        slices: how many there are.
    """
    replicas = math.gcd(devices, max(rows // slices, 1))
    tensor = devices // replicas
    sizes = [size for size in range(1, replicas + 1) if replicas % size == 0]
    needed = {}
    for fsdp in sizes if memory else sizes[:1]:
        shape = {SLICES: slices, "data": replicas // fsdp, "fsdp": fsdp, "tensor": tensor}
        needed[fsdp] = state_and_gradients(abstract, axes, shape)
        if needed[fsdp] <= SHARE * memory:
            break
    return Choice(shape, _why(shape, needed, memory, rows))


def _why(shape: dict[str, int], needed: dict[int, int], memory: int, rows: int) -> str:
    chosen = " x ".join(f"{axis} {shape[axis]}" for axis in MESH_AXES)
    several = f" on each of {shape[SLICES]} slices" if shape[SLICES] > 1 else ""
    reason = f"state and gradients take {needed[shape['fsdp']] / 2**30:.2f} GiB of a device"
    if not memory:
        reason += ", whose memory is not known"
    else:
        reason += f" with {memory / 2**30:.2f}"
        if needed[shape["fsdp"]] > SHARE * memory:
            reason += ", more than half, and cannot be split further"
        elif shape["fsdp"] > 1:
            reason += f"; a whole copy would take {needed[1] / 2**30:.2f}"
    if shape["tensor"] > 1:
        reason += f"; {rows} rows at once do not divide over more than so many replicas"
    return f"mesh: {chosen}{several}, chosen: {reason}"


def state_and_gradients(abstract: TrainState, axes: Any, shape: dict[str, int]) -> int:
    """Bytes on one device of a mesh with these axes, in their order."""
    mesh = AbstractMesh(tuple(shape.values()), tuple(shape))
    layout = lay_out(abstract, axes, mesh)
    return bytes_on_device(abstract, layout) + bytes_on_device(abstract.params, layout.params)
