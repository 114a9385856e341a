"""What training changes from step to step, how it is made, and how it is laid on a mesh."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from protlm_jax import partitioning
from protlm_jax.models import abstract_params, logical_axes
from protlm_jax.models.build import init_unboxed
from protlm_jax.training.optimizers import opt_state_axes


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and writes.

    Attributes:
        step: int32 scalar, how many updates were made.
        params: nested dict of float32 arrays.
        opt_state: the optimizer's.
        carry: state of recurrent families; an empty dict elsewhere.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    carry: Any


def make_state(
    model: nn.Module, optimizer: optax.GradientTransformation, rng: jax.Array
) -> TrainState:
    """A fresh state (traceable)."""
    params = init_unboxed(model, rng)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), {})


def state_layout(
    model: nn.Module, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """The state's shapes and its shardings on the mesh; nothing is allocated."""
    abstract = jax.eval_shape(functools.partial(make_state, model, optimizer), jax.random.key(0))
    axes = logical_axes(model)
    opt_axes = opt_state_axes(abstract.opt_state, abstract_params(model), axes)
    layout = TrainState(
        step=partitioning.shardings(abstract.step, (), mesh),
        params=partitioning.shardings(abstract.params, axes, mesh),
        opt_state=partitioning.shardings(abstract.opt_state, opt_axes, mesh),
        carry={},
    )
    return abstract, layout


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    layout: TrainState,
    seed: int,
) -> TrainState:
    """A fresh state, each array made where it will live.

    Traced outside `set_mesh`: constraints inside the model would act on initial values too.
    """
    make = jax.jit(functools.partial(make_state, model, optimizer), out_shardings=layout)
    return make(jax.random.key(seed))
