"""P@L of one way to predict contacts, on proteins of known structure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.contacts.precision import RANGES, contact_map, means, precisions
from protlm_jax.evaluation.contacts.predict import Weights, predict
from protlm_jax.models.loaded import LoadedModel


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
        weights: of its heads, see `predict`.
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
    predicted = predict(loaded, sequences, weights=weights, tokens_per_batch=tokens_per_batch)
    for name, probabilities in predicted:
        true = contact_map(contacts[name], len(probabilities), name)
        for kind, scores in precisions(probabilities, true).items():
            rows[kind].append(scores)
    return {
        "model": loaded.name,
        "proteins": len(sequences),
        "ranges": {kind: means(scores, seed) for kind, scores in rows.items()},
    }


def summary(result: Mapping[str, Any]) -> str:
    """The numbers as a table for the terminal."""
    lines = [f"{result['model']}: contacts of {result['proteins']:,} proteins, precision in %"]
    for kind, found in result["ranges"].items():
        cells = [
            f"{label} {statistics.written(e, 1, scale=100)}"
            for label, e in itertools.chain(
                found["precision"].items(), [("chance", found["chance"])] if found["chance"] else []
            )
        ]
        lines.append(f"  {kind:6} " + "  ".join(cells))
    return "\n".join(lines)
