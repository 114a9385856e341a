"""Collectives of a compiled program: kinds, sizes, and the mesh axes along which they run.

The text of a program (HLO) has groups of devices in several forms:

replica_groups={{0,1},{2,3}}                          written out
replica_groups=[2,4]<=[4,2]T(1,0)                     0..7 as [4, 2], transposed, as 2 groups
replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}
                                                      0..7 as [2, 4], transposed: a mesh; along a
source_target_pairs={{0,1},{1,0}}                     sender and receiver
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from protlm_jax.planning.hlo import Instruction, Program, numbers, read

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_LIST = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=@?mesh\w*\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_PART = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")  # 'a', or 'a':(2)4, of which 2 go before


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one execution; bytes are of results on one device."""

    count: int
    bytes: int
    largest: int


@dataclasses.dataclass(frozen=True)
class CollectiveCall:
    """One collective instruction, executed `times` times; `bytes` of its result on one device.

    A reduction that is scattered in the same fusion is written as a whole one and counts whole.
    """

    times: int
    kind: str
    bytes: int
    instruction: Instruction


def kind_of(instruction: Instruction, computation: str) -> str | None:
    """The kind of the collective that starts here, one of KINDS; None for other instructions."""
    if instruction.operation == "send":  # between slices, after each has reduced within itself
        kind = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"') or ""
        kind = kind.lower().replace("_", "-").replace("one-to-one", "collective-permute")
        return kind if kind in KINDS else None
    kind = instruction.operation.removesuffix("-start")
    if kind not in KINDS:
        return None
    # A TPU reduces and scatters in one fusion, which is written as a whole reduction.
    return "reduce-scatter" if computation.startswith("all-reduce-scatter") else kind


def payload(instruction: Instruction) -> int:
    """Bytes of a collective's result; an asynchronous start also lists its operands."""
    sizes = [array.bytes for array in instruction.results]
    starts = instruction.operation.endswith("-start") or instruction.operation == "send"
    return max(sizes, default=0) if starts else sum(sizes)


def calls(program: Program) -> Iterator[CollectiveCall]:
    """All collectives that are executed; those in a loop count as often as it runs."""
    for times, where, instruction in program.executed(program.entry):
        if kind := kind_of(instruction, where):
            yield CollectiveCall(times, kind, payload(instruction), instruction)


def collectives(text: str) -> dict[str, Collective]:
    """Collectives by kind of `compiled.as_text()`; kinds that do not occur are left out."""
    return _by_kind(list(calls(read(text))))


def collectives_by_axis(text: str, mesh: Mapping[str, int]) -> dict[str, dict[str, Collective]]:
    """Collectives by the mesh axes along which they run ("data, fsdp"), then by kind.

    Args:
        text: `compiled.as_text()`, for the devices of the mesh in its order.
        mesh: size of each axis, the last one the fastest.
    """
    found: dict[str, list[CollectiveCall]] = defaultdict(list)
    for exchange in calls(read(text)):
        groups = groups_of(exchange.instruction, tuple(mesh.values()))
        found[axes_of(groups, mesh)].append(exchange)
    return {axes: _by_kind(found[axes]) for axes in sorted(found)}


def _by_kind(calls: Sequence[CollectiveCall]) -> dict[str, Collective]:
    found = {kind: [one for one in calls if one.kind == kind] for kind in KINDS}
    return {
        kind: Collective(
            count=sum(one.times for one in some),
            bytes=sum(one.times * one.bytes for one in some),
            largest=max(one.bytes for one in some),
        )
        for kind, some in found.items()
        if some
    }


def unsplit(text: str, rows: int, length: int) -> list[str]:
    """Shapes in `compiled.as_text()` of activations that every device holds for all rows."""
    shapes = re.findall(rf"\b\w+\[(?:\d+,)?{rows},{length},[\d,]+\]", text)
    return sorted(set(shapes))


def groups_of(instruction: Instruction, mesh: tuple[int, ...]) -> np.ndarray:
    """[groups, devices] int: places in the mesh's flat order; source-target pairs are groups of 2.

    Raises:
        ValueError: the groups have an unknown form.
    """
    text, devices = instruction.attributes, math.prod(mesh)
    if "_xla_megascale_transfer_type" in text:  # the slices are the mesh's first axis
        return np.arange(devices).reshape(mesh[0], -1).T
    if match := _MESH.search(text):
        return _of_mesh(match, devices)
    if match := _IOTA.search(text):
        shape, source, order = match.groups()
        return _transposed(numbers(source), order).reshape(numbers(shape))
    if (match := _LIST.search(text)) and match[1]:
        return np.array([numbers(group) for group in re.findall(r"\{([\d,]*)\}", match[1])])
    if match or "replica_groups" not in text:  # empty: all devices
        return np.arange(devices)[None]
    raise ValueError(f"the groups of {instruction.name} have an unknown form: {text[:200]}")


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> str:
    """The mesh axes along which groups of its devices extend, as "data, fsdp"."""
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())))  # [axes, groups, devices]
    extends = (places != places[:, :, :1]).any(axis=(1, 2))
    return ", ".join(axis for axis, it_does in zip(mesh, extends, strict=True) if it_does)


def _of_mesh(match: re.Match[str], devices: int) -> np.ndarray:
    axes, source, order, along = match.groups()
    parts = {name: (before, size) for name, before, size in _PART.findall(along)}
    # An axis of which a part is used becomes three: before the part, the part, and after it.
    shape: list[int] = []
    used: list[int] = []
    for name, size in re.findall(r"'(\w+)'=(\d+)", axes):
        before, part = map(int, parts[name]) if parts.get(name, ("", ""))[0] else (1, int(size))
        used += [len(shape) + 1] if name in parts else []
        shape += [before, part, int(size) // before // part]
    ids = _transposed(numbers(source) if source else (devices,), order).reshape(shape)
    ids = np.moveaxis(ids, used, range(-len(used), 0))
    return ids.reshape(-1, math.prod(ids.shape[len(ids.shape) - len(used) :]))


def _transposed(sizes: tuple[int, ...], order: str | None) -> np.ndarray:
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(numbers(order)) if order else ids
