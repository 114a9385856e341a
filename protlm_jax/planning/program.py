"""What a compiled program says between its devices, read from its text (HLO).

Every instruction of the body of a loop counts as often as the loop runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from protlm_jax.planning.groups import axes_of, groups_of
from protlm_jax.planning.hlo import Instruction, Program, read

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one execution of a program.

    Attributes:
        count: how many are executed.
        bytes: of their results on one device, all together.
        largest: bytes of the largest result on one device.
    """

    count: int
    bytes: int
    largest: int


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One collective of a program.

    Attributes:
        times: how often it is executed.
        kind: one of KINDS.
        bytes: of its result on one device; of a reduction that is scattered in the same fusion,
            which is written as a whole one, of the whole.
        instruction: where it begins.
    """

    times: int
    kind: str
    bytes: int
    instruction: Instruction


def kind_of(instruction: Instruction, where: str) -> str | None:
    """What kind of collective begins here, if one does.

    Args:
        instruction: any.
        where: name of its computation.
    """
    if instruction.operation == "send":  # between slices, of what each has reduced within itself
        told = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"') or ""
        kind = told.lower().replace("_", "-").replace("one-to-one", "collective-permute")
        return kind if kind in KINDS else None
    kind = instruction.operation.removesuffix("-start")
    if kind not in KINDS:
        return None
    # A TPU reduces and scatters in one fusion, which is written as a whole reduction.
    return "reduce-scatter" if where.startswith("all-reduce-scatter") else kind


def payload(instruction: Instruction) -> int:
    """Bytes of a collective's result; of what is begun, the largest part: the others are given."""
    sizes = [array.bytes for array in instruction.results]
    begun = instruction.operation.endswith("-start") or instruction.operation == "send"
    return max(sizes, default=0) if begun else sum(sizes)


def exchanges(program: Program) -> Iterator[Exchange]:
    """All collectives that are executed."""
    for times, where, instruction in program.executed(program.entry):
        if kind := kind_of(instruction, where):
            yield Exchange(times, kind, payload(instruction), instruction)


def collectives(text: str) -> dict[str, Collective]:
    """Those of a compiled program, by kind; a kind that is not there is left out.

    Args:
        text: `compiled.as_text()`.
    """
    return _by_kind(exchanges(read(text)))


def collectives_by_axis(text: str, mesh: Mapping[str, int]) -> dict[str, dict[str, Collective]]:
    """Those of a compiled program, by the axes of the mesh along which they go, and by kind.

    Args:
        text: `compiled.as_text()`.
        mesh: size of each axis, in order; the program's devices are those of the mesh, in its
            order, the last axis the fastest.

    Returns:
        Axes as "fsdp" or "data, fsdp", in the mesh's order.
    """
    found: dict[str, list[Exchange]] = defaultdict(list)
    for exchange in exchanges(read(text)):
        groups = groups_of(exchange.instruction, tuple(mesh.values()))
        found[axes_of(groups, mesh)].append(exchange)
    return {axes: _by_kind(found[axes]) for axes in sorted(found)}


def _by_kind(all_: Iterable[Exchange]) -> dict[str, Collective]:
    found: dict[str, list[Exchange]] = defaultdict(list)
    for exchange in all_:
        found[exchange.kind].append(exchange)
    return {
        kind: Collective(
            count=sum(one.times for one in found[kind]),
            bytes=sum(one.times * one.bytes for one in found[kind]),
            largest=max(one.bytes for one in found[kind]),
        )
        for kind in KINDS
        if kind in found
    }


def unsplit(text: str, rows: int, length: int) -> list[str]:
    """Shapes of activations that every device holds for all rows of a batch.

    Args:
        text: `compiled.as_text()`, in which shapes are those on one device.
        rows, length: of the whole batch.
    """
    shapes = re.findall(rf"\b\w+\[(?:\d+,)?{rows},{length},[\d,]+\]", text)
    return sorted(set(shapes))
