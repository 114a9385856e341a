"""Batches for depth measurements, written out by hand from the zoo's rows."""

from __future__ import annotations

import numpy as np
import zoo

from protlm_jax.evaluation.depth.batches import Asked


def asked(family: str, rows: list[list[int]]) -> Asked:
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
    return Asked(features, true, hidden, segments > 0, protein, owners)
