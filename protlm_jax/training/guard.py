"""Skipped updates: loss scaling in float16, and a run's own limits on loss and gradients.

Float16 gradients vanish below 6e-8 and overflow above 65,504, so the loss is multiplied by a scale
and gradients are divided by it in float32 (Micikevicius et al. 2018): a step that is not finite
halves it, many finite steps double it. flax's DynamicScale adapts it at each call of the gradient,
of which an update may have several.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

INITIAL = 2.0**15
LEAST = 1.0  # non-finite at scale 1 is not an overflow; stop
MOST = 2.0**24
GROWTH_INTERVAL = 2000  # finite steps after which the scale is doubled
HISTORY = 100  # gradient norms of the median

State = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class SkipRules:
    """When an update is skipped.

    Attributes:
        dtype: of the model's computation; "float16" has a loss scale.
        limit: how many non-finite updates in a row are skipped, in any dtype; 0: none.
        above: with a limit, also skip gradient norms above this times the median of the last 100.
    """

    dtype: str = "float32"
    limit: int = 0
    above: float = 0.0

    def initial(self) -> State:
        """The state before the first step; {} without any rule.

        "skipped" (int32, in all); in float16 "scale" (float32) and "finite_steps" since it last
        changed (int32); with a limit "in_a_row" (int32) and "norms" ([HISTORY] float32, nan at the
        start).
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
    """Decides whether one step is skipped, from the `state` before it.

    `finite` (bool scalar) is about loss and gradients; `norm` (float32 scalar) of the gradients is
    0 where no rule needs it.
    """

    rules: SkipRules
    state: State
    finite: jax.Array
    norm: jax.Array

    @classmethod
    def of(cls, rules: SkipRules, state: State, loss: jax.Array, grads: Any) -> Guard:
        finite, norm = jnp.bool_(True), jnp.float32(0.0)
        if state:
            leaves = jax.tree.leaves((loss, grads))
            finite = jnp.all(jnp.stack([jnp.isfinite(x).all() for x in leaves]))
        if "norms" in state:
            norm = optax.tree.norm(grads)
        return cls(rules, state, finite, norm)

    @property
    def skipped(self) -> jax.Array:
        """Whether the step changes nothing: bool scalar."""
        skip = jnp.bool_(False)
        if "scale" in self.state:  # a smaller one may help
            skip |= ~self.finite & (self.state["scale"] > LEAST)
        if "in_a_row" in self.state:
            skip |= ~self.finite
        if "norms" in self.state:
            # The median is nan until the history is full; nothing is above nan.
            skip |= self.norm > self.rules.above * jnp.median(self.state["norms"])
        return skip

    def zeroed(self, tree: Any) -> Any:
        """Gradients or updates, zero if the step is skipped."""
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
            # Spikes are recorded, too: the median follows a lasting change.
            added = jnp.append(self.state["norms"][1:], self.norm)
            after["norms"] = jnp.where(self.finite, added, self.state["norms"])
        return after

    def metrics(self) -> dict[str, jax.Array]:
        """For the log."""
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
