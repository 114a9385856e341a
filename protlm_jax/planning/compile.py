"""Compiles the train step of a run for a pod, and says what it takes.

The very step that the loop runs (`protlm_jax.training.assembly`), for devices that are described
and not there. Nothing is allocated: state and batch are shapes.
"""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from protlm_jax import models
from protlm_jax.config.files import ArchitectureOf
from protlm_jax.config.recipes import Phase, load_recipe
from protlm_jax.config.run import RunConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.models.attention_choice import describe
from protlm_jax.models.flops import training_flops_per_token
from protlm_jax.partitioning import left_whole
from protlm_jax.planning.hardware import CHIPS
from protlm_jax.planning.hlo import read
from protlm_jax.planning.interconnect import Network
from protlm_jax.planning.program import Collective, collectives, collectives_by_axis, unsplit
from protlm_jax.planning.roofline import Walk
from protlm_jax.planning.topologies import Topology
from protlm_jax.training.assembly import Parts, assemble
from protlm_jax.training.state import bytes_on_device

# A plan reads no proteins, so that a recipe that wants a corpus can be planned without it.
UNREAD = "data.fasta=unread.fasta"
_CORPUS = re.compile(r"(.*\.)?data\.(fasta|prepared)=")
NOWHERE = Path("/nonexistent")  # no run has begun there

_SINGLE = ("input_tokens", "segment_ids", "positions")
_TARGETS = ("decoder_target_tokens", "decoder_loss_weights")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one phase of a run takes on each device of a pod. Bytes are of one device.

    Attributes:
        phase: its name; "" where there is one run.
        mesh: devices per axis.
        rows, length, accumulate: the batch: rows in all, tokens per row, parts one after the other.
        dtype, remat: of the model.
        parameters: of the whole model.
        state_bytes: parameters, optimizer's moments and memory, as they are split.
        peak_bytes: the most that is in use at once: state, batch, all that a step makes, program.
            Where it does not fit, what the compiler says it would take at least.
        available_bytes: of a device.
        fits: whether the compiler could place it.
        suggestion: what to change, where it does not fit.
        collectives: what devices say to each other in a step, by kind.
        unsplit: shapes of activations that each device holds for all rows; empty in a good plan.
        whole: what a mesh axis does not divide, and which parameters have it, in words.
        chosen: why the mesh is this one, where the config says "auto"; otherwise "".
        model_flops: of one step on all devices: three forward passes, nothing computed again.
        compile_seconds: on the machine that planned.
        executed_flops: of one step on all devices, as compiled: what is computed again counts too.
            This and what follows is None where the program does not fit: there is none then.
        hbm_bytes: that one device reads from its memory and writes to it in a step.
        collectives_by_axis: what devices say to each other, by the axes of the mesh along which
            they do ("fsdp", "data, fsdp"), and then by kind.
        seconds: that one step needs of each resource by itself at its published rate: "compute",
            "hbm", "ici" (between chips) and "dcn" (between slices). None of them can be beaten.
        roofline_mfu: model FLOPs over what the peak of all devices would do in the longest of them.
        step_seconds: of one step, one instruction after the other; see
            `protlm_jax.planning.roofline`.
        spent: how they divide, by what binds each instruction; "vector" is the vector unit.
        binds: what takes most of them.
        mfu, hfu: model FLOPs and executed FLOPs of a step over what the peak would do in it.
        tokens_per_second: of all devices.
        host_tokens_per_second: that each host has to read, prepare and send.
        days: for all steps of the phase.
        attention: what computes it and, where that is no fused kernel, why.
    """

    phase: str
    topology: str
    mesh: dict[str, int]
    rows: int
    length: int
    accumulate: int
    dtype: str
    remat: str
    parameters: int
    state_bytes: int
    peak_bytes: int
    available_bytes: int
    fits: bool
    suggestion: str
    collectives: dict[str, Collective]
    unsplit: list[str]
    whole: list[str]
    chosen: str
    model_flops: int
    compile_seconds: float
    executed_flops: int | None = None
    hbm_bytes: int | None = None
    collectives_by_axis: dict[str, dict[str, Collective]] | None = None
    seconds: dict[str, float] | None = None
    roofline_mfu: float | None = None
    step_seconds: float | None = None
    spent: dict[str, float] | None = None
    binds: str | None = None
    mfu: float | None = None
    hfu: float | None = None
    tokens_per_second: float | None = None
    host_tokens_per_second: float | None = None
    days: float | None = None
    attention: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def plan_recipe(
    spec: str,
    overrides: list[str],
    topology: Topology,
    only: str | None = None,
    architecture_of: ArchitectureOf | None = None,
) -> list[Plan]:
    """Plans every phase of a recipe, or one.

    Args:
        spec, overrides, only, architecture_of: as `phases_of` takes them.
        topology: the pod.

    Raises:
        ProtlmError: as `phases_of`; or a mesh or a batch that does not go with the pod.
    """
    phases = phases_of(spec, overrides, only, architecture_of)
    return [plan(phase.config, topology, phase.name) for phase in phases]


def phases_of(
    spec: str,
    overrides: list[str],
    only: str | None = None,
    architecture_of: ArchitectureOf | None = None,
) -> list[Phase]:
    """The phases of a recipe, or one, for which no corpus is needed.

    Args:
        spec, overrides, architecture_of: as `protlm_jax.config.recipes.load_recipe` takes them.
        only: name of the one phase; None for all.

    Raises:
        ProtlmError: as `load_recipe`; or there is no such phase.
    """
    rest = [text for text in overrides if not _CORPUS.match(text)]
    phases = load_recipe(spec, [UNREAD, *rest], NOWHERE, architecture_of)
    names = [phase.name for phase in phases]
    if only is not None and only not in names:
        known = ", ".join(filter(None, names)) or "none"
        raise ProtlmError(f"{spec} has no phase {only!r}; it has {known}")
    return [phase for phase in phases if only in (None, phase.name)]


def plan(config: RunConfig, topology: Topology, phase: str = "") -> Plan:
    """Compiles one run's train step for a pod.

    Raises:
        ProtlmError: a mesh that does not fit the pod, or rows that do not divide over it.
    """
    parts = assemble(config, topology.devices)
    begin = time.monotonic()
    lowered = parts.update.lower(parts.abstract, abstract_batch(config))
    train, length = config.train, config.data.length
    state = bytes_on_device(parts.abstract, parts.layout)
    spoken: dict[str, Collective] = {}
    whole: list[str] = []
    speed: dict[str, Any] = {}
    queries = parts.objective.queries(length)
    flops = training_flops_per_token(config.model, length, queries) * train.batch_size * length
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        peak = asked_for(str(error))
        suggestion = suggest(config, parts, state, topology.hbm)
    else:
        peak, suggestion = peak_of(compiled.memory_analysis()), ""
        text = compiled.as_text()
        spoken = collectives(text)
        if parts.rows.spec[0] is not None:  # rows are split at all
            whole = unsplit(text, train.batch_size // train.accumulate, length)
        tokens = train.batch_size * length
        speed = how_fast(text, parts.mesh, topology.generation, tokens, train.steps, flops)
    return Plan(
        phase=phase,
        topology=topology.name,
        mesh=dict(parts.mesh.shape),
        rows=train.batch_size,
        length=length,
        accumulate=train.accumulate,
        dtype=config.model.dtype,
        remat=config.model.remat,
        parameters=models.parameter_count(parts.abstract.params),
        state_bytes=state,
        peak_bytes=peak,
        available_bytes=topology.hbm,
        fits=not suggestion,
        suggestion=suggestion,
        collectives=spoken,
        unsplit=whole,
        whole=left_whole(parts.abstract.params, parts.axes, parts.mesh),
        chosen=parts.chosen,
        model_flops=flops,
        compile_seconds=time.monotonic() - begin,
        attention=describe(config.model, topology.devices[0].device_kind, length),
        **speed,
    )


def how_fast(
    text: str, mesh: Mesh, generation: str, tokens: int, steps: int, model_flops: int
) -> dict[str, Any]:
    """The fields of a Plan that say how fast a step is.

    Args:
        text: `compiled.as_text()`.
        mesh: TPU devices, or descriptions of them, for which it was compiled.
        generation: theirs, such as "v3".
        tokens: of one step, on all devices.
        steps: of the run.
        model_flops: of one step on all devices.
    """
    devices = list(mesh.devices.flat)
    walk = Walk(read(text), Network.of(CHIPS[generation], devices), tuple(mesh.shape.values()))
    took = walk.all()
    peak = walk.peak * len(devices)
    rate = tokens / took.seconds
    return {
        "executed_flops": took.flops * len(devices),
        "hbm_bytes": took.bytes,
        "collectives_by_axis": collectives_by_axis(text, mesh.shape),
        "seconds": took.alone,
        "roofline_mfu": model_flops / peak / max(took.alone.values()),
        "step_seconds": took.seconds,
        "spent": took.booked,
        "binds": max(took.booked, key=lambda name: took.booked[name]),
        "mfu": model_flops / peak / took.seconds,
        "hfu": took.flops / walk.peak / took.seconds,
        "tokens_per_second": rate,
        "host_tokens_per_second": rate / len({device.process_index for device in devices}),
        "days": steps * took.seconds / 86_400,
    }


def abstract_batch(config: RunConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of the run's data task, int32 [rows, length] each."""
    task = config.data.task
    names: tuple[str, ...] = _SINGLE
    if task == "stream":
        names += ("target_tokens", "target_weights")
    elif task != "tokens":
        names = tuple(f"{side}_{kind}" for side in ("encoder", "decoder") for kind in _SINGLE)
        names += _TARGETS
    shape = (config.train.batch_size, config.data.length)
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in names}


def peak_of(memory: Any) -> int:
    """The most that is alive at once, as the compiler placed it, and the program itself.

    Not the size of all temporary buffers: of T5X's ProtT5-XXL over v3-512 that is 17.4 GiB on a
    core that has 15.5, where the compiler has placed the step with 11.
    """
    return int(memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes)


def asked_for(message: str) -> int:
    """How many bytes the compiler wanted, from its message.

    Raises:
        ProtlmError: the message is of something else than memory.
    """
    amount = re.search(r"(?:Used |required for HLO temporaries \()([\d.]+)([KMGT])\b", message)
    size = re.search(r"\(size=(\d+)\)", message)  # of one array that is too large by itself
    if "RESOURCE_EXHAUSTED" not in message or not (amount or size):
        raise ProtlmError(f"the TPU compiler cannot compile this step: {message[:500]}")
    if amount:
        return int(float(amount[1]) * _UNITS[amount[2]])
    return int(size[1]) if size else 0


def suggest(config: RunConfig, parts: Parts, state: int, available: int) -> str:
    """What to change first where it does not fit: what costs the least speed.

    Args:
        config: the run.
        parts: it, put together.
        state, available: bytes of the state on one device, and of the device.
    """
    if config.model.remat != "full":
        following = {"none": "minimal", "minimal": "full"}[config.model.remat]
        return f"--config.model.remat={following}"
    mesh = parts.mesh.shape
    if state > available / 3 and mesh["data"] > 1:
        return f"--config.mesh.data=-1 --config.mesh.fsdp={mesh['fsdp'] * min(8, mesh['data'])}"
    own_rows = config.train.batch_size // config.train.accumulate // (mesh["data"] * mesh["fsdp"])
    for parts_more in range(2, own_rows + 1):
        if own_rows % parts_more == 0:
            return f"--config.train.accumulate={config.train.accumulate * parts_more}"
    return f"--config.mesh.data=-1 --config.mesh.tensor={mesh['tensor'] * 2}"
