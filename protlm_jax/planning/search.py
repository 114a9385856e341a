"""Which mesh, microbatch and rematerialisation make a step fastest on a pod: tried, not guessed.

Every setting is judged by rule of thumb first. Those that are far too large for the memory are left
out, the rest is compiled in the order of its guessed time, until as many were compiled as were
asked for. What the compiler says then decides.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from protlm_jax import models
from protlm_jax.config.recipes import Phase
from protlm_jax.config.run import RunConfig
from protlm_jax.planning import estimate
from protlm_jax.planning.compile import Plan, plan
from protlm_jax.planning.estimate import Setting
from protlm_jax.planning.table import gigabytes
from protlm_jax.planning.topologies import Topology
from protlm_jax.training.assembly import Parts, assemble

REMATS = ("none", "minimal", "full")  # each takes less memory than the one before
MOST_TENSOR = 8  # devices that do one row together; more than this sends more than it computes
SLACK = 1.25  # how much too large the estimate of memory may be
SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Tried:
    """A setting that was compiled.

    Attributes:
        setting: what was varied.
        plan: what came of it; None where the compiler failed, for `failure`.
    """

    setting: Setting
    plan: Plan | None
    failure: str = ""

    @property
    def fits(self) -> bool:
        """Also where the compiler finds a place for more than there is, it is not taken."""
        made = self.plan
        return made is not None and made.fits and made.peak_bytes <= made.available_bytes

    @property
    def seconds(self) -> float:
        """Of a step, as predicted; infinite where it does not fit."""
        known = self.plan.step_seconds if self.fits and self.plan is not None else None
        return math.inf if known is None else known

    def to_dict(self, phase: str) -> dict[str, Any]:
        return {
            "overrides": self.setting.overrides(phase),
            "plan": self.plan.to_dict() if self.plan else None,
            "failure": self.failure,
        }


def search(phase: Phase, topology: Topology, most: int, tell: Callable[[str], None]) -> list[Tried]:
    """Compiles the most promising settings of a phase.

    Args:
        phase: its own mesh, accumulation and remat are tried first.
        topology: the pod.
        most: how many programs may be compiled.
        tell: takes a line after each.

    Returns:
        All that were compiled, the fastest that fits first.

    Raises:
        ProtlmError: rows, or a mesh, that do not go with the pod.
    """
    config = phase.config
    parts = assemble(config, topology.devices)
    own = _own_setting(config, parts)
    waiting = _promising(config, parts, topology)
    tell(f"{len(waiting)} settings may fit; at most {most} are compiled, the likely fastest first")
    tried: list[Tried] = []
    for setting in itertools.chain([own], (s for s in waiting if s != own)):
        if len(tried) == most:
            break
        if any(_settles(done, setting) for done in tried):
            continue
        tried.append(_compiled(setting, phase, topology))
        tell(f"{len(tried)}/{most}: {_line(tried[-1])}")
    return sorted(tried, key=lambda done: (not done.fits, done.seconds))


def report(tried: list[Tried], phase: str = "") -> str:
    """The fastest settings, and how to ask for the first."""
    lines = [f"phase {phase}:"] if phase else []
    lines += [_line(done) for done in tried[:SHOWN]]
    if not tried[0].fits:
        return "\n".join(
            [*lines, "nothing that was tried fits; try a larger pod, or more settings"]
        )
    return "\n".join([*lines, f"best: {tried[0].setting.overrides(phase)}"])


def settings(config: RunConfig, devices: int, slices: int) -> Iterator[Setting]:
    """All settings that the rows of a batch and the devices of a slice allow."""
    rows, model = config.train.batch_size, config.model
    for tensor in _powers(min(devices, MOST_TENSOR)):
        if devices % tensor or model.num_heads % tensor or model.d_ff % tensor:
            continue
        replicas = devices // tensor
        if rows % (replicas * slices):
            continue
        each = rows // (replicas * slices)
        parts = [count for count in range(1, each + 1) if each % count == 0]
        for fsdp in _powers(replicas):
            if replicas % fsdp == 0 and model.d_model % fsdp == 0:
                for accumulate, remat in itertools.product(parts, REMATS):
                    yield Setting(replicas // fsdp, fsdp, tensor, accumulate, remat)


def _promising(config: RunConfig, parts: Parts, topology: Topology) -> list[Setting]:
    """Settings that may fit, the likely fastest first."""
    slices = topology.slices
    parameters = models.parameter_count(parts.abstract.params)
    fixed: dict[tuple[int, int], int] = {}
    found = []
    for setting in settings(config, len(topology.devices) // slices, slices):
        mesh = setting.fsdp, setting.tensor
        if mesh not in fixed:
            fixed[mesh] = estimate.fixed_bytes(setting, parts.abstract, parts.axes, slices)
        needed = fixed[mesh] + estimate.activation_bytes(config, setting, slices)
        if needed <= SLACK * topology.hbm:
            found.append(setting)
    return sorted(found, key=lambda s: estimate.relative_time(config, s, parameters, slices))


def _settles(done: Tried, setting: Setting) -> bool:
    """Whether what was compiled already says that another setting is not worth it.

    What takes no less memory than what did not fit does not fit either; and on the same mesh, more
    parts, or more computed again, than in what fits only cost time.
    """
    known = done.setting
    if known.tensor != setting.tensor:
        return False
    remat, other = REMATS.index(known.remat), REMATS.index(setting.remat)
    if not done.fits:
        no_more = setting.fsdp <= known.fsdp and setting.accumulate <= known.accumulate
        return done.plan is not None and no_more and other <= remat
    if known.fsdp != setting.fsdp:
        return False
    return other >= remat and setting.accumulate >= known.accumulate


def _compiled(setting: Setting, phase: Phase, topology: Topology) -> Tried:
    try:
        return Tried(setting, plan(setting.applied(phase.config), topology, phase.name))
    except jax.errors.JaxRuntimeError as error:  # one failure of the compiler does not end a search
        return Tried(setting, None, str(error).strip().splitlines()[0][:200])


def _own_setting(config: RunConfig, parts: Parts) -> Setting:
    mesh = parts.mesh.shape
    sizes = mesh["data"], mesh["fsdp"], mesh["tensor"]
    return Setting(*sizes, config.train.accumulate, config.model.remat)


def _line(done: Tried) -> str:
    setting, made = done.setting, done.plan
    what = (
        f"data {setting.data} x fsdp {setting.fsdp} x tensor {setting.tensor}, "
        f"accumulate {setting.accumulate}, remat {setting.remat}: "
    )
    if made is None:
        return f"{what}the compiler failed: {done.failure}"
    if not done.fits:
        return (
            f"{what}does not fit: {gigabytes(made.peak_bytes)} of {gigabytes(made.available_bytes)}"
        )
    speed = ""
    if made.step_seconds is not None and made.mfu is not None:
        speed = f"{made.step_seconds:.3g} s a step, MFU {made.mfu:.1%}, bound by {made.binds}; "
    return f"{what}{speed}{gigabytes(made.peak_bytes)} of {gigabytes(made.available_bytes)}"


def _powers(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length()) if 2**i <= most]
