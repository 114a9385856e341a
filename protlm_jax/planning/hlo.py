"""A compiled program as instructions, parsed from its text (HLO)."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "bf16": 16}  # f32, s32, u8, ... have theirs in the name
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_ARRAY = re.compile(r"\b(pred|bf16|[cfsu]\d+)(?:e\d+\w*)?\[([\d,]*)\](\{[^}]*\})?")
_NAMED = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = ")
_OPERATION = re.compile(r"\s*([a-z][\w-]*)\(")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array on one device; `off_chip` means in HBM, not in the memory beside the units."""

    dtype: str
    shape: tuple[int, ...]
    off_chip: bool

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * (_BITS.get(self.dtype) or int(self.dtype[1:])) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str  # unique in the program
    results: tuple[Array, ...]  # several where it makes a tuple
    operation: str  # such as "fusion"
    operands: tuple[str, ...]  # names of the instructions whose results it reads
    attributes: str  # the rest of the line
    root: bool  # whether its result is that of the computation

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.results)

    @property
    def off_chip_bytes(self) -> int:
        return sum(array.bytes for array in self.results if array.off_chip)

    @property
    def called(self) -> list[str]:
        """Computations that run when it does; see `Program.loop` for those of a loop."""
        branches = self.attribute(r"branch_computations=\{([^}]*)\}") or ""
        return _CALLED.findall(self.attributes) + re.findall(r"[\w.-]+", branches)

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression in the attributes."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations by name, and the name of the one that is the program."""

    computations: dict[str, Computation]
    entry: str

    def loop(self, instruction: Instruction) -> tuple[str, int]:
        """The body of a loop and how often it runs: a scan's condition has the number."""
        condition = instruction.attribute(r"condition=%?([\w.-]+)")
        body = instruction.attribute(r"body=%?([\w.-]+)")
        assert condition and body, instruction
        if known := instruction.attribute(r'known_trip_count":\{"n":"(\d+)"'):
            return body, int(known)
        limits = [
            int(line.attributes)
            for line in self.computations[condition].values()
            if line.operation == "constant" and line.attributes.isdecimal()
            and [(array.dtype, array.shape) for array in line.results] == [("s32", ())]
        ]  # fmt: skip
        return body, max(limits, default=1)

    def executed(self, name: str, times: int = 1) -> Iterator[tuple[int, str, Instruction]]:
        """(how often, computation, instruction) of everything that a computation runs."""
        for instruction in self.computations.get(name, {}).values():
            yield times, name, instruction
            if instruction.operation == "while":
                body, runs = self.loop(instruction)
                yield from self.executed(body, times * runs)
            else:
                for called in instruction.called:
                    yield from self.executed(called, times)


@functools.lru_cache(maxsize=1)
def read(text: str) -> Program:
    """Parses `compiled.as_text()`; the last program is kept."""
    computations: dict[str, Computation] = {}
    entry, lines = "", {}
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations[match[1]] = {}
            entry = match[1] if line.startswith("ENTRY") else entry
        elif instruction := _instruction(line):
            lines[instruction.name] = instruction
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    named = _NAMED.match(line)
    if not named:
        return None
    begin = named.end()
    end = _closing(line, begin) if line[begin] == "(" else line.find(" ", begin)
    operation = _OPERATION.match(line, end)
    if not operation:
        return None
    close = _closing(line, operation.end() - 1)
    inside, rest = line[operation.end() : close - 1], line[close:].lstrip(", ")
    results = tuple(
        # S(1) in a layout is memory on the chip.
        Array(dtype, numbers(shape), not re.search(r"S\([1-9]", layout))
        for dtype, shape, layout in _ARRAY.findall(line[begin:end])
    )
    root = named[1] is not None
    if operation[1] in ("constant", "parameter"):  # in the place of operands stands a value
        return Instruction(named[2], results, operation[1], (), inside, root)
    # A type may stand before the name of an operand.
    plain = re.sub(r"/\*.*?\*/|\{[^}]*\}|\[[^]]*\]|\([^()]*\)", "", inside)
    operands = tuple(words[-1].lstrip("%") for part in plain.split(",") if (words := part.split()))
    return Instruction(named[2], results, operation[1], operands, rest, root)


def _closing(line: str, begin: int) -> int:
    """The place after the parenthesis that closes the one at `begin`."""
    depth = 0
    for place in range(begin, len(line)):
        depth += (line[place] == "(") - (line[place] == ")")
        if not depth:
            return place + 1
    return len(line)


def numbers(text: str) -> tuple[int, ...]:
    """Such as (2, 4) of "2,4"."""
    return tuple(int(number) for number in text.split(",") if number)
