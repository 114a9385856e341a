"""What counting residues and their neighbours predicts, at the residues that models are asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.heldout import PSEUDO_COUNTS, HiddenProtein, hide
from protlm_jax.vocabularies import AMINO_ACIDS, normalise

SMOOTHING = 100.0  # residues' worth of training frequencies mixed into each row of pairs
COMPOSITION = PSEUDO_COUNTS["own_composition_best_smoothing"]
_INDEX = np.full(256, 20, np.int64)  # 20: not one of the amino acids
_INDEX[np.frombuffer(AMINO_ACIDS.encode("ascii"), np.uint8)] = np.arange(20)


def neighbours(
    training: Iterable[str], test: Mapping[str, str], frequencies: np.ndarray, seed: int
) -> dict[str, Any]:
    """Losses in nats at the hidden residues of `heldout.evaluate`, with intervals over proteins.

    With f the training frequencies and p(x | l) counted from neighbouring residues of training:
    "bigram" is p(x | left); "both_neighbours" p(x | left) p(x | right) / f(x), normalised;
    "composition" the other residues of the protein, hidden ones too; and
    "composition_and_neighbours" the product of the last two over f(x), normalised. All see residues
    that are hidden from the models.
    """
    pairs = pair_counts(training)
    base = np.log(frequencies)
    left, right = (_conditional(counts, frequencies) for counts in (pairs, pairs.T))
    hidden = [
        h
        for h in (hide(normalise(s, record=name), seed) for name, s in test.items())
        if len(h.targets)
    ]
    asked = [len(h.targets) for h in hidden]
    totals: dict[str, list[float]] = {}
    for protein in hidden:
        own = _composition(protein, frequencies)
        index = np.append(np.where(protein.columns < 0, 20, protein.columns), 20)
        before, after = left[index[protein.targets - 1]], right[index[protein.targets + 1]]
        answers = {
            "bigram": before,
            "both_neighbours": before + after - base,
            "composition": own,
            "composition_and_neighbours": own + before + after - 2 * base,
        }
        for name, scores in answers.items():
            scores = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
            true = protein.columns[protein.targets]
            totals.setdefault(name, []).append(-scores[np.arange(len(true)), true].sum())
    return {
        name: statistics.ratio(total, asked, seed=seed).to_dict() for name, total in totals.items()
    }


def pair_counts(sequences: Iterable[str]) -> np.ndarray:
    """How often each amino acid is followed by each: [20, 20] int64."""
    counts = np.zeros(21 * 21, np.int64)
    for sequence in sequences:
        index = _INDEX[np.frombuffer(sequence.encode("ascii"), np.uint8)]
        counts += np.bincount(21 * index[:-1] + index[1:], minlength=21 * 21)
    return counts.reshape(21, 21)[:20, :20]


def _conditional(counts: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Log-probabilities [21, 20] given a neighbour; the last row is of one that says nothing."""
    smoothed = counts + SMOOTHING * frequencies
    rows = np.log(smoothed / smoothed.sum(axis=1, keepdims=True))
    return np.concatenate([rows, np.log(frequencies)[None]])


def _composition(protein: HiddenProtein, frequencies: np.ndarray) -> np.ndarray:
    """Log-probabilities [targets, 20] from the protein's residues but the one that is asked."""
    counts = np.bincount(protein.columns[protein.columns >= 0], minlength=20)
    others = counts[None] - np.eye(20)[protein.columns[protein.targets]]
    smoothed = others + COMPOSITION * frequencies
    return np.log(smoothed / (counts.sum() - 1 + COMPOSITION))
