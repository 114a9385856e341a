"""Contacts predicted from attention, and how many of the surest ones are true.

P@L is the precision of a protein's L most probable pairs, L being its number of residues, among the
pairs of a range of separations: short, medium or long, as CASP divides them. What is reported is
the mean over proteins, beside the precision of pairs drawn at random.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.batching import (
    default_tokens_per_batch,
    encoder_features,
    grouped,
    max_residues,
)
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import ResiduePolicy, normalise

# Separation |i - j| of a pair: from, and up to but not including.
RANGES = {"short": (6, 12), "medium": (12, 24), "long": (24, 1 << 30)}


def predict(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    *,
    tokens_per_batch: int | None = None,
    policy: ResiduePolicy = ResiduePolicy(),
) -> Iterator[tuple[str, np.ndarray]]:
    """The probability that two residues of a protein touch, by the model's own contact head.

    Args:
        loaded: a model with a contact head (ESM-2).
        sequences: id -> sequence, spaced or not; read under `policy`.
        tokens_per_batch: budget of one batch; None suits the device.
        policy: what to do with rare residues and lower case.

    Yields:
        (id, [residues, residues] float32, symmetric), proteins of one length together, longest
        first.

    Raises:
        ProtlmError: the model has no contact head, an unknown residue turns up, or a protein is
            longer than its position table.
    """
    if not hasattr(loaded.model, "contacts"):
        raise ProtlmError(
            f"{loaded.name} has no contact head: the {loaded.config.family} family is trained "
            f"without one; take an ESM-2 folder"
        )
    plain = {name: normalise(s, policy, record=name) for name, s in sequences.items()}
    limit = max_residues(loaded)
    for name, sequence in plain.items():
        if limit is not None and len(sequence) > limit:
            raise ProtlmError(
                f"{name!r} has {len(sequence)} residues, {loaded.name} takes {limit}: contacts "
                f"across a cut are lost, so leave the protein out or cut out a domain"
            )
    return _stream(loaded, plain, tokens_per_batch or default_tokens_per_batch())


def _stream(
    loaded: LoadedModel, sequences: Mapping[str, str], budget: int
) -> Iterator[tuple[str, np.ndarray]]:
    names = list(sequences)
    tokens = [loaded.vocabulary.encode(sequence) for sequence in sequences.values()]
    before = len(loaded.vocabulary.prefix_ids)
    for group in grouped([len(t) for t in tokens], budget, loaded.config.max_positions or None):
        batch = encoder_features(loaded, [tokens[m] for m in group.members], group)
        found = np.asarray(_contacts(loaded.model, loaded.params, batch))
        for row, member in enumerate(group.members):
            inside = slice(before, before + len(sequences[names[member]]))
            yield names[member], found[row, inside, inside]


@functools.partial(jax.jit, static_argnums=0)
def _contacts(model: Any, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    return model.apply({"params": params}, batch, method="contacts")


def evaluate(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    contacts: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    tokens_per_batch: int | None = None,
) -> dict[str, Any]:
    """P@L of a model's contact head on proteins of known structure.

    Args:
        loaded: a model with a contact head.
        sequences: id -> sequence; every residue's place must be known.
        contacts: id -> [contacts, 2] pairs of residues that touch, counted from 0, in any order.
        seed: of the bootstrap.
        tokens_per_batch: budget of one batch; None suits the device.

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
    for name, probabilities in predict(loaded, sequences, tokens_per_batch=tokens_per_batch):
        true = contact_map(contacts[name], len(probabilities), name)
        for kind, scores in precisions(probabilities, true).items():
            rows[kind].append(scores)
    return {
        "model": loaded.name,
        "proteins": len(sequences),
        "ranges": {kind: _means(scores, seed) for kind, scores in rows.items()},
    }


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
        raise ProtlmError(
            f"contacts of {name!r} name residue {pairs.max()}, the protein has {residues}, "
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
    try:
        with np.load(file) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise ProtlmError(f"{file} is no .npz file of contacts ({error})") from error
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape[1] != 2 or not np.issubdtype(array.dtype, np.integer):
            raise ProtlmError(
                f"{file}: {name!r} is an array {array.dtype}{list(array.shape)}; contacts are "
                f"pairs of whole numbers, [contacts, 2]"
            )
    return arrays


def _means(scores: Sequence[Mapping[str, float]], seed: int) -> dict[str, Any]:
    if not scores:
        return {"precision": {}, "chance": None}
    found = {
        key: statistics.ratio([s[key] for s in scores], np.ones(len(scores)), seed=seed).to_dict()
        for key in scores[0]
    }
    chance = found.pop("chance")
    return {"precision": found, "chance": chance}


def summary(result: Mapping[str, Any]) -> str:
    """The numbers as a table for the terminal."""
    lines = [f"{result['model']}: contacts of {result['proteins']:,} proteins, precision in %"]
    for kind, found in result["ranges"].items():
        cells = [
            f"{label} {100 * e['value']:.1f} ± {100 * e['standard_error']:.1f}"
            for label, e in itertools.chain(
                found["precision"].items(), [("chance", found["chance"])] if found["chance"] else []
            )
        ]
        lines.append(f"  {kind:6} " + "  ".join(cells))
    return "\n".join(lines)
