"""A compiled program as instructions, parsed from its text (HLO)."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "bf16": 16}  # f32, s32, u8, ... carry theirs in the name

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
        bits = BITS.get(self.dtype) or int(self.dtype[1:])
        return math.prod(self.shape) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in the program.
        results: several where it makes a tuple.
        operation: such as "fusion".
        operands: names of the instructions whose results it reads.
        attributes: the rest of the line.
        root: whether its result is that of the computation.
    """

    name: str
    results: tuple[Array, ...]
    operation: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def bytes(self) -> int:
        """Of all results."""
        return sum(array.bytes for array in self.results)

    @property
    def off_chip_bytes(self) -> int:
        """Of the results in HBM."""
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
        """The body of a loop and how often it runs.

        The condition of a scan compares the counter with a constant.
        """
        condition = instruction.attribute(r"condition=%?([\w.-]+)")
        body = instruction.attribute(r"body=%?([\w.-]+)")
        assert condition and body, instruction
        if known := instruction.attribute(r'known_trip_count":\{"n":"(\d+)"'):
            return body, int(known)
        lines = self.computations[condition].values()
        limits = [int(i.attributes) for i in lines if _is_integer(i)]
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


def _is_integer(instruction: Instruction) -> bool:
    if instruction.operation != "constant" or not instruction.attributes.isdecimal():
        return False
    return [(array.dtype, array.shape) for array in instruction.results] == [("s32", ())]


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
    constant = operation[1] in ("constant", "parameter")
    results = tuple(
        # S(1) in a layout is memory on the chip.
        Array(dtype, numbers(shape), not re.search(r"S\([1-9]", layout))
        for dtype, shape, layout in _ARRAY.findall(line[begin:end])
    )
    operands = () if constant else tuple(_names(inside))
    attributes = inside if constant else rest
    return Instruction(named[2], results, operation[1], operands, attributes, named[1] is not None)


def _closing(line: str, begin: int) -> int:
    """The place after the parenthesis that closes the one at `begin`."""
    depth = 0
    for place in range(begin, len(line)):
        depth += (line[place] == "(") - (line[place] == ")")
        if not depth:
            return place + 1
    return len(line)


def _names(operands: str) -> Iterator[str]:
    """Names of operands; a type may stand before each."""
    plain = re.sub(r"/\*.*?\*/|\{[^}]*\}|\[[^]]*\]|\([^()]*\)", "", operands)
    for operand in plain.split(","):
        if words := operand.split():
            yield words[-1].lstrip("%")


def numbers(text: str) -> tuple[int, ...]:
    """Of "2,4"."""
    return tuple(int(number) for number in text.split(",") if number)
