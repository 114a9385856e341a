"""The parts of a run from its config and the devices; nothing is read, allocated or compiled.

The loop trains with these parts; planning compiles the same ones for devices that are absent.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from protlm_jax import models, partitioning
from protlm_jax.config.run import RunConfig
from protlm_jax.models.adapters import Tuning
from protlm_jax.models.stacked import Stacked
from protlm_jax.objectives import Objective, build_objective
from protlm_jax.training.guard import SkipRules
from protlm_jax.training.hardware import memory_of
from protlm_jax.training.mesh_choice import choose_mesh
from protlm_jax.training.optimizers import averaged, build_optimizer
from protlm_jax.training.schedules import build_schedule
from protlm_jax.training.state import TrainState, abstract_state, compile_init, lay_out
from protlm_jax.training.step import OnMesh, TrainStep, compile_evaluation, compile_step
from protlm_jax.vocabularies import get_vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Assembly:
    """Assembly of a run; its programs are compiled when they are first called.

    `rows` is the sharding of a batch, `axes` are the logical axes of the parameters, `abstract` and
    `layout` shapes and shardings of the state, `rules` those of activations, and `chosen` is the
    reason for the mesh with `mesh=auto`, otherwise "".
    """

    mesh: Mesh
    rows: NamedSharding
    model: Stacked
    axes: Any
    objective: Objective
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    abstract: TrainState
    layout: TrainState
    step: TrainStep
    batch_size: int
    rules: partitioning.Rules
    chosen: str = ""

    @functools.cached_property
    def update(self) -> OnMesh:
        """The jitted train step: (state, batch) -> (state, metrics)."""
        return compile_step(self.step, self.mesh, self.layout, self.rows, self.rules)

    @functools.cached_property
    def evaluate(self) -> OnMesh:
        """The jitted evaluation: (params, batch, key, carry) -> sums and the next carry."""
        return compile_evaluation(self.step, self.mesh, self.layout, self.rows, self.rules)

    @functools.cached_property
    def empty_carry(self) -> Callable[[], Any]:
        """Makes an empty carry, laid out on the mesh."""
        make = functools.partial(self.model.initial_carry, self.batch_size)
        return jax.jit(make, out_shardings=self.layout.carry)

    @functools.cached_property
    def first_state(self) -> Callable[[jax.Array], TrainState]:
        """Makes a fresh state from a key."""
        step = self.step
        return compile_init(
            self.model, self.optimizer, self.layout, self.batch_size, step.rules, step.tuning
        )

    def scored(self, state: TrainState) -> Any:
        """What `evaluate` takes of a state."""
        params = averaged(state.opt_state, state.params)
        return params if self.step.tuning is None else (state.base, params)


def assemble(config: RunConfig, devices: list[jax.Device] | None = None) -> Assembly:
    """Builds the parts of a run for some devices, by default those of the process group.

    Raises a ProtlmError for a mesh that does not fit the devices, or rows that do not divide over
    it.
    """
    train = config.train
    model = models.build(config.model)
    vocabulary = get_vocabulary(config.model.vocabulary)
    objective = build_objective(config.objective.name, vocabulary, **config.objective.options)
    tuning = Tuning.of(config.tune, model, objective.head())
    base_axes, axes = ({}, models.logical_axes(model)) if tuning is None else tuning.axes
    schedule = build_schedule(config.schedule, train.steps)
    decay = config.tune.layer_decay
    optimizer = build_optimizer(config.optimizer, schedule, axes, decay)
    guard = SkipRules(config.model.dtype, train.skip_limit, train.skip_above)
    abstract = abstract_state(model, optimizer, train.batch_size, guard, tuning)
    mesh, chosen = _mesh(config, abstract, axes, devices, base_axes)
    rows = partitioning.batch_sharding(mesh, train.batch_size // train.accumulate)
    sizes = {"length": config.data.length, "embed": config.model.d_model}
    stream = config.mesh.stream
    if chosen and stream == "whole" and mesh.shape["tensor"] > 1:
        stream = "length" if config.data.length % mesh.shape["tensor"] == 0 else stream
        chosen += "; the stream between sublayers is split by length" * (stream == "length")
    rules = partitioning.step_rules(stream, sizes, mesh)
    layout = lay_out(abstract, axes, mesh, base_axes)
    step = TrainStep(model, objective, optimizer, axes, train.seed, train.accumulate, guard, tuning)
    return Assembly(
        *(mesh, rows, model, axes, objective, schedule, optimizer),
        *(abstract, layout, step, train.batch_size, rules, chosen),
    )


def _mesh(
    config: RunConfig,
    abstract: TrainState,
    axes: Any,
    devices: list[jax.Device] | None,
    base_axes: Any,
) -> tuple[Mesh, str]:
    """The mesh of the config, or the chosen one, and why it was chosen."""
    stated, train = config.mesh, config.train
    devices = devices if devices is not None else jax.devices()
    axis_names = (partitioning.SLICES, *partitioning.MESH_AXES)
    shape, why = {axis: getattr(stated, axis) for axis in axis_names}, ""
    if stated.auto:
        slices = partitioning.split_slices(devices, stated.slices)
        shape, why = choose_mesh(
            abstract,
            axes,
            rows=train.batch_size // train.accumulate,
            devices=len(slices[0]),
            memory=memory_of(devices[0]),
            slices=len(slices),
            base_axes=base_axes,
        )
    return partitioning.make_mesh(shape, devices), why
