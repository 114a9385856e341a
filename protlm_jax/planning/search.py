"""Finds the mesh, accumulation and rematerialisation that make a step fastest on a pod.

An estimate orders the settings: those that are far too large for the memory are left out, the
others are compiled in the order of their estimated time. For recipes on the pods of their papers
the estimate of memory is within a third, mostly too low; that of time only gives an order.
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
from protlm_jax.models.flops import training_flops_per_token
from protlm_jax.planning.compile import Plan, plan
from protlm_jax.planning.table import gigabytes
from protlm_jax.planning.topologies import Topology
from protlm_jax.training.assembly import Assembly, assemble
from protlm_jax.training.mesh_choice import state_and_gradients

REMATS = ("none", "minimal", "full")  # each takes less memory than the one before
MOST_TENSOR = 8  # devices that share one row; more would send more than they compute
SLACK = 1.25  # how much too large the estimate of memory may be
SHOWN = 5
# FLOPs in the time of one byte sent to a neighbour: 1.23e14 / 2e11 for a TPU v3 chip.
FLOPS_PER_BYTE_SENT = 615
# Passes over a model computed for the three (one forward, two backward) that count.
EXECUTED = {"none": 3.0, "minimal": 3.1, "full": 4.0}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a search varies: the mesh of one slice, parts of a batch, and `ModelConfig.remat`."""

    data: int
    fsdp: int
    tensor: int
    accumulate: int
    remat: Any

    def applied(self, config: RunConfig) -> RunConfig:
        """The run with this setting."""
        sizes: dict[str, Any] = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        return dataclasses.replace(
            config,
            model=config.model.replace(remat=self.remat),
            train=dataclasses.replace(config.train, accumulate=self.accumulate),
            mesh=dataclasses.replace(config.mesh, auto=False, **sizes),
        )

    def overrides(self, phase: str = "") -> str:
        """The same as options of the command line."""
        where = f"--config.phases.{phase}." if phase else "--config."
        return (
            f"{where}mesh.data=-1 {where}mesh.fsdp={self.fsdp} {where}mesh.tensor={self.tensor} "
            f"{where}train.accumulate={self.accumulate} {where}model.remat={self.remat}"
        )


@dataclasses.dataclass(frozen=True)
class Tried:
    """A setting that was compiled; without a plan where the compiler failed, for `failure`."""

    setting: Setting
    plan: Plan | None
    failure: str = ""

    @property
    def fits(self) -> bool:
        """False also where the compiler places more than there is."""
        made = self.plan
        return made is not None and made.fits and made.peak_bytes <= made.available_bytes

    @property
    def seconds(self) -> float:
        """Predicted for a step; infinite where it does not fit."""
        known = self.plan.step_seconds if self.fits and self.plan is not None else None
        return math.inf if known is None else known

    def to_dict(self, phase: str) -> dict[str, Any]:
        plan = self.plan and self.plan.to_dict()
        overrides = self.setting.overrides(phase)
        return {"overrides": overrides, "plan": plan, "failure": self.failure}

    def __str__(self) -> str:
        s, made = self.setting, self.plan
        text = (
            f"data {s.data} x fsdp {s.fsdp} x tensor {s.tensor}, accumulate {s.accumulate}, "
            f"remat {s.remat}: "
        )
        if made is None:
            return f"{text}the compiler failed: {self.failure}"
        memory = f"{gigabytes(made.peak_bytes)} of {gigabytes(made.available_bytes)}"
        if not self.fits:
            return f"{text}does not fit: {memory}"
        speed = f"MFU {made.mfu or 0:.1%}, bound by {made.binds}"
        return f"{text}{self.seconds:.3g} s a step, {speed}; {memory}"


def search(
    phase: Phase, topology: Topology, most: int, report_line: Callable[[str], None]
) -> list[Tried]:
    """Compiles at most `most` settings of a phase: its own, then those with the best estimates.

    Returns them, the fastest that fits first; `report_line` gets a line after each. ProtlmError:
    the rows or the mesh do not divide over the pod.
    """
    config = phase.config
    parts = assemble(config, topology.devices)
    mesh = parts.mesh.shape
    sizes = mesh["data"], mesh["fsdp"], mesh["tensor"]
    own = Setting(*sizes, config.train.accumulate, config.model.remat)
    waiting = _promising(config, parts, topology)
    report_line(
        f"{len(waiting)} settings may fit; at most {most} are compiled, the best estimates first"
    )
    tried: list[Tried] = []
    for setting in (own, *(s for s in waiting if s != own)):
        if len(tried) == most:
            break
        if any(_excludes(done, setting) for done in tried):
            continue
        try:
            made, failure = plan(setting.applied(config), topology, phase.name), ""
        except jax.errors.JaxRuntimeError as error:  # the search continues with other settings
            made, failure = None, str(error).strip().splitlines()[0][:200]
        tried.append(Tried(setting, made, failure))
        report_line(f"{len(tried)}/{most}: {tried[-1]}")
    return sorted(tried, key=lambda done: (not done.fits, done.seconds))


def report(tried: list[Tried], phase: str = "") -> str:
    """The fastest settings, and the options that give the first."""
    best = f"best: {tried[0].setting.overrides(phase)}"
    none = "none of these settings fits; try a larger pod, or more settings"
    title = [f"phase {phase}:"] if phase else []
    return "\n".join([*title, *map(str, tried[:SHOWN]), best if tried[0].fits else none])


def settings(config: RunConfig, devices: int, slices: int) -> Iterator[Setting]:
    """All settings that the rows of a batch and the devices of a slice allow."""
    rows, model = config.train.batch_size, config.model
    powers = [2**i for i in range(devices.bit_length())]
    for tensor in (size for size in powers if size <= min(devices, MOST_TENSOR)):
        replicas, rest = divmod(devices, tensor)
        if rest or model.num_heads % tensor or model.d_ff % tensor or rows % (replicas * slices):
            continue
        each = rows // (replicas * slices)
        parts = [count for count in range(1, each + 1) if each % count == 0]
        for fsdp, accumulate, remat in itertools.product(powers, parts, REMATS):
            if replicas % fsdp == 0 and model.d_model % fsdp == 0:
                yield Setting(replicas // fsdp, fsdp, tensor, accumulate, remat)


def _promising(config: RunConfig, parts: Assembly, topology: Topology) -> list[Setting]:
    """Settings that may fit, the likely fastest first."""
    slices = topology.slices
    parameters = models.parameter_count(parts.abstract.params)
    fixed: dict[tuple[int, int], int] = {}
    found = []
    for setting in settings(config, len(topology.devices) // slices, slices):
        mesh = setting.fsdp, setting.tensor
        if mesh not in fixed:
            sizes = {"data": slices * setting.data, "fsdp": mesh[0], "tensor": mesh[1]}
            fixed[mesh] = state_and_gradients(parts.abstract, parts.axes, sizes)
        needed = fixed[mesh] + activation_bytes(config, setting, slices)
        if needed <= SLACK * topology.hbm:
            found.append(setting)
    return sorted(found, key=lambda s: relative_time(config, s, parameters, slices))


def _tokens_at_once(config: RunConfig, setting: Setting, slices: int) -> int:
    """Tokens of a part of a batch that the devices of one `tensor` axis compute."""
    replicas = slices * setting.data * setting.fsdp
    return config.train.batch_size // setting.accumulate // replicas * config.data.length


def activation_bytes(config: RunConfig, setting: Setting, slices: int) -> int:
    """Bytes of activations: what is kept of all layers, and what is recomputed of one."""
    tokens = _tokens_at_once(config, setting, slices)
    model, tensor = config.model, setting.tensor
    layers = model.num_layers + model.num_decoder_layers
    inner, hidden, width = (
        model.num_heads * model.head_dim // tensor, model.d_ff // tensor, model.d_model,
    )  # fmt: skip
    products = 3 * inner + 2 * width + hidden * (2 if model.gated_mlp else 1)
    scores = max(model.num_heads // tensor, 1) * (config.data.length + model.memory_length)
    if model.positions == "relative_xl":  # of each distance, and of each key, forward and shifted
        scores *= 3
    size = model.compute_dtype.itemsize
    # Norms go through float32, the MLP's activation is kept beside its argument, and scores are
    # kept in float32 and as weights.
    everything = size * (products + 3 * width + hidden) + 4 * 2 * width + (4 + size) * scores
    kept = {
        "none": everything + 2 * 4 * scores,  # softmax's argument, and its exponentials
        "minimal": size * (width + products),
        "full": size * width,
    }[setting.remat]
    return tokens * (layers * kept + 2 * everything + 3 * 4 * model.vocab_size)


def relative_time(config: RunConfig, setting: Setting, parameters: int, slices: int) -> float:
    """A step's time on one device in FLOPs: products, and bytes sent as what they would cost."""
    model, length = config.model, config.data.length
    tokens = _tokens_at_once(config, setting, slices) * setting.accumulate
    flops = training_flops_per_token(model, length) / 3 * EXECUTED[setting.remat]
    passes = 3 if setting.remat == "full" else 2  # for which parameters are gathered
    size, own = model.compute_dtype.itemsize, parameters / setting.tensor
    sent = 0.0
    if setting.fsdp > 1:
        sent += setting.accumulate * (passes + 1) * size * own
    if setting.data * slices > 1:
        sent += 2 * size * own / setting.fsdp
    if setting.tensor > 1:
        layers = model.num_layers + model.num_decoder_layers
        sent += tokens * layers * 2 * (passes + 1) * 2 * size * model.d_model
    return tokens * flops / setting.tensor + sent * FLOPS_PER_BYTE_SENT


def _excludes(done: Tried, setting: Setting) -> bool:
    """Whether a compiled setting shows that another does not fit, or is slower.

    A setting that takes no less memory than one that does not fit does not fit either; on the same
    mesh, more parts or more recomputation than in a setting that fits only cost time.
    """
    known = done.setting
    if known.tensor != setting.tensor:
        return False
    remat, other = REMATS.index(known.remat), REMATS.index(setting.remat)
    if not done.fits:
        no_more = setting.fsdp <= known.fsdp and setting.accumulate <= known.accumulate
        return done.plan is not None and no_more and other <= remat
    more = other >= remat and setting.accumulate >= known.accumulate
    return known.fsdp == setting.fsdp and more
