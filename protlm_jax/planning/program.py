"""What a compiled program says between its devices, read from its text (HLO).

Every instruction of the body of a loop counts as often as the loop runs. Loops of scans are known
by their condition, a comparison of the counter with a constant.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}  # s32, u8, ... say it themselves

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_LOOP = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_CALL = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_LIMIT = re.compile(r"s32\[\]\S* constant\((\d+)\)")


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


def collectives(text: str) -> dict[str, Collective]:
    """Those of a compiled program, by kind; a kind that is not there is left out.

    Args:
        text: `compiled.as_text()`.
    """
    computations, entry = _computations(text)
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for times, where, line in _executed(computations, entry, 1):
        if match := _COLLECTIVE.search(line):
            result, kind, start = match.groups()
            # A TPU reduces and scatters in one fusion, which is written as a whole reduction.
            kind = "reduce-scatter" if where.startswith("all-reduce-scatter") else kind
            found[kind].append((times, _bytes(result, begun=start is not None)))
    return {
        kind: Collective(
            count=sum(times for times, _ in found[kind]),
            bytes=sum(times * size for times, size in found[kind]),
            largest=max(size for _, size in found[kind]),
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


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the one that is the program."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations[match[1]] = []
            entry = match[1] if line.startswith("ENTRY") else entry
        else:
            lines.append(line)
    return computations, entry


def _executed(
    computations: dict[str, list[str]], name: str, times: int
) -> Iterator[tuple[int, str, str]]:
    """Each line that is executed when a computation is: how often, where it stands, the line."""
    for line in computations.get(name, ()):
        yield times, name, line
        if loop := _LOOP.search(line):
            condition, body = loop.groups()
            limits = _LIMIT.findall("\n".join(computations[condition]))
            runs = max(map(int, limits), default=1)
            yield from _executed(computations, body, times * runs)
        else:
            for called in _CALL.findall(line):
                yield from _executed(computations, called, times)


def _bytes(result: str, *, begun: bool) -> int:
    """Bytes of a result type; of what is begun, of its largest part: the others are operands."""
    sizes = [_array_bytes(*array) for array in _ARRAY.findall(result)]
    return max(sizes, default=0) if begun else sum(sizes)


def _array_bytes(dtype: str, shape: str) -> int:
    bits = BITS.get(dtype) or int(dtype[1:])
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8
