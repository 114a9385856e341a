"""How many of a protein's surest contacts are true.

P@L is the precision of a protein's L most probable pairs, L being its number of residues, among the
pairs of a range of separations: short, medium or long, as CASP divides them. What is reported is
the mean over proteins, beside the precision of pairs drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics
from protlm_jax.storage.arrays import read_npz

# Separation |i - j| of a pair: from, and up to but not including.
RANGES = {"short": (6, 12), "medium": (12, 24), "long": (24, 1 << 30)}
COUNTS = ("L", "L/2", "L/5", "chance")
"""How many of the surest pairs are counted; "chance": all of them."""


def precisions(probabilities: np.ndarray, true: np.ndarray) -> dict[str, dict[str, float]]:
    """Precision of one protein's surest pairs, by range; ranges without a pair are left out.

    Args:
        probabilities: [L, L], higher where a contact is more likely; the upper half is read.
        true: [L, L] bool.

    Returns:
        Range -> "L", "L/2", "L/5" (of as many pairs, at least one, or of all if there are fewer)
        and "chance".
    """
    residues = len(true)
    first, second = np.triu_indices(residues, k=1)
    scores: dict[str, dict[str, float]] = {}
    for name, (nearest, end) in RANGES.items():
        here = (second - first >= nearest) & (second - first < end)
        if not here.any():
            continue
        i, j = first[here], second[here]
        surest = np.argsort(-probabilities[i, j], kind="stable")
        hits = true[i, j][surest]
        scores[name] = {
            label: float(hits[: max(1, residues // part)].mean())
            for label, part in (("L", 1), ("L/2", 2), ("L/5", 5))
        }
        scores[name]["chance"] = float(hits.mean())
    return scores


def contact_map(pairs: np.ndarray, residues: int, name: str) -> np.ndarray:
    """[residues, residues] bool, symmetric, from [contacts, 2] pairs counted from 0.

    Raises:
        ProtlmError: a pair lies outside of the protein.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    if pairs.size and (pairs.min() < 0 or pairs.max() >= residues):
        outside = pairs.min() if pairs.min() < 0 else pairs.max()
        raise ProtlmError(
            f"contacts of {name!r} name residue {outside}, the protein has {residues}, "
            f"counted from 0: sequence and contacts are not of one structure"
        )
    true = np.zeros((residues, residues), bool)
    true[pairs[:, 0], pairs[:, 1]] = true[pairs[:, 1], pairs[:, 0]] = True
    return true


def read_contacts(file: str | Path) -> dict[str, np.ndarray]:
    """Contacts of many proteins from an .npz file: for each id an array [contacts, 2].

    Raises:
        ProtlmError: the file cannot be read, or holds something else.
    """
    arrays = read_npz(Path(file), remedy="write it with numpy.savez, an array for each id")
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape[1] != 2 or not np.issubdtype(array.dtype, np.integer):
            raise ProtlmError(
                f"{file}: {name!r} is an array {array.dtype}{list(array.shape)}; contacts are "
                f"pairs of whole numbers, [contacts, 2]"
            )
    return arrays


def means(scores: Sequence[Mapping[str, float]], seed: int) -> dict[str, Any]:
    """Over proteins, of what `precisions` gives of one range: "precision" -> label -> estimate,
    and "chance"."""
    if not scores:
        return {"precision": {}, "chance": None}
    found = {
        key: statistics.ratio([s[key] for s in scores], np.ones(len(scores)), seed=seed).to_dict()
        for key in scores[0]
    }
    chance = found.pop("chance")
    return {"precision": found, "chance": chance}
