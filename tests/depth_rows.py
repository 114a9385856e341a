"""Batches for depth measurements, written out by hand from the zoo's rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import zoo

from protlm_jax.evaluation.depth.batches import DepthBatch
from protlm_jax.evaluation.depth.metrics import measure
from protlm_jax.evaluation.depth.positions import PositionSet
from protlm_jax.evaluation.depth.sweep import Sweep
from protlm_jax.models.loaded import LoadedModel


def measure_batch(
    loaded: LoadedModel,
    batch: DepthBatch,
    stack: str,
    metrics: tuple[str, ...],
    positions: PositionSet = "asked",
    points: int = 0,
) -> Any:
    """What is measured of one batch: name -> Stat, and the sample of streams."""
    sweep: Any = Sweep(loaded, None, stack, positions)  # type: ignore[arg-type]
    return sweep.run(measure, sweep.shown(batch), metrics=metrics, points=points)


def asked(family: str, rows: list[list[int]]) -> DepthBatch:
    """Rows of packed proteins, every third residue of each asked; owners are all the members."""
    vocabulary = zoo.ZOO[family].vocabulary
    made = [zoo.row(family, members) for members in rows]
    batch = {name: np.concatenate([row[name] for row in made]) for name in made[0]}
    true, segments = batch["input_tokens"], batch["segment_ids"]
    hidden = (segments > 0) & (batch["positions"] % 3 == 1)
    first = np.cumsum([0, *(len(members) for members in rows[:-1])])[:, None]
    protein = np.where(segments > 0, segments - 1 + first, -1).astype(np.int32)
    shown = np.where(hidden, vocabulary.mask_id, true) if vocabulary.mask_id else true
    features = {**batch, "input_tokens": shown.astype(np.int32)}
    owners = [member for members in rows for member in members]
    return DepthBatch(features, true, hidden, segments > 0, protein, owners)
