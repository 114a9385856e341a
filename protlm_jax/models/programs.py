"""Which layers of a stack run, in which order, how strongly: traced arrays, not code."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class LayerProgram:
    """What a stack runs, step by step.

    Attributes:
        order: [steps] int32, the layer that runs at each step.
        gate: [steps, sublayers] float32, multiplies what each sublayer adds (0 ablates it; norms
            that stand after the addition still act).
        keep: [steps] bool; False makes the step the identity, the block's own norms included.
    """

    order: jax.Array
    gate: jax.Array
    keep: jax.Array

    @classmethod
    def full(cls, num_layers: int, num_sublayers: int = 2) -> LayerProgram:
        """Every layer once, in order: what training runs."""
        return cls(
            order=jnp.arange(num_layers, dtype=jnp.int32),
            gate=jnp.ones((num_layers, num_sublayers), jnp.float32),
            keep=jnp.ones((num_layers,), bool),
        )

    def skip(self, *steps: int) -> LayerProgram:
        """These steps become the identity."""
        return dataclasses.replace(self, keep=self.keep.at[jnp.asarray(steps)].set(False))

    def ablate(self, step: int, sublayer: int) -> LayerProgram:
        """One sublayer of one step adds nothing."""
        return dataclasses.replace(self, gate=self.gate.at[step, sublayer].set(0.0))

    def swap(self, first: int, second: int) -> LayerProgram:
        """Two steps exchange the layers they run."""
        order = self.order.at[first].set(self.order[second]).at[second].set(self.order[first])
        return dataclasses.replace(self, order=order)

    def exit(self, depth: int) -> LayerProgram:
        """Only the first `depth` steps run."""
        return dataclasses.replace(self, keep=self.keep & (jnp.arange(self.steps) < depth))

    def repeat(self, step: int, times: int = 2) -> LayerProgram:
        """One step runs so many times in a row; the program grows by `times` - 1 steps."""
        rows = np.repeat(np.arange(self.steps), np.where(np.arange(self.steps) == step, times, 1))
        return jax.tree.map(lambda field: field[rows], self)

    def reverse(self, start: int, stop: int) -> LayerProgram:
        """Steps `start` to `stop` - 1 run their layers in the opposite order."""
        return dataclasses.replace(
            self, order=self.order.at[start:stop].set(self.order[start:stop][::-1])
        )

    def pad(self, steps: int) -> LayerProgram:
        """The same program in so many steps: those added are the identity."""
        rows = jnp.minimum(jnp.arange(steps), self.steps - 1)
        padded = jax.tree.map(lambda field: field[rows], self)
        return dataclasses.replace(padded, keep=padded.keep & (jnp.arange(steps) < self.steps))

    @staticmethod
    def stack(programs: Sequence[LayerProgram]) -> LayerProgram:
        """Programs as one, every field [programs, steps, ...]: what one compiled map runs."""
        steps = max(program.steps for program in programs)
        padded = [program.pad(steps) for program in programs]
        return jax.tree.map(lambda *fields: jnp.stack(fields), *padded)

    @property
    def steps(self) -> int:
        return self.keep.shape[0]

    @property
    def first_change(self) -> jax.Array:
        """The first step that is not that of the full program; `steps` where none is."""
        plain = self.keep & (self.order == jnp.arange(self.steps)) & (self.gate == 1).all(axis=-1)
        return jnp.argmin(jnp.append(plain, False))
