"""Proteins and batches for depth measurements, and functions run on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import zoo

from protlm_jax.evaluation.depth.batches import DepthBatch
from protlm_jax.evaluation.depth.metrics import measure
from protlm_jax.evaluation.depth.positions import PositionSet
from protlm_jax.evaluation.depth.sweep import Sweep
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS


def proteins(number: int, length: int = 21, seed: int = 0) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    return {f"p{i}": "".join(rng.choice(list(AMINO_ACIDS), length)) for i in range(number)}


def run(
    loaded: LoadedModel, batch: DepthBatch, stack: str, function: Any, *arrays: Any,
    positions: PositionSet = "asked", **fixed: Any,
) -> Any:  # fmt: skip
    """A function of a subject on one batch."""
    sweep: Any = Sweep(loaded, None, stack, positions)  # type: ignore[arg-type]
    return sweep.run(function, sweep.shown(batch), *arrays, **fixed)


def measure_batch(
    loaded: LoadedModel, batch: DepthBatch, stack: str, metrics: tuple[str, ...],
    positions: PositionSet = "asked",
) -> dict[str, Any]:  # fmt: skip
    """What is measured of one batch: name -> Stat, and the sample of streams."""
    found, sample = run(
        loaded, batch, stack, measure, positions=positions, metrics=metrics, points=16
    )
    return {**found, **sample}


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
