"""Which updates are not made: those that overflowed in float16, and those that a run leaves out.

Float16 (Micikevicius et al. 2018), for GPUs without bfloat16: gradients that pass through it vanish
below 6e-8 and overflow above 65,504. So the loss is multiplied by a scale before they are taken,
and they are divided by it afterwards, in float32. A step whose loss or gradients are not finite
changes no parameter and halves the scale; a long series of finite steps doubles it. flax's
DynamicScale would adapt it at each call of the gradient; here that is once per update, which may be
several calls.

In any dtype, a run may be told to leave out a few updates whose loss or gradients are not finite,
or whose gradient norm is far above the usual (a bad batch, a flipped bit), instead of stopping.

For float32 and bfloat16 without such rules the state is an empty dict and costs nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

INITIAL = 2.0**15
LEAST = 1.0  # what is not finite without any scale is no matter of scaling, and stops the run
MOST = 2.0**24
GROWTH_INTERVAL = 2000  # finite steps after which the scale is doubled
HISTORY = 100  # gradient norms that say what is usual

State = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Rules:
    """When an update is left out.

    Attributes:
        dtype: of the model's computation; "float16" has a scale.
        limit: how many updates in a row may be left out by the run's own rules; 0 for none.
        above: a gradient norm of more than this times the median of the last HISTORY ones counts
            as bad, too; 0 for no such rule. It begins when there are so many.
    """

    dtype: str = "float32"
    limit: int = 0
    above: float = 0.0

    def initial(self) -> State:
        """The state before the first step.

        Returns:
            {} without any rule; else "skipped" (int32, updates left out in all) and, for float16,
            "scale" (float32) and "finite_steps" since it last changed (int32); by the run's own
            rules "in_a_row" (int32) and "norms" [HISTORY] float32, nan where there is none yet.
        """
        zero = jnp.zeros((), jnp.int32)
        state: State = {}
        if self.dtype == "float16":
            state |= {"scale": jnp.float32(INITIAL), "finite_steps": zero}
        if self.limit:
            state |= {"in_a_row": zero}
        if self.limit and self.above:
            state |= {"norms": jnp.full(HISTORY, jnp.nan, jnp.float32)}
        return state | {"skipped": zero} if state else {}


@dataclasses.dataclass(frozen=True)
class Guard:
    """What a step does about bad numbers; nothing where there is no rule.

    Attributes:
        rules: of the run.
        state: before the step.
        finite: bool scalar, whether loss and gradients are.
        norm: of the gradients, float32 scalar; 0 where nobody asks.
    """

    rules: Rules
    state: State
    finite: jax.Array
    norm: jax.Array

    @classmethod
    def of(cls, rules: Rules, state: State, loss: jax.Array, grads: Any) -> Guard:
        """Looks at the loss and at every gradient."""
        finite, norm = jnp.bool_(True), jnp.float32(0.0)
        if state:
            leaves = jax.tree.leaves((loss, grads))
            finite = jnp.all(jnp.stack([jnp.isfinite(x).all() for x in leaves]))
        if "norms" in state:
            norm = optax.tree.norm(grads)
        return cls(rules, state, finite, norm)

    @property
    def skipped(self) -> jax.Array:
        """Whether the step is to change nothing."""
        left_out = jnp.bool_(False)
        if "scale" in self.state:  # a smaller one may help
            left_out |= ~self.finite & (self.state["scale"] > LEAST)
        if "in_a_row" in self.state:
            left_out |= ~self.finite
        if "norms" in self.state:
            # nan, as long as the history is not full, is above nothing.
            left_out |= self.norm > self.rules.above * jnp.median(self.state["norms"])
        return left_out

    def zeroed(self, tree: Any) -> Any:
        """A tree of gradients or updates, zero if the step is skipped."""
        return self.kept(jax.tree.map(jnp.zeros_like, tree), tree) if self.state else tree

    def kept(self, old: Any, new: Any) -> Any:
        """The old tree if the step is skipped, else the new one."""
        if not self.state:
            return new
        return jax.tree.map(lambda a, b: jnp.where(self.skipped, a, b), old, new)

    def after(self) -> State:
        """The state after the step."""
        if not self.state:
            return self.state
        after = {"skipped": self.state["skipped"] + self.skipped}
        if "scale" in self.state:
            scale, steps = self.state["scale"], self.state["finite_steps"] + 1
            grows = steps >= GROWTH_INTERVAL
            grown = jnp.where(grows, jnp.minimum(scale * 2.0, MOST), scale)
            after["scale"] = jnp.where(self.finite, grown, jnp.maximum(scale * 0.5, LEAST))
            after["finite_steps"] = jnp.where(self.finite & ~grows, steps, 0)
        if "in_a_row" in self.state:
            after["in_a_row"] = jnp.where(self.skipped, self.state["in_a_row"] + 1, 0)
        if "norms" in self.state:
            # Spikes count, too: a level that has changed for good becomes the usual one.
            added = jnp.append(self.state["norms"][1:], self.norm)
            after["norms"] = jnp.where(self.finite, added, self.state["norms"])
        return after

    def metrics(self) -> dict[str, jax.Array]:
        """For the log: whether this step was skipped, how many were, and what they go by."""
        if not self.state:
            return {}
        after = self.after()
        found = {"skipped/now": self.skipped, "skipped/in_all": after["skipped"]}
        if "in_a_row" in self.state:
            found["skipped/in_a_row"] = after["in_a_row"]
        if "norms" in self.state:
            found["skipped/gradient_norm"] = self.norm
        if "scale" in self.state:
            found["loss_scale"] = self.state["scale"]
        return found
