"""How long a step takes: the compiled program, instruction by instruction, in execution order.

An instruction takes the longest of what its products need at peak, what its bytes need through HBM,
and what the TPU compiler expects (`estimated_cycles`, which knows how well the vector and matrix
units are filled). Instructions run one after the other; an asynchronous collective or copy overlaps
them, and costs what is left of it at its `-done`. Waiting for the host, for slow devices or for a
shared network is not included.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from protlm_jax.planning.collectives import groups_of, kind_of, payload
from protlm_jax.planning.costs import cost
from protlm_jax.planning.hlo import Instruction, Program
from protlm_jax.planning.interconnect import Network

RESOURCES = ("compute", "hbm", "ici", "dcn")
SPENT = (*RESOURCES, "vector")
Seconds = Mapping[str, float]  # by resource


@dataclasses.dataclass(frozen=True)
class Spent:
    """What running a computation once takes on one device."""

    flops: int = 0  # of products
    bytes: int = 0  # through HBM
    # Seconds by resource (RESOURCES), each at its published rate.
    alone: Seconds = dataclasses.field(default_factory=dict)
    # Seconds one after the other, by what binds each instruction (SPENT). "vector": where the
    # compiler expects more than twice the time of any resource, the vector unit or a bad layout.
    booked: Seconds = dataclasses.field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(self.booked.values())

    def plus(self, other: Spent, times: int = 1) -> Spent:
        """Followed by the other, so many times."""

        def added(one: Seconds, more: Seconds) -> Seconds:
            return {k: one.get(k, 0.0) + more.get(k, 0.0) * times for k in {**one, **more}}

        return Spent(
            self.flops + other.flops * times,
            self.bytes + other.bytes * times,
            added(self.alone, other.alone),
            added(self.booked, other.booked),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Walk:
    """A program compiled for the devices of a network; `mesh` has the sizes of its axes."""

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
        ends: dict[str, tuple[float, str]] = {}  # of asynchronous work: when, and on what
        busy = dict.fromkeys(SPENT, 0.0)
        for instruction in instructions.values():
            operation = instruction.operation
            if operation in ("while", "conditional", "call"):
                more = self._inside(instruction)
            elif operation.endswith("-start") or operation == "send":
                more = self._own(name, instruction)
                ((resource, length),) = more.booked.items()
                busy[resource] = max(busy[resource], clock) + length
                ends[_rendezvous(instruction)] = busy[resource], resource
                more = dataclasses.replace(more, booked={})
            elif operation in ("recv", "send-done"):
                continue  # the receiver waits
            elif operation.endswith("-done"):
                started = _rendezvous(instructions[instruction.operands[0]])
                end, resource = ends.get(started, (0.0, "hbm"))
                more = Spent(booked={resource: max(0.0, end - clock)})
            else:
                more = self._own(name, instruction)
            clock += more.seconds
            spent = spent.plus(more)
        return spent

    def _inside(self, instruction: Instruction) -> Spent:
        if instruction.operation == "while":
            body, runs = self.program.loop(instruction)
            return Spent().plus(self.computation(body), runs)
        branches = map(self.computation, instruction.called)
        return max(branches, key=lambda spent: spent.seconds, default=Spent())

    def _own(self, where: str, instruction: Instruction) -> Spent:
        """What an instruction takes that is no loop, branch or call."""
        chip, found = self.network.chip, cost(self.program, where, instruction)
        alone = {
            "compute": found.passed / self.peak,
            "hbm": found.bytes / (chip.hbm / self.network.per_chip),
            **self._communication(where, instruction),
        }
        binds = max(RESOURCES, key=lambda resource: alone[resource])
        length, expected = alone[binds], found.cycles / chip.clock
        if expected > 2 * length:
            binds = "vector"
        return Spent(found.flops, found.bytes, alone, {binds: max(length, expected)})

    def _communication(self, where: str, instruction: Instruction) -> Seconds:
        """Seconds of the collectives that an instruction is or contains, "ici" and "dcn"."""
        total = {"ici": 0.0, "dcn": 0.0}
        inside = [(where, instruction)]
        for called in instruction.called if kind_of(instruction, where) is None else ():
            inside += [(n, i) for _, n, i in self.program.executed(called)]
        for place, one in inside:
            if kind := kind_of(one, place):
                groups = groups_of(one, self.mesh)
                scattered = one.operation.startswith("reduce-scatter")
                size = payload(one) * (groups.shape[1] if scattered else 1)  # of the whole array
                for network, seconds in self.network.seconds(kind, size, groups).items():
                    total[network] += seconds
        return total


def _rendezvous(instruction: Instruction) -> str:
    """What the start and the end of asynchronous work have in common."""
    return instruction.attribute(r'_transfer_rendezvous="([^"]*)"') or instruction.name
