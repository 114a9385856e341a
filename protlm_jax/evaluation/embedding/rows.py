"""Proteins, or windows of them, laid into the rows of a batch, and taken out again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from protlm_jax.evaluation.embedding.plan import Shape, Window
from protlm_jax.evaluation.embedding.wanted import Wanted, cls_place, has_cls
from protlm_jax.models.loaded import LoadedModel

Arrays = dict[str, np.ndarray]


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


def of_piece(wanted: Wanted, found: Arrays, spot: Spot) -> Arrays:
    """What one piece has of a batch: "residues" [layers, kept, d_model], and sums, maxima and the
    classification token [layers, d_model]."""
    taken = {name: values[spot.row] for name, values in found.items() if name != "residues"}
    if "residues" not in found:
        return taken
    row = found["residues"][spot.row]
    own = row[:, spot.start : spot.stop]
    ways = {
        "residues": lambda: own,
        "mean": lambda: own.sum(axis=1, dtype=np.float64).astype(np.float32),
        "max": lambda: own.max(axis=1),
        "cls": lambda: row[:, spot.cls],
    }
    return {name: taken[name] if name in taken else ways[name]() for name in wanted.vectors}


class Joined:
    """The arrays of one protein, put together from its windows."""

    def __init__(self, wanted: Wanted, residues: int) -> None:
        self.wanted, self.residues = wanted, residues
        self.left = residues
        self.arrays: Arrays = {}

    def add(self, window: Window, taken: Arrays) -> None:
        """Takes the kept residues of one window."""
        kept = window.keep_stop - window.keep_start
        self.left -= kept
        for name, values in taken.items():
            if name == "residues":
                if name not in self.arrays:
                    shape = (values.shape[0], self.residues, values.shape[2])
                    self.arrays[name] = np.empty(shape, values.dtype)
                self.arrays[name][:, window.keep_start : window.keep_stop] = values
            elif name not in self.arrays:
                self.arrays[name] = values * kept if name == "cls" else values.copy()
            elif name == "max":
                self.arrays[name] = np.maximum(self.arrays[name], values)
            else:  # a sum; the cls tokens of windows are weighed by the residues they stand for
                self.arrays[name] = self.arrays[name] + values * (kept if name == "cls" else 1)

    def finish(self) -> Arrays:
        """The protein's arrays in their final shape and dtype."""
        dtype = self.wanted.numpy_dtype
        done: Arrays = {}
        for name in self.wanted.vectors:
            values = self.arrays[name]
            if name in ("mean", "cls"):
                values = values / np.float32(self.residues)
            with np.errstate(over="ignore"):  # told apart by who writes it
                values = values.astype(dtype, copy=False)
            done[name] = values[0] if len(self.wanted.layers) == 1 else values
        return done
