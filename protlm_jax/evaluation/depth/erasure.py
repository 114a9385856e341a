"""Until which depth a residue is still needed: its stream replaced by a mean one (M13)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.evaluation.depth.answers import differences
from protlm_jax.evaluation.depth.batches import Asked, Proteins
from protlm_jax.evaluation.depth.parts import NOTHING, Part
from protlm_jax.evaluation.depth.positions import Positions, PositionSet, Stat
from protlm_jax.evaluation.depth.results import Quantity
from protlm_jax.evaluation.depth.streaming import arguments, over_batches
from protlm_jax.evaluation.depth.subject import observe
from protlm_jax.models.loaded import LoadedModel

RESIDUES = 4  # of each protein that are erased, one at a time


@functools.partial(jax.jit, static_argnames=("model", "stack", "depths"))
def erase(
    model: nn.Module,
    params: Any,
    features: dict[str, jax.Array],
    true: jax.Array,
    positions: Positions,
    amino_acids: jax.Array,
    means: jax.Array,
    erased: jax.Array,
    *,
    stack: str,
    depths: tuple[int, ...],
) -> dict[str, Stat]:
    """The answer after h_l(t) was replaced by the mean stream of that depth (Csordás et al. 2025).

    Args:
        means: [N + 1, D], means of the stream over the residues of all proteins.
        erased: [B, K] int32, in each row the positions t that are erased, one at a time; -1 for
            none.
        depths: l, out of 0 to N - 1.

    Returns:
        "erasure_<name>" (depth, erased), for every name of `differences`. In a protein whose
        erased position is -1 nothing differs: leave it out of means.

    Cost: of each depth l and erased position (N - l) / N forwards.
    """
    subject = observe(model, params, features, true, positions, amino_acids, stack)
    base = subject.answer(subject.streams[-1])

    def one(place: tuple[jax.Array, jax.Array]) -> dict[str, Stat]:
        depth, column = place
        here = jnp.arange(true.shape[1])[None] == erased[:, column, None]
        h = jnp.where(here[..., None], means[depth][None, None], subject.streams[depth])
        final, _ = subject.resume(h, depth, lambda carry, *_: carry, ())
        return differences(subject, base, subject.answer(final))

    number = erased.shape[1]
    at = jnp.repeat(jnp.asarray(depths), number)
    found = jax.lax.map(one, (at, jnp.tile(jnp.arange(number), len(depths))))
    found = jax.tree.map(lambda x: x.reshape(len(depths), number, *x.shape[1:]), found)
    return {f"erasure_{name}": s.named("at_depth", "erased") for name, s in found.items()}


def erasure(
    loaded: LoadedModel,
    proteins: Proteins,
    stack: str,
    depths: Sequence[int],
    positions: PositionSet = "asked",
    *,
    part: Part = NOTHING,
    progress: bool = False,
) -> dict[str, Quantity]:
    """Means over RESIDUES residues of each protein, evenly spaced: dims ("at_depth",).

    They are erased where the position set edits layers, those that are asked left out, and the
    answer is compared where it reads.
    """
    means = mean_streams(loaded, proteins, stack)

    def measure(batch: Asked) -> tuple[dict[str, Stat], None]:
        given = arguments(loaded, batch, positions)
        erased = spaced(batch.residues & ~batch.hidden & np.asarray(given[4].source), RESIDUES)
        with jax.default_matmul_precision("float32"):
            found = erase(
                *given,
                jnp.asarray(means, jnp.float32),
                jnp.asarray(erased),
                stack=stack,
                depths=tuple(depths),
            )
        # Rows are the slots of the proteins here.
        return {k: _over_erased(s, erased >= 0) for k, s in jax.device_get(found).items()}, None

    title = f"{stack}, erasure"
    return over_batches(loaded, proteins, measure, title, part=part, progress=progress)[0]


def mean_streams(loaded: LoadedModel, proteins: Proteins, stack: str) -> np.ndarray:
    """Mean stream at every depth over all residues, hidden ones too: [N + 1, D] float64."""
    total, count = np.zeros(()), 0
    for batch in proteins.all_batches(loaded):
        found = _sums(loaded.model, loaded.params, batch.features, batch.residues, stack=stack)
        total, count = total + np.asarray(found, np.float64), count + int(batch.residues.sum())
    return np.asarray(total / count)


def spaced(eligible: np.ndarray, number: int) -> np.ndarray:
    """So many of each row's eligible positions [B, L], evenly spaced: [B, number] int32.

    -1 where a row has too few.
    """
    chosen = np.full((len(eligible), number), -1, np.int32)
    for row, mine in enumerate(eligible):
        places = np.flatnonzero(mine)
        if len(places) >= number:
            middle = (np.arange(number) + 0.5) * len(places) / number
            chosen[row] = places[middle.astype(int)]
    return chosen


@functools.partial(jax.jit, static_argnames=("model", "stack"))
def _sums(model: nn.Module, params: Any, features: Any, residues: jax.Array, *, stack: str) -> Any:
    h, context = model.apply({"params": params}, features, method="embed")
    out, taps = model.apply({"params": params}, h, context, method="stack")
    streams = jnp.concatenate([taps[stack]["stream"], out[stack][None]])
    return jnp.sum(jnp.where(residues[None, ..., None], streams, 0.0), axis=(1, 2))


def _over_erased(stat: Stat, there: np.ndarray) -> Stat:
    """[depth, erased, P] to [depth, P]; only positions that were there count."""
    keep = there.T[None]
    peak = None
    if stat.peak is not None:
        peak = np.where(keep, stat.peak, 0).max(axis=1)
    total, count = (np.where(keep, x, 0).sum(axis=1) for x in (stat.total, stat.count))
    return Stat(total, count, peak, ("at_depth",))
