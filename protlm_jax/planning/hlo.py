"""A compiled program as instructions, read from its text (HLO)."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "bf16": 16}  # f32, s32, u8, ... say it themselves

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_ARRAY = re.compile(r"\b(pred|bf16|[cfsu]\d+)(?:e\d+\w*)?\[([\d,]*)\](\{[^}]*\})?")
_NAMED = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = ")
_OPERATION = re.compile(r"\s*([a-z][\w-]*)\(")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array that an instruction makes, on one device.

    Attributes:
        dtype: such as "bf16".
        shape: sizes.
        off_chip: whether it lives in HBM, and not in the memory beside the units.
    """

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
        results: what it makes; several where it makes a tuple.
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
        """Of all that it makes."""
        return sum(array.bytes for array in self.results)

    @property
    def called(self) -> list[str]:
        """Computations that run when it does; those of a loop are `Program.loop`'s."""
        branches = _BRANCHES.search(self.attributes)
        listed = re.findall(r"[\w.-]+", branches[1]) if branches else []
        return _CALLED.findall(self.attributes) + listed

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression in what follows the operands."""
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

        Loops of scans are known by their condition, a comparison of the counter with a constant.
        """
        condition = instruction.attribute(r"condition=%?([\w.-]+)")
        body = instruction.attribute(r"body=%?([\w.-]+)")
        assert condition and body, instruction
        known = instruction.attribute(r'known_trip_count":\{"n":"(\d+)"')
        if known:
            return body, int(known)
        lines = self.computations[condition].values()
        limits = [int(i.attributes) for i in lines if i.operation == "constant" and _whole(i)]
        return body, max(limits, default=1)

    def executed(self, name: str, times: int = 1) -> Iterator[tuple[int, str, Instruction]]:
        """Every instruction that runs when a computation does: how often, where it stands, it."""
        for instruction in self.computations.get(name, {}).values():
            yield times, name, instruction
            if instruction.operation == "while":
                body, runs = self.loop(instruction)
                yield from self.executed(body, times * runs)
            else:
                for called in instruction.called:
                    yield from self.executed(called, times)


def _whole(constant: Instruction) -> bool:
    (array,) = constant.results
    return array.dtype == "s32" and not array.shape and constant.attributes.isdecimal()


@functools.lru_cache(maxsize=1)
def read(text: str) -> Program:
    """Reads `compiled.as_text()`; the program read last is kept."""
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
    return Instruction(
        name=named[2],
        results=tuple(_arrays(line[begin:end])),
        operation=operation[1],
        operands=() if constant else tuple(_names(inside)),
        attributes=inside if constant else rest,
        root=named[1] is not None,
    )


def _closing(line: str, begin: int) -> int:
    """The place after the parenthesis that closes the one at `begin`."""
    depth = 0
    for place in range(begin, len(line)):
        depth += (line[place] == "(") - (line[place] == ")")
        if not depth:
            return place + 1
    return len(line)


def _names(operands: str) -> Iterator[str]:
    """Names of operands, which may be written after their types."""
    plain = re.sub(r"/\*.*?\*/|\{[^}]*\}|\[[^]]*\]|\([^()]*\)", "", operands)
    for operand in plain.split(","):
        if words := operand.split():
            yield words[-1].lstrip("%")


def _arrays(kind: str) -> Iterator[Array]:
    """Those of a type: an array, or a tuple of them. S(1) in a layout is memory on the chip."""
    for dtype, shape, layout in _ARRAY.findall(kind):
        sizes = tuple(int(size) for size in shape.split(",") if size)
        yield Array(dtype, sizes, not re.search(r"S\([1-9]", layout))
