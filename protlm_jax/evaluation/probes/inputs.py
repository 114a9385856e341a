"""What a head reads: the model's embeddings, or a control that any gain must beat.

Residues of all proteins lie in one array [residues, features]; `Proteins` knows whose they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from protlm_jax import models
from protlm_jax.evaluation.datasets import StructuredProtein
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS

CONTROLS = ("random", "one_hot", "blosum62")
_CLIP = 10.0  # standard deviations; X is so rare that its one-hot column would reach 100

# Rows and columns in the order of AMINO_ACIDS, and X last (Henikoff and Henikoff 1992, with the
# row of X that BLAST uses).
_BLOSUM62 = """
 4  0 -2 -1 -2  0 -2 -1 -1 -1 -1 -2 -1 -1 -1  1  0  0 -3 -2
 0  9 -3 -4 -2 -3 -3 -1 -3 -1 -1 -3 -3 -3 -3 -1 -1 -1 -2 -2
-2 -3  6  2 -3 -1 -1 -3 -1 -4 -3  1 -1  0 -2  0 -1 -3 -4 -3
-1 -4  2  5 -3 -2  0 -3  1 -3 -2  0 -1  2  0  0 -1 -2 -3 -2
-2 -2 -3 -3  6 -3 -1  0 -3  0  0 -3 -4 -3 -3 -2 -2 -1  1  3
 0 -3 -1 -2 -3  6 -2 -4 -2 -4 -3  0 -2 -2 -2  0 -2 -3 -2 -3
-2 -3 -1  0 -1 -2  8 -3 -1 -3 -2  1 -2  0  0 -1 -2 -3 -2  2
-1 -1 -3 -3  0 -4 -3  4 -3  2  1 -3 -3 -3 -3 -2 -1  3 -3 -1
-1 -3 -1  1 -3 -2 -1 -3  5 -2 -1  0 -1  1  2  0 -1 -2 -3 -2
-1 -1 -4 -3  0 -4 -3  2 -2  4  2 -3 -3 -2 -2 -2 -1  1 -2 -1
-1 -1 -3 -2  0 -3 -2  1 -1  2  5 -2 -2  0 -1 -1 -1  1 -1 -1
-2 -3  1  0 -3  0  1 -3  0 -3 -2  6 -2  0  0  1  0 -3 -4 -2
-1 -3 -1 -1 -4 -2 -2 -3 -1 -3 -2 -2  7 -1 -2 -1 -1 -2 -4 -3
-1 -3  0  2 -3 -2  0 -3  1 -2  0  0 -1  5  1  0 -1 -2 -2 -1
-1 -3 -2  0 -3 -2  0 -3  2 -2 -1  0 -2  1  5 -1 -1 -3 -3 -2
 1 -1  0  0 -2  0 -1 -2  0 -2 -1  1 -1  0 -1  4  1 -2 -3 -2
 0 -1 -1 -1 -2 -2 -2 -1 -1 -1 -1  0 -1 -1 -1  1  5  0 -2 -2
 0 -1 -3 -2 -1 -3 -3  3 -2  1  1 -3 -2 -2 -3 -2  0  4 -3 -1
-3 -2 -4 -3  1 -2 -2 -3 -3 -2 -1 -4 -4 -2 -3 -3 -2 -3 11  2
-2 -2 -3 -2  3 -3  2 -1 -2 -1 -1 -2 -3 -1 -2 -2 -2 -1  2  7
 0 -2 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1 -2 -1 -1  0  0 -1 -2 -1
"""
BLOSUM62 = np.array(_BLOSUM62.split(), np.float32).reshape(21, 20)
"""[21, 20] float32: a residue's scores against the 20 amino acids; row 20 is X."""


@dataclass(frozen=True)
class Proteins:
    """Labelled proteins laid end to end.

    Attributes:
        members: the proteins.
    """

    members: Sequence[StructuredProtein]

    @cached_property
    def offsets(self) -> np.ndarray:
        """[proteins + 1] int64: protein i has the residues offsets[i] to offsets[i + 1]."""
        return np.cumsum([0, *(len(p.sequence) for p in self.members)])

    @cached_property
    def q3(self) -> np.ndarray:
        """[residues] int32, -1 where unresolved."""
        return np.concatenate([p.q3 for p in self.members]).astype(np.int32)

    @cached_property
    def q8(self) -> np.ndarray:
        """[residues] int32, -1 where unresolved or unknown."""
        return np.concatenate([p.q8 for p in self.members]).astype(np.int32)

    def per_protein(self, values: np.ndarray) -> np.ndarray:
        """Sums [proteins] of a value per residue [residues]."""
        return np.add.reduceat(values.astype(np.float64), self.offsets[:-1])


def features(
    kind: str, loaded: LoadedModel, proteins: Proteins, *, window: int | None, progress: bool
) -> np.ndarray:
    """[residues, features] float32, not standardised.

    Args:
        kind: "model" or "random" (both read `loaded`), "one_hot" (20 and X) or "blosum62".
        loaded: whose embeddings; see `random_control`.
        proteins: the residues.
        window: as in `embed_sequences`.
        progress: draw a progress bar on a terminal.
    """
    if kind in ("model", "random"):
        # Names need not be unique across sets; positions are.
        sequences = {str(i): p.sequence for i, p in enumerate(proteins.members)}
        stream = embed_sequences(loaded, sequences, window=window, progress=progress)
        out = np.empty((proteins.offsets[-1], loaded.config.d_model), np.float32)
        for name, array in stream:
            start = proteins.offsets[int(name)]
            out[start : start + len(array)] = array
        return out
    table = np.eye(21, dtype=np.float32) if kind == "one_hot" else BLOSUM62
    letters = "".join(p.sequence for p in proteins.members)
    rows = np.full(256, 20, np.int8)
    rows[np.frombuffer(AMINO_ACIDS.encode("ascii"), np.uint8)] = np.arange(20)
    return table[rows[np.frombuffer(letters.encode("ascii"), np.uint8)]]


def random_control(loaded: LoadedModel, seed: int) -> LoadedModel:
    """The same architecture with fresh parameters, as training would have started from."""
    params = models.init_params(loaded.model, seed)
    return replace(loaded, params=params, name=f"{loaded.name} (random initialisation)")


@dataclass(frozen=True)
class Standardiser:
    """Mean and scale [features] float32, measured on training residues alone."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, training: np.ndarray) -> Standardiser:
        mean = training.mean(axis=0, dtype=np.float64)
        scale = training.std(axis=0, dtype=np.float64)
        # A feature that never changes in training says nothing: zero, not noise blown up.
        constant = scale < 1e-6 * np.maximum(1.0, np.abs(mean))
        return cls(mean.astype(np.float32), np.where(constant, np.inf, scale).astype(np.float32))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Standardised in place, and clipped to ten standard deviations."""
        np.subtract(values, self.mean, out=values)
        np.divide(values, self.scale, out=values)
        return np.clip(values, -_CLIP, _CLIP, out=values)
