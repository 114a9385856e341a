"""Dynamic loss scaling for float16 (Micikevicius et al. 2018), for GPUs without bfloat16.

Gradients that pass through float16 vanish below 6e-8 and overflow above 65,504. So the loss is
multiplied by a scale before they are taken, and they are divided by it afterwards, in float32. A
step whose loss or gradients are not finite changes no parameter and halves the scale; a long series
of finite steps doubles it. flax's DynamicScale would adapt it at each call of the gradient; here
that is once per update, which may be several calls.

For float32 and bfloat16 there is no scale: the state is an empty dict and costs nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

INITIAL = 2.0**15
LEAST = 1.0  # what is not finite without any scale is no matter of scaling, and stops the run
MOST = 2.0**24
GROWTH_INTERVAL = 2000  # finite steps after which the scale is doubled

State = dict[str, jax.Array]


def initial(dtype: str) -> State:
    """The scale's state for a compute dtype.

    Returns:
        {} unless the dtype is "float16"; else "scale" (float32), "finite_steps" since it last
        changed and "skipped" steps in all (int32), scalars.
    """
    if dtype != "float16":
        return {}
    zero = jnp.zeros((), jnp.int32)
    return {"scale": jnp.float32(INITIAL), "finite_steps": zero, "skipped": zero}


@dataclasses.dataclass(frozen=True)
class Guard:
    """What a step does about numbers that are not finite; nothing where there is no scale.

    Attributes:
        state: the scale's state before the step.
        finite: bool scalar, whether loss and gradients are.
    """

    state: State
    finite: jax.Array

    @classmethod
    def of(cls, state: State, results: Any) -> Guard:
        """Looks at every number of a tree."""
        finite = jnp.bool_(True)
        if state:
            finite = jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(results)]))
        return cls(state, finite)

    @property
    def skipped(self) -> jax.Array:
        """Whether the step is to change nothing: not finite, and a smaller scale may help."""
        return ~self.finite & (self.state["scale"] > LEAST)

    def zeroed(self, tree: Any) -> Any:
        """A tree of gradients or updates, zero if the step is skipped."""
        return self.kept(jax.tree.map(jnp.zeros_like, tree), tree) if self.state else tree

    def kept(self, old: Any, new: Any) -> Any:
        """The old tree if the step is skipped, else the new one."""
        if not self.state:
            return new
        return jax.tree.map(lambda a, b: jnp.where(self.skipped, a, b), old, new)

    def after(self) -> State:
        """The scale's state after the step."""
        if not self.state:
            return self.state
        scale, steps = self.state["scale"], self.state["finite_steps"] + 1
        grows = steps >= GROWTH_INTERVAL
        grown = jnp.where(grows, jnp.minimum(scale * 2.0, MOST), scale)
        return {
            "scale": jnp.where(self.finite, grown, jnp.maximum(scale * 0.5, LEAST)),
            "finite_steps": jnp.where(self.finite & ~grows, steps, 0),
            "skipped": self.state["skipped"] + self.skipped,
        }

    def metrics(self) -> dict[str, jax.Array]:
        """For the log: the scale, whether this step was skipped, and how many were in all."""
        if not self.state:
            return {}
        return {
            "loss_scale/scale": self.state["scale"],
            "loss_scale/skipped": self.skipped,
            "loss_scale/skipped_in_all": self.after()["skipped"],
        }
