"""Where layers are edited, where effects are read, and sums over those positions by protein.

Letters: B rows, L tokens, K places of a row that are read, P proteins of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

PositionSet = Literal["asked", "context", "visible", "all", "future"]

POSITION_SETS: dict[str, str] = {
    "asked": "layers are edited at every position, and effects are read at the asked residues",
    "context": "layers are edited at every position but the asked residues, where effects are read:"
    " what other positions' layers do for the answer",
    "visible": "layers are edited at every position, and effects are read at the residues that are "
    "not asked",
    "all": "layers are edited at every position, and effects are read at every residue",
    "future": "layers are edited before a cut in the middle of each protein, the first token left "
    "alone, and effects are read from the cut on (Csordás et al. 2025)",
}
SPARSE = ("asked", "context")  # sets that read a small part of each row


@flax.struct.dataclass
class Stat:
    """A quantity at many positions, reduced to what each protein adds to it: [*dims, P] float32."""

    total: jax.Array  # sum over the protein's positions
    count: jax.Array  # positions at which it is defined
    peak: jax.Array | None = None  # the largest value, where that has a meaning
    dims: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())

    def named(self, *dims: str) -> Stat:
        return self.replace(dims=dims)  # type: ignore[attr-defined]


@flax.struct.dataclass
class Positions:
    """A position set of one batch."""

    # [B, K] int32, the positions of each row at which anything is read, in order: what is not read
    # need not be computed. None reads at all of them, K = L.
    places: jax.Array | None
    target: jax.Array  # [B, K] bool, which of those places count
    source: jax.Array  # [B, L] bool, where layers are edited
    protein: jax.Array  # [B, K] int32, which of the batch's proteins a place belongs to
    proteins: int = flax.struct.field(pytree_node=False)  # P, how many there may be

    def edit(self, clean: jax.Array, edited: jax.Array) -> jax.Array:
        """The edited stream [B, L, D] at the source positions, the clean one elsewhere."""
        return jnp.where(self.source[..., None], edited, clean)

    def at(self, x: jax.Array) -> jax.Array:
        """What is read of [..., B, L, D]: [..., B, K, D]."""
        if self.places is None:
            return x
        places = self.places.reshape(*[1] * (x.ndim - 3), *self.places.shape, 1)
        return jnp.take_along_axis(x, places, axis=-2)

    @property
    def read(self) -> np.ndarray:
        """[B, L] bool on the host, the positions that count."""
        target = np.asarray(self.target)
        if self.places is None:
            return target
        rows, columns = np.nonzero(target)
        found = np.zeros(self.source.shape, bool)
        found[rows, np.asarray(self.places)[rows, columns]] = True
        return found

    def reduce(
        self, values: jax.Array, defined: jax.Array | None = None, peak: bool = False
    ) -> Stat:
        """Sums values [..., B, K] over the target places of each protein, where `defined`.

        `peak` keeps the largest value too, of values that are not negative.
        """
        counted = jnp.broadcast_to(self.target, values.shape)
        if defined is not None:
            counted &= jnp.broadcast_to(defined, values.shape)
        kept = jnp.where(counted, values, 0.0)
        total = self._by_protein(jnp.sum, kept)
        count = self._by_protein(jnp.sum, self.target if defined is None else counted)
        largest = self._by_protein(jnp.max, kept) if peak else None
        return Stat(total, jnp.broadcast_to(count, total.shape), largest)

    def _by_protein(self, over: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
        """[..., B, K] to [..., P], zero where a protein has no token."""
        mine = self.protein[None] == jnp.arange(self.proteins)[:, None, None]  # [P, B, K]
        mine = mine.reshape(*[1] * (x.ndim - 2), *mine.shape)
        return over(jnp.where(mine, x[..., None, :, :].astype(jnp.float32), 0.0), axis=(-2, -1))


def position_set(
    name: PositionSet,
    asked: np.ndarray,
    residues: np.ndarray,
    protein: np.ndarray,
    proteins: int,
    most: int | None = None,
) -> Positions:
    """The named set of one batch; see POSITION_SETS.

    Args:
        asked: [B, L] bool, where the model predicts residues (a causal model: one position early).
        residues: [B, L] bool, tokens that are residues.
        protein: [B, L] int32, the protein of each token; negative where there is none.
        proteins: how many proteins the batch may hold.
        most: how many residues of a row are asked at most, the same for batches that are to share
            a compiled program; None counts them.

    Raises:
        ValueError: more are asked than `most`.
    """
    real = protein >= 0
    everywhere = np.ones_like(real)
    source, target = {
        "asked": (everywhere, asked),
        "context": (real & ~asked, asked),
        "visible": (everywhere, residues & ~asked),
        "all": (everywhere, residues),
        "future": _future(protein, residues),
    }[name]
    target = target & real
    owner, edited = np.maximum(protein, 0), jnp.asarray(source)
    count = int(target.sum(axis=1).max())
    most = max(1, count if most is None else most)
    if name not in SPARSE or most >= real.shape[1]:
        return Positions(None, jnp.asarray(target), edited, jnp.asarray(owner), proteins)
    if count > most:
        raise ValueError(f"{count} residues of a row are asked, and places for {most}")
    places = np.argsort(~target, axis=1, kind="stable")[:, :most]  # targets first, in order
    target, owner = (jnp.asarray(np.take_along_axis(x, places, axis=1)) for x in (target, owner))
    return Positions(jnp.asarray(places, jnp.int32), target, edited, owner, proteins)


def _future(protein: np.ndarray, residues: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens before the middle of their protein, but for its first, and residues from there on."""
    source, target = np.zeros_like(residues), np.zeros_like(residues)
    for owner in np.unique(protein[protein >= 0]):
        places = np.argwhere(protein == owner)
        cut = len(places) // 2
        source[tuple(places[1:cut].T)] = True
        target[tuple(places[cut:].T)] = True
    return source, target & residues
