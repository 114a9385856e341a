"""Where layers are edited, where effects are read, and sums over those positions by protein.

Letters: B rows, L tokens, P proteins of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

PositionSet = Literal["asked", "context", "all", "future"]

POSITION_SETS: dict[str, str] = {
    "asked": "layers are edited at every position, and effects are read at the asked residues",
    "context": "layers are edited at every position but the asked residues, where effects are read:"
    " what other positions' layers do for the answer",
    "all": "layers are edited, and effects read, at every residue",
    "future": "layers are edited before a cut in the middle of each protein, the first token left "
    "alone, and effects are read from the cut on (Csordás et al. 2025)",
}


@flax.struct.dataclass
class Stat:
    """A quantity at many positions, reduced to what each protein adds to it.

    Attributes:
        total: [*dims, P] float32, sum over the protein's positions.
        count: [*dims, P] float32, positions at which it is defined.
        peak: [*dims, P] float32, the largest value; None where a largest one says nothing.
        dims: names of the leading axes, without that of proteins.
    """

    total: jax.Array
    count: jax.Array
    peak: jax.Array | None = None
    dims: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())

    def named(self, *dims: str) -> Stat:
        return self.replace(dims=dims)  # type: ignore[attr-defined]


@flax.struct.dataclass
class Positions:
    """A position set of one batch.

    Attributes:
        target: [B, L] bool, where effects are read.
        source: [B, L] bool, where layers are edited.
        protein: [B, L] int32, which of the batch's proteins a token belongs to.
        proteins: P, how many there may be.
    """

    target: jax.Array
    source: jax.Array
    protein: jax.Array
    proteins: int = flax.struct.field(pytree_node=False)

    def edit(self, clean: jax.Array, edited: jax.Array) -> jax.Array:
        """The edited stream [B, L, D] at the source positions, the clean one elsewhere."""
        return jnp.where(self.source[..., None], edited, clean)

    def reduce(
        self, values: jax.Array, defined: jax.Array | None = None, peak: bool = False
    ) -> Stat:
        """Sums [..., B, L] over the target positions of each protein; padding never counts.

        Args:
            values: any number of leading axes; where they are not defined they may be anything.
            defined: positions that count, of the values' shape; None counts every target.
            peak: keep the largest value too, of values that are not negative.
        """
        counted = jnp.broadcast_to(self.target, values.shape)
        if defined is not None:
            counted &= jnp.broadcast_to(defined, values.shape)
        total = self._by_protein(jnp.sum, jnp.where(counted, values, 0.0))
        if defined is None:
            counted = self.target
        count = self._by_protein(jnp.sum, counted)
        largest = self._by_protein(jnp.max, jnp.where(counted, values, 0.0)) if peak else None
        return Stat(total, jnp.broadcast_to(count, total.shape), largest)

    def reduce_each(
        self, values: dict[str, jax.Array], peaks: tuple[str, ...] = ()
    ) -> dict[str, Stat]:
        """The same of several values [B, L] at once, of which some keep the largest."""
        all_ = self.reduce(jnp.stack([x.astype(jnp.float32) for x in values.values()]), peak=True)
        found = {}
        for index, name in enumerate(values):
            one = jax.tree.map(lambda x, i=index: x[i], all_)
            found[name] = one if name in peaks else one.replace(peak=None)
        return found

    def _by_protein(self, over: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
        """[..., B, L] to [..., P], zero where a protein has no token."""
        mine = self.protein[None] == jnp.arange(self.proteins)[:, None, None]  # [P, B, L]
        mine = mine.reshape(*[1] * (x.ndim - 2), *mine.shape)
        return over(jnp.where(mine, x[..., None, :, :].astype(jnp.float32), 0.0), axis=(-2, -1))


def position_set(
    name: PositionSet, asked: np.ndarray, residues: np.ndarray, protein: np.ndarray, proteins: int
) -> Positions:
    """The named set of one batch; see POSITION_SETS.

    Args:
        asked: [B, L] bool, residues that the model predicts; where it predicts them (a causal
            model: one position early).
        residues: [B, L] bool, tokens that are residues.
        protein: [B, L] int32, the protein of each token; negative where there is none.
        proteins: how many proteins the batch may hold.
    """
    real = protein >= 0
    everywhere = np.ones_like(real)
    source, target = {
        "asked": (everywhere, asked),
        "context": (real & ~asked, asked),
        "all": (everywhere, residues),
        "future": _future(protein, residues),
    }[name]
    return Positions(
        jnp.asarray(target & real),
        jnp.asarray(source),
        jnp.asarray(np.maximum(protein, 0)),
        proteins,
    )


def _future(protein: np.ndarray, residues: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens before the middle of their protein, but for its first, and residues from there on."""
    source, target = np.zeros_like(residues), np.zeros_like(residues)
    for owner in np.unique(protein[protein >= 0]):
        places = np.argwhere(protein == owner)
        cut = len(places) // 2
        source[tuple(places[1:cut].T)] = True
        target[tuple(places[cut:].T)] = True
    return source, target & residues
