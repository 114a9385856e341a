"""What heads read: batches of feature rows of whole proteins, all inputs (layers) side by side.

Letters: N inputs, T rows of a batch, D features, P protein slots of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from protlm_jax.evaluation.probe_data.base import Level

ROWS = 4096
"""Residues of a batch."""
POOLED = 256
"""Proteins of a batch if each is one row: many small steps, as there are few proteins."""


@dataclass(frozen=True)
class Batch:
    """Whole proteins, laid end to end.

    Attributes:
        features: [N, T, D] float32, not standardised; anything where there is no protein.
        protein: [T] int32, which of this batch's proteins a row belongs to, counted from 0 in
            order; -1 in gaps and padding. Rows of one protein lie side by side. Heads never look
            from one protein into another, gap or no gap.
        labels: target -> classes (integers, -1 where unknown) or numbers (float, nan where
            unknown): [T] if rows have labels of their own, [P] if proteins have. A target may be
            absent: nobody's is known.
        slots: P, more than any `protein`; the same for all batches of a source. Pooled features
            have one row for a protein: P = T and `protein` counts the rows.
    """

    features: np.ndarray
    protein: np.ndarray
    labels: Mapping[str, np.ndarray]
    slots: int


class FeatureSource(Protocol):
    """Labelled features that can be read again and again."""

    @property
    def num_inputs(self) -> int:
        """N."""

    @property
    def width(self) -> int:
        """D."""

    def batches(self, epoch_seed: int | None) -> Iterator[Batch]:
        """All proteins once, in batches of one shape.

        Args:
            epoch_seed: of the proteins' order; None keeps the given order, for prediction.
        """


@dataclass(frozen=True)
class InMemory:
    """Features that fit into memory, rows of all proteins end to end.

    Attributes:
        features: [N, rows, D] float32.
        offsets: [proteins + 1] integers: protein i has the rows offsets[i] to offsets[i + 1].
        labels: target -> [rows] if `level` is "residue", [proteins] if it is "protein".
        level: what carries a label.
        rows: T at most, but T is never less than the longest protein.
    """

    features: np.ndarray
    offsets: np.ndarray
    labels: Mapping[str, np.ndarray]
    level: Level
    rows: int = ROWS

    @property
    def num_inputs(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        return self.features.shape[2]

    def batches(self, epoch_seed: int | None) -> Iterator[Batch]:
        lengths = np.diff(self.offsets)
        order = np.arange(len(lengths))
        if epoch_seed is not None:
            np.random.default_rng(epoch_seed).shuffle(order)
        rows, slots = shape(lengths, self.rows)
        for members in packed(lengths, order, rows, slots):
            yield self._batch(members, rows, slots)

    def _batch(self, members: np.ndarray, rows: int, slots: int) -> Batch:
        index = np.concatenate([np.arange(*self.offsets[i : i + 2]) for i in members])
        features = no_features(self.num_inputs, rows, self.width)
        np.take(self.features, index, axis=1, out=features[:, : len(index)], mode="clip")
        protein = np.full(rows, -1, np.int32)
        protein[: len(index)] = np.repeat(np.arange(len(members)), np.diff(self.offsets)[members])
        chosen, size = (index, rows) if self.level == "residue" else (members, slots)
        labels = {}
        for target, values in self.labels.items():
            unknown = np.nan if np.issubdtype(values.dtype, np.floating) else -1
            labels[target] = np.full(size, unknown, values.dtype)
            labels[target][: len(chosen)] = values[chosen]
        return Batch(features, protein, labels, slots)


def no_features(inputs: int, rows: int, width: int) -> np.ndarray:
    """Zeros [N, T, D] float32 where the processor reads them as they are: JAX copies what does not
    begin at a multiple of 64 bytes, and that takes as long as a linear head does."""
    count = inputs * rows * width
    memory = np.zeros(count + 16, np.float32)
    begin = -memory.ctypes.data % 64 // 4
    return memory[begin : begin + count].reshape(inputs, rows, width)


def shape(lengths: np.ndarray, rows: int = ROWS) -> tuple[int, int]:
    """T and P of batches of proteins of these lengths, T at most `rows` if the longest fits."""
    total = int(lengths.sum())
    if lengths.max() == 1:  # pooled: batches of like size, the last one not a mere handful
        size = -(-total // -(-total // min(rows, POOLED)))
        return size, size
    size = max(min(rows, total), int(lengths.max()))
    return size, -(-3 * size * len(lengths) // (2 * total))


def packed(lengths: np.ndarray, order: np.ndarray, rows: int, slots: int) -> Iterator[np.ndarray]:
    """Members of each batch: proteins in the given order, as many as have rows and slots."""
    start, used = 0, 0
    for end, protein in enumerate(order):
        if end > start and (used + lengths[protein] > rows or end - start == slots):
            yield order[start:end]
            start, used = end, 0
        used += lengths[protein]
    if len(order):
        yield order[start:]
