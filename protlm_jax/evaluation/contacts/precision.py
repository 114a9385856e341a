"""How many of a protein's surest contacts are true.

P@L is the precision of a protein's L most probable pairs, L being its number of residues, among the
pairs of a range of separations: short, medium or long, as CASP divides them. What is reported is
the mean over proteins, beside the precision of pairs drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.contacts.predict import Weights, predict
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.storage.arrays import read_npz

# Separation |i - j| of a pair: from, and up to but not including.
RANGES = {"short": (6, 12), "medium": (12, 24), "long": (24, 1 << 30)}
COUNTS = ("L", "L/2", "L/5", "chance")
"""How many of the surest pairs are counted; "chance": all of them."""


def evaluate(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    contacts: Mapping[str, np.ndarray],
    *,
    weights: Weights | None = None,
    seed: int = 0,
    tokens_per_batch: int | None = None,
) -> dict[str, Any]:
    """P@L of a model's contacts on proteins of known structure.

    Args:
        loaded: the model.
        sequences: id -> sequence; every residue's place must be known.
        contacts: id -> [contacts, 2] pairs of residues that touch, counted from 0, in any order.
        weights: as of `predict`.
        tokens_per_batch: as of `predict`.
        seed: of the bootstrap.

    Returns:
        A plain dict: "proteins", and for each of RANGES "precision" at L, L/2 and L/5 and "chance",
        the share of its pairs that touch: means over the proteins that have such a pair, with
        standard error and 95 % interval.

    Raises:
        ProtlmError: as `predict`; or a protein without contacts, or a contact outside of it.
    """
    if missing := [name for name in sequences if name not in contacts]:
        raise ProtlmError(
            f"no contacts are given for {missing[0]!r}: a protein without any must say so with an "
            f"empty array"
        )
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in RANGES}
    predicted = predict(loaded, sequences, weights=weights, tokens_per_batch=tokens_per_batch)
    for name, probabilities in predicted:
        true = contact_map(contacts[name], len(probabilities), name)
        for kind, scores in precisions(probabilities, true).items():
            rows[kind].append(scores)
    ranges = {}
    for kind, found in rows.items():
        ones = np.ones(len(found))
        means: dict[str, Any] = {
            count: statistics.ratio([s[count] for s in found], ones, seed=seed).to_dict()
            for count in (COUNTS if found else ())
        }
        chance = means.pop("chance", None)
        ranges[kind] = {"precision": means, "chance": chance}
    return {"model": loaded.name, "proteins": len(sequences), "ranges": ranges}


def summary(result: Mapping[str, Any]) -> str:
    """The numbers as a table for the terminal."""
    lines = [f"{result['model']}: contacts of {result['proteins']:,} proteins, precision in %"]
    for kind, found in result["ranges"].items():
        means = found["precision"] | ({"chance": found["chance"]} if found["chance"] else {})
        cells = [f"{label} {statistics.written(e, 1, scale=100)}" for label, e in means.items()]
        lines.append(f"  {kind:6} " + "  ".join(cells))
    return "\n".join(lines)


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
        hits = true[i, j][np.argsort(-probabilities[i, j], kind="stable")]
        counted = (residues, residues // 2, residues // 5, len(hits))
        scores[name] = {
            label: float(hits[: max(1, count)].mean())
            for label, count in zip(COUNTS, counted, strict=True)
        }
    return scores


def contact_map(pairs: np.ndarray, residues: int, name: str) -> np.ndarray:
    """[residues, residues] bool, symmetric, from [contacts, 2] pairs counted from 0.

    Raises:
        ProtlmError: a pair lies outside of the protein.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    if (outside := pairs[(pairs < 0) | (pairs >= residues)]).size:
        raise ProtlmError(
            f"contacts of {name!r} name residue {outside[0]}, the protein has {residues}, "
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
