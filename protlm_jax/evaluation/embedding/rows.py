"""Proteins, or windows of them, laid into the rows of a batch: what stands where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from protlm_jax.evaluation.embedding.plan import Shape, Window
from protlm_jax.evaluation.embedding.wanted import cls_place, has_cls
from protlm_jax.models.loaded import LoadedModel


@dataclass(frozen=True)
class Spot:
    """Where a piece stands: its row, the tokens [start, stop) of the residues that are kept of it,
    and its classification token (0 where there is none)."""

    row: int
    start: int
    stop: int
    cls: int


def filled(
    loaded: LoadedModel, counts: list[int], pieces: list[tuple[str, Window]], shape: Shape
) -> tuple[dict[str, np.ndarray], list[Spot]]:
    """The features of a batch, as the model's first stack reads it, and where each piece stands.

    Each piece is a segment of its row, with positions of its own.

    Args:
        loaded: decides the feature names (encoder_* for an encoder-decoder).
        counts: how many pieces stand in each row.
        pieces: row by row; the window of a protein that is read.
        shape: of the batch.

    Returns:
        int32 [rows, length] each, and a spot for each piece.
    """
    vocabulary = loaded.vocabulary
    before = len(vocabulary.prefix_ids)
    tokens = np.full((shape.rows, shape.length), vocabulary.pad_id, np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    spots: list[Spot] = []
    rest = iter(pieces)
    for row, count in enumerate(counts):
        at = 0
        for segment in range(1, count + 1):
            sequence, window = next(rest)
            ids = vocabulary.encode(sequence[window.start : window.stop])
            here = slice(at, at + len(ids))
            tokens[row, here], segments[row, here] = ids, segment
            positions[row, here] = np.arange(len(ids))
            start = at + before + window.keep_start - window.start
            cls = at + cls_place(vocabulary, len(ids)) if has_cls(vocabulary) else 0
            spots.append(Spot(row, start, start + window.keep_stop - window.keep_start, cls))
            at += len(ids)
    side = "encoder_" if loaded.config.num_decoder_layers else ""
    found = {"input_tokens": tokens, "segment_ids": segments, "positions": positions}
    return {f"{side}{name}": array for name, array in found.items()}, spots
