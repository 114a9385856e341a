"""The train state: its arrays, how they are made, and their shardings on a mesh."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from protlm_jax import partitioning
from protlm_jax.models import logical_axes
from protlm_jax.models.adapters import Tuning
from protlm_jax.models.build import init_unboxed
from protlm_jax.models.stacked import Stacked
from protlm_jax.training.guard import SkipRules
from protlm_jax.training.optimizers import opt_state_axes


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and writes.

    Attributes:
        step: int32 scalar, how many updates were made.
        params: nested dict of float32 arrays.
        opt_state: the optimizer's.
        carry: a recurrent family's memory, rows first, zeros at the start; else an empty dict.
        guard: see `protlm_jax.training.guard`; an empty dict without rules, except in float16.
        base: frozen parameters, see `protlm_jax.models.adapters`; checkpoints do not hold them.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    carry: Any
    guard: Any
    base: Any = flax.struct.field(default_factory=dict)

    def stored(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {n: getattr(self, n) for n in ("step", "params", "opt_state", "carry", "guard")}


def make_state(
    model: Stacked,
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
    batch_size: int,
    rules: SkipRules | None = None,
    tuning: Tuning | None = None,
) -> TrainState:
    """A fresh state (traceable); `batch_size` is the number of rows of a carry."""
    base: Any = {}
    if tuning is None:
        params = init_unboxed(model, rng)
    else:
        base, params = tuning.split(tuning.init(rng), rng)
    carry = model.initial_carry(batch_size)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        carry=carry,
        guard=(rules or SkipRules(model.config.dtype)).initial(),
        base=base,
    )


def state_layout(
    model: Stacked,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    batch_size: int = 1,
    rules: SkipRules | None = None,
) -> tuple[TrainState, TrainState]:
    """The state's shapes and its shardings on the mesh; nothing is allocated."""
    abstract = abstract_state(model, optimizer, batch_size, rules)
    return abstract, lay_out(abstract, logical_axes(model), mesh)


def abstract_state(
    model: Stacked,
    optimizer: optax.GradientTransformation,
    batch_size: int = 1,
    rules: SkipRules | None = None,
    tuning: Tuning | None = None,
) -> TrainState:
    """The state's shapes."""
    make = functools.partial(
        make_state, model, optimizer, batch_size=batch_size, rules=rules, tuning=tuning
    )
    return jax.eval_shape(make, jax.random.key(0))


def lay_out(
    abstract: TrainState, axes: Any, mesh: Mesh | AbstractMesh, base_axes: Any = None
) -> TrainState:
    """Shardings of a state of these shapes, the optimizer's like those of its parameters."""
    opt_axes = opt_state_axes(abstract.opt_state, abstract.params, axes)
    alone: Any = NamedSharding(mesh, PartitionSpec())
    return TrainState(
        step=alone,
        params=partitioning.shardings(abstract.params, axes, mesh),
        opt_state=partitioning.shardings(abstract.opt_state, opt_axes, mesh),
        carry=partitioning.shardings(abstract.carry, carry_axes(abstract.carry), mesh),
        guard=jax.tree.map(lambda _: alone, abstract.guard),
        base=partitioning.shardings(abstract.base, base_axes or {}, mesh),
    )


def bytes_on_device(abstract: Any, layout: Any) -> int:
    """Bytes on one device of arrays with these shapes and shardings."""

    def of(leaf: Any, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(of, abstract, layout)))


def carry_axes(carry: Any) -> Any:
    """Logical axes of a carry: only its rows are split over a mesh."""
    return jax.tree.map(lambda leaf: ("batch",) + (None,) * (leaf.ndim - 1), carry)


def compile_init(
    model: Stacked,
    optimizer: optax.GradientTransformation,
    layout: TrainState,
    batch_size: int = 1,
    rules: SkipRules | None = None,
    tuning: Tuning | None = None,
) -> Callable[[jax.Array], TrainState]:
    """The jitted function from a key to a fresh state, laid out on the mesh.

    Traced outside `set_mesh`: constraints inside the model would act on initial values too.
    """
    make = functools.partial(
        make_state, model, optimizer, batch_size=batch_size, rules=rules, tuning=tuning
    )
    return jax.jit(make, out_shardings=layout)
