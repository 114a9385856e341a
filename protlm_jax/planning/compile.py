"""Compiles the train step of a run (`protlm_jax.training.assembly`) for a pod, and measures it.

Devices are descriptions, state and batch are shapes: nothing is allocated.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
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
from protlm_jax.models.attention_context import describe
from protlm_jax.models.flops import training_flops_per_token
from protlm_jax.partitioning import left_whole
from protlm_jax.planning.collectives import (
    Collective,
    collectives,
    collectives_by_axis,
    unsplit,
)
from protlm_jax.planning.hlo import read
from protlm_jax.planning.interconnect import Network
from protlm_jax.planning.roofline import Walk
from protlm_jax.planning.topologies import Topology
from protlm_jax.training.assembly import Assembly, assemble
from protlm_jax.training.hardware import CHIPS
from protlm_jax.training.state import bytes_on_device

# A plan reads no proteins: a recipe can be planned without its corpus.
UNREAD = "data.fasta=unread.fasta"
_CORPUS = re.compile(r"(.*\.)?data\.(fasta|prepared)=")
NOWHERE = Path("/nonexistent")  # no run has begun there

_SINGLE = ("input_tokens", "segment_ids", "positions")
_TARGETS = ("decoder_target_tokens", "decoder_loss_weights")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one phase of a run takes on a pod; bytes are per device, None where it does not fit."""

    phase: str  # "" where there is one run
    topology: str
    mesh: dict[str, int]  # devices per axis
    rows: int  # of the batch, which is computed in `accumulate` parts
    length: int
    accumulate: int
    dtype: str
    remat: str
    parameters: int
    state_bytes: int  # parameters, moments and memory, as they are split
    peak_bytes: int  # the most in use at once; where it does not fit, what the compiler asks for
    available_bytes: int
    fits: bool  # whether the compiler could place it
    suggestion: str  # what to change, where it does not fit
    collectives: dict[str, Collective]  # of a step, by kind
    unsplit: list[str]  # shapes of activations that each device holds for all rows
    whole: list[str]  # in words, parameters with an axis that the mesh does not divide
    chosen: str  # why the mesh is this one, where the config says "auto"
    model_flops: int  # of one step on all devices: three forward passes, nothing computed again
    compile_seconds: float  # on the machine that planned
    executed_flops: int | None = None  # of one step on all devices, recomputation included
    hbm_bytes: int | None = None  # read and written by one device in a step
    # By mesh axes ("fsdp", "data, fsdp"), then by kind.
    collectives_by_axis: dict[str, dict[str, Collective]] | None = None
    # Lower bounds of a step by resource ("compute", "hbm", "ici" between chips, "dcn" between
    # slices) at its published rate, and MFU if a step took only the longest of them.
    seconds: dict[str, float] | None = None
    roofline_mfu: float | None = None
    step_seconds: float | None = None  # see `protlm_jax.planning.roofline`
    spent: dict[str, float] | None = None  # by what binds each instruction; "vector": vector unit
    binds: str | None = None  # what takes most of them
    mfu: float | None = None  # model FLOPs of a step over what the peak would do in it
    hfu: float | None = None  # the same of executed FLOPs
    tokens_per_second: float | None = None  # of all devices
    host_tokens_per_second: float | None = None  # that each host has to read, prepare and send
    days: float | None = None  # for all steps of the phase
    attention: str = ""  # what computes it and, where that is no fused kernel, why

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def plan_recipe(
    spec: str,
    overrides: list[str],
    topology: Topology,
    only: str | None = None,
    architecture_of: ArchitectureOf | None = None,
) -> list[Plan]:
    """Plans every phase of a recipe, or the one named `only`; raises as `phases_of` and `plan`."""
    phases = phases_of(spec, overrides, only, architecture_of)
    return [plan(phase.config, topology, phase.name) for phase in phases]


def phases_of(
    spec: str,
    overrides: list[str],
    only: str | None = None,
    architecture_of: ArchitectureOf | None = None,
) -> list[Phase]:
    """The phases of a recipe, or the one named `only`; no corpus is needed.

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
    flops = training_flops_per_token(config.model, length, parts.objective.queries(length))
    batch: dict[str, Any] = {
        "rows": train.batch_size, "length": length, "accumulate": train.accumulate,
    }  # fmt: skip
    measured = measure(
        lowered,
        topology,
        parts.mesh,
        lambda: suggest(config, parts, state, topology.hbm),
        steps=train.steps,
        model_flops=flops * train.batch_size * length,
        **batch,
    )
    if parts.rows.spec[0] is None:  # rows are not split at all
        measured["unsplit"] = []
    return Plan(
        phase=phase,
        topology=topology.name,
        mesh=dict(parts.mesh.shape),
        dtype=config.model.dtype,
        remat=config.model.remat,
        parameters=models.parameter_count(parts.abstract.params),
        state_bytes=state,
        available_bytes=topology.hbm,
        whole=left_whole(parts.abstract.params, parts.axes, parts.mesh),
        chosen=parts.chosen,
        compile_seconds=time.monotonic() - begin,
        attention=describe(config.model, topology.devices[0].device_kind, length),
        **batch,
        **measured,
    )


def measure(
    lowered: Any,
    topology: Topology,
    mesh: Mesh,
    suggestion: Callable[[], str],
    *,
    rows: int,
    length: int,
    accumulate: int,
    steps: int,
    model_flops: int,
) -> dict[str, Any]:
    """Compiles a lowered train step: the fields of a Plan that depend on the program.

    `suggestion` is called where it does not fit.
    """
    found: dict[str, Any] = {"model_flops": model_flops, "collectives": {}, "unsplit": []}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        peak = required_bytes(str(error))
        return {**found, "peak_bytes": peak, "fits": False, "suggestion": suggestion()}
    text, memory = compiled.as_text(), compiled.memory_analysis()
    return {
        **found,
        # What is alive at once and the program. The sum of all temporary buffers would be too
        # large: the compiler lets them share memory.
        "peak_bytes": int(memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes),
        "fits": True,
        "suggestion": "",
        "collectives": collectives(text),
        "unsplit": unsplit(text, rows // accumulate, length),
        **how_fast(text, mesh, topology.generation, rows * length, steps, model_flops),
    }


def how_fast(
    text: str, mesh: Mesh, generation: str, tokens: int, steps: int, model_flops: int
) -> dict[str, Any]:
    """The fields of a Plan about speed, from `compiled.as_text()` for the devices of the mesh.

    `tokens` and `model_flops` are those of one step on all devices.
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
    """Shapes of a batch of the run's data task, int32 [rows, length] each; labels float32."""
    task = config.data.task
    names: tuple[str, ...] = _SINGLE
    if task == "stream":
        names += ("target_tokens", "target_weights")
    elif task not in ("tokens", "labels"):
        names = tuple(f"{side}_{kind}" for side in ("encoder", "decoder") for kind in _SINGLE)
        names += _TARGETS
    shape = (config.train.batch_size, config.data.length)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in names}
    if task == "labels":
        targets = len(config.objective.options["outputs"])
        batch["labels"] = jax.ShapeDtypeStruct((*shape, targets), jnp.float32)
    return batch


def required_bytes(message: str) -> int:
    """How many bytes the program needs, from the message of the compiler.

    Raises:
        ProtlmError: the failure is not one of memory.
    """
    amount = re.search(r"(?:Used |required for HLO temporaries \()([\d.]+)([KMGT])\b", message)
    size = re.search(r"\(size=(\d+)\)", message)  # of one array that is too large by itself
    if "RESOURCE_EXHAUSTED" not in message or not (amount or size):
        raise ProtlmError(f"the TPU compiler cannot compile this step: {message[:500]}")
    if amount:
        return int(float(amount[1]) * _UNITS[amount[2]])
    return int(size[1]) if size else 0


def suggest(config: RunConfig, parts: Assembly, state: int, available: int) -> str:
    """The change that costs the least speed, where a step does not fit.

    `state` and `available` are bytes of the state on one device, and of the device.
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
