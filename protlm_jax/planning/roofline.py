"""How long a step takes: the compiled program, walked through in the order in which it runs.

Each instruction takes the longest of what its products need at peak, what its bytes need through
HBM, and what the TPU compiler itself expects of it (`estimated_cycles`, which knows how well the
vector and matrix units are filled). One follows the other; a collective or a copy that the program
begins and awaits later goes on beside them, and costs what is left of it when it is awaited.
Waiting for the host, for slow devices or for a network that others use too is not in it.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from protlm_jax.planning.costs import cost
from protlm_jax.planning.groups import groups_of
from protlm_jax.planning.hlo import Instruction, Program
from protlm_jax.planning.interconnect import Network
from protlm_jax.planning.program import kind_of, payload

RESOURCES = ("compute", "hbm", "ici", "dcn")
SPENT = (*RESOURCES, "vector")
Seconds = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Spent:
    """What running a computation once takes on one device.

    Attributes:
        flops: of products.
        bytes: through HBM.
        alone: seconds by resource (RESOURCES), each at its published rate.
        booked: seconds one after the other, by what binds each instruction (SPENT). "vector" is
            what takes the compiler's estimate to more than twice that of any resource: the vector
            unit, and data that lie as an instruction does not want them.
    """

    flops: int = 0
    bytes: int = 0
    alone: Seconds = dataclasses.field(default_factory=dict)
    booked: Seconds = dataclasses.field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(self.booked.values())

    def times(self, runs: int) -> Spent:
        """The same so many times."""
        alone = {name: length * runs for name, length in self.alone.items()}
        booked = {name: length * runs for name, length in self.booked.items()}
        return Spent(self.flops * runs, self.bytes * runs, alone, booked)

    def plus(self, other: Spent) -> Spent:
        """One after the other."""
        return Spent(
            self.flops + other.flops,
            self.bytes + other.bytes,
            _added(self.alone, other.alone),
            _added(self.booked, other.booked),
        )


def _added(one: Seconds, other: Seconds) -> Seconds:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in one | other}


@dataclasses.dataclass(frozen=True, eq=False)
class Walk:
    """A program on the devices of a mesh.

    Attributes:
        program: compiled for them.
        network: where they are.
        mesh: sizes of the mesh's axes.
    """

    program: Program
    network: Network
    mesh: tuple[int, ...]

    @functools.cached_property
    def peak(self) -> float:
        """FLOPs per second of one device."""
        return self.network.chip.peak / self.network.per_chip

    def all(self) -> Spent:
        """What the whole program takes."""
        return self.computation(self.program.entry)

    def computation(self, name: str) -> Spent:
        """What a computation takes, with loops, branches (the longest) and calls."""
        instructions = self.program.computations[name]
        spent, clock = Spent(), 0.0
        ends: dict[str, tuple[float, str]] = {}  # of what goes on beside: when, and on what
        busy = dict.fromkeys(SPENT, 0.0)
        for instruction in instructions.values():
            operation = instruction.operation
            if operation in ("while", "conditional", "call"):
                more = self._inside(instruction)
            elif operation.endswith("-start") or operation == "send":
                more = self._own(name, instruction)
                ((resource, length),) = more.booked.items()
                busy[resource] = max(busy[resource], clock) + length
                ends[_meeting(instruction)] = busy[resource], resource
                more = dataclasses.replace(more, booked={})
            elif operation in ("recv", "send-done"):
                continue  # what was sent is awaited where it arrives
            elif operation.endswith("-done"):
                begun = _meeting(instructions[instruction.operands[0]])
                end, resource = ends.get(begun, (0.0, "hbm"))
                more = Spent(booked={resource: max(0.0, end - clock)})
            else:
                more = self._own(name, instruction)
            clock += more.seconds
            spent = spent.plus(more)
        return spent

    def _inside(self, instruction: Instruction) -> Spent:
        if instruction.operation == "while":
            body, runs = self.program.loop(instruction)
            return self.computation(body).times(runs)
        branches = [self.computation(name) for name in instruction.called]
        return max(branches, key=lambda spent: spent.seconds, default=Spent())

    def _own(self, where: str, instruction: Instruction) -> Spent:
        """What an instruction takes that is no loop, branch or call."""
        chip, found = self.network.chip, cost(self.program, where, instruction)
        alone = {
            "compute": found.passed / self.peak,
            "hbm": found.bytes / (chip.hbm / self.network.per_chip),
            **self._spoken(where, instruction),
        }
        binds = max(RESOURCES, key=lambda resource: alone[resource])
        length, expected = alone[binds], found.cycles / chip.clock
        if expected > 2 * length:
            binds = "vector"
        return Spent(found.flops, found.bytes, alone, {binds: max(length, expected)})

    def _spoken(self, where: str, instruction: Instruction) -> Seconds:
        """Seconds of the collectives that an instruction is or holds, "ici" and "dcn"."""
        total: Seconds = {"ici": 0.0, "dcn": 0.0}
        inside = [(where, instruction)]
        for called in instruction.called if kind_of(instruction, where) is None else ():
            inside += [(n, i) for _, n, i in self.program.executed(called)]
        for place, one in inside:
            if kind := kind_of(one, place):
                groups = groups_of(one, self.mesh)
                total = _added(total, self.network.seconds(kind, _whole(one, groups), groups))
        return total


def _meeting(instruction: Instruction) -> str:
    """What a beginning and its end have in common: their name, or where host transfers meet."""
    return instruction.attribute(r'_transfer_rendezvous="([^"]*)"') or instruction.name


def _whole(instruction: Instruction, groups: np.ndarray) -> int:
    """Bytes of the array of a collective: gathered, or before it is scattered."""
    scattered = instruction.operation.startswith("reduce-scatter")
    return payload(instruction) * (groups.shape[1] if scattered else 1)
