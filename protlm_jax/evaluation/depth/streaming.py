"""Batch after batch through one measurement, with sums for each protein and a progress bar."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from protlm_jax.evaluation.depth.batches import Asked, Proteins
from protlm_jax.evaluation.depth.partial import NOTHING, Partial
from protlm_jax.evaluation.depth.positions import Stat
from protlm_jax.evaluation.depth.results import Quantity, Totals
from protlm_jax.models.loaded import LoadedModel

# A batch -> its quantities, and points [depths, points, width] that are kept as they are, or None.
Measure = Callable[[Asked], tuple[dict[str, Stat], np.ndarray | None]]


def over_batches(
    loaded: LoadedModel,
    proteins: Proteins,
    measure: Measure,
    title: str,
    *,
    keep: Partial = NOTHING,
    progress: bool = False,
) -> tuple[dict[str, Quantity], list[np.ndarray]]:
    """Sums over all batches, those that `keep` holds already taken over.

    Args:
        title: of the progress bar, which tells the time that is left.

    Returns:
        Quantities by name, and the points of each batch.
    """
    from tqdm import tqdm

    totals = Totals(len(proteins.names))
    done, kept = keep.load()
    totals.restore(kept)
    count = sum(name.startswith("points/") for name in kept)
    points = [kept[f"points/{i}"] for i in range(count)]
    quiet = None if progress else True
    left = range(done, proteins.batches)
    for index in tqdm(left, title, proteins.batches, initial=done, disable=quiet):
        batch = proteins.batch(loaded, index)
        found, some = measure(batch)
        totals.add(found, list(batch.owners))
        if some is not None:
            points.append(some)
        if keep.due:
            sampled = {f"points/{i}": array for i, array in enumerate(points)}
            keep.save(index + 1, totals.arrays() | sampled)
    return totals.quantities, points
