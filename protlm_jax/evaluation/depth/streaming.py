"""Batch after batch through one measurement, with sums for each protein and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from protlm_jax.evaluation.depth.batches import ROWS, Asked, Proteins
from protlm_jax.evaluation.depth.parts import NOTHING, Part
from protlm_jax.evaluation.depth.positions import PositionSet, Stat
from protlm_jax.evaluation.depth.results import Quantity, Totals
from protlm_jax.evaluation.finite import first_not_finite, not_finite
from protlm_jax.models.loaded import LoadedModel

# A batch -> its quantities, and points [depths, points, width] that are kept as they are, or None.
Measure = Callable[[Asked], tuple[dict[str, Stat], np.ndarray | None]]


def arguments(
    loaded: LoadedModel, batch: Asked, positions: PositionSet, slots: int = ROWS
) -> tuple[Any, ...]:
    """What compiled measurements take: model, parameters, features, tokens, positions, ids."""
    where = batch.positions(positions, loaded.model.readouts[0], slots)
    amino_acids = jnp.asarray(loaded.vocabulary.amino_acid_ids)
    return loaded.model, loaded.params, batch.features, batch.true, where, amino_acids


def over_batches(
    loaded: LoadedModel,
    proteins: Proteins,
    measure: Measure,
    title: str,
    *,
    part: Part = NOTHING,
    progress: bool = False,
) -> tuple[dict[str, Quantity], list[np.ndarray]]:
    """Sums over all batches, those that `part` holds already taken over.

    Args:
        title: of the progress bar, which shows the time that is left.

    Returns:
        Quantities by name, and the points in some arrays.

    Raises:
        NotFinite: the model gives NaN or infinity for a protein of a batch.
    """
    from tqdm import tqdm

    done, kept = part.load()
    points = [kept["points"].values] if "points" in kept else []
    totals = Totals(len(proteins.names), kept)
    left = range(done, proteins.batches)
    quiet = None if progress else True
    for index in tqdm(left, title, proteins.batches, initial=done, disable=quiet):
        batch = proteins.batch(loaded, index)
        found, some = measure(batch)
        finite = some is None or bool(np.isfinite(some).all())
        require_finite(loaded, proteins, batch, finite, found)
        totals.add(found, batch.owners)
        if some is not None and some.size:
            points.append(some)
        if part.due:
            results = totals.dataset()
            if points:
                axes = ("points_depth", "point", "width")
                results["points"] = (axes, np.concatenate(points, axis=1))
            part.save(index + 1, results)
    return totals.quantities, points


def require_finite(
    loaded: LoadedModel,
    proteins: Proteins,
    batch: Asked,
    finite: bool,
    found: Mapping[str, Stat] = MappingProxyType({}),
) -> None:
    """Raises for the first protein of a batch whose measurements are not finite.

    Args:
        finite: whether what is not known by protein is.
        found: what is.

    Raises:
        NotFinite: one has such.
    """
    count = len(batch.owners)
    slots: Any = np.zeros(count, bool)
    for stat in found.values():
        wrong = ~np.isfinite(np.asarray(stat.total)[..., :count])
        slots = slots | wrong.reshape(-1, count).any(axis=0)
    if not finite:
        slots = slots | ~slots.any()
    if slots.any():
        bad = [proteins.hidden[batch.owners[slot]] for slot in np.flatnonzero(slots).tolist()]
        first = next((p for p in bad if first_not_finite(loaded, p.sequence)), bad[0])
        raise not_finite(loaded, first.sequence, first.name, "what is measured")
