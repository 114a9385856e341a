"""Depth analysis of a model: how much each layer adds, and what is lost without it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.batching import Group, max_residues
from protlm_jax.evaluation.depth.measure import measure
from protlm_jax.evaluation.heldout import even_pieces, hidden_batch, hide
from protlm_jax.models.build import count_tokens
from protlm_jax.models.flops import forward_flops_per_token
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import normalise

# What the model is shown, the true tokens, and where they are hidden.
Hidden = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]

# Which positions are measured, by the kind of a family's readout.
POSITIONS = {
    "masked": "residues shown as the mask token; softmax over the 20 amino acids",
    "denoising": "residues shown to the encoder as the mask token; softmax over the 20 amino acids",
    "causal": "positions before the chosen residues, which they predict; softmax over the 20 amino "
    "acids",
    "query": "chosen residues of the content stream, all in sight; the answer is given by the "
    "query stream, so that effects on it are not defined here",
    "detection": "chosen residues, all in sight; the model gives no distribution over residues, so "
    "that effects on the answer are not defined",
}
LONGEST = 256
ROWS = 8


def run(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    *,
    length: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures every stack of a model on some proteins.

    Args:
        loaded: the model.
        sequences: id -> sequence; proteins longer than a row are cut into even pieces.
        length: tokens in a row, special tokens included; None takes the position table's size, or
            LONGEST where positions have no limit.
        seed: of the choice of hidden residues.
        progress: draw a progress bar on a terminal.

    Returns:
        A plain dict: "stacks" -> name -> "relative_contribution" and "cosine" (None for a layer
        before which the stream is zero wherever it is looked at: ESM-2's first), "stream_norm",
        "skip_map" (rows: skipped layer; columns: later layer; None where nothing is skipped),
        "skip_output" and "base_nll" (None where the stream gives no distribution over residues),
        "logit_lens" (None where `head` does not read the stack) and "depth_score".

    Raises:
        ProtlmError: when no protein has a residue to hide.
    """
    began = time.perf_counter()
    batches = _batches(loaded, sequences, length, seed)
    totals = _totals(loaded, batches, progress)
    tokens = sum(count_tokens(batch) for batch, _, _ in batches)
    hidden_residues = int(next(iter(totals.values()))["count"])
    flops = forward_flops_per_token(loaded.config, batches[0][1].shape[1])
    return {
        "model": loaded.name,
        "stacks": {stack: _means(sums) for stack, sums in totals.items()},
        "positions": POSITIONS[loaded.model.readouts[0].kind],
        "proteins": len(sequences),
        "hidden_residues": hidden_residues,
        "cost": {
            "seconds": time.perf_counter() - began,
            "tokens": tokens,
            "one_forward_flops": flops * tokens,
        },
    }


def _totals(loaded: LoadedModel, batches: list[Hidden], progress: bool) -> dict[str, Any]:
    """Sums over all batches, by stack."""
    from tqdm import tqdm

    amino_acids = jnp.asarray(loaded.vocabulary.amino_acid_ids)
    work = [(stack, batch) for stack in loaded.model.stack_names for batch in batches]
    totals: dict[str, Any] = {}
    for stack, batch in tqdm(work, desc="depth", disable=None if progress else True):
        sums = measure(loaded.model, loaded.params, *batch, amino_acids, stack=stack)
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(sums))
        before = totals.get(stack)
        totals[stack] = sums if before is None else jax.tree.map(np.add, before, sums)
    return totals


def _batches(
    loaded: LoadedModel, sequences: Mapping[str, str], length: int | None, seed: int
) -> list[Hidden]:
    """Batches of one shape: (what is shown, true tokens, where they are hidden)."""
    plain = [normalise(s, record=name) for name, s in sequences.items()]
    proteins = [h for h in (hide(s, seed) for s in plain) if len(h.targets)]
    if not proteins:
        raise ProtlmError("depth analysis needs proteins with at least two standard residues")
    specials = loaded.vocabulary.num_specials
    limit = max_residues(loaded, None if length is None else length - specials)
    limit = min(limit or LONGEST - specials, max(len(p.sequence) for p in proteins))
    pieces = [
        (i, start, stop)
        for i, protein in enumerate(proteins)
        for start, stop in even_pieces(len(protein.sequence), limit)
    ]
    batches = []
    for first in range(0, len(pieces), ROWS):
        members = pieces[first : first + ROWS]
        group = Group(list(range(len(members))), ROWS, limit + specials)
        asked = hidden_batch(loaded, proteins, members, group)
        # A model whose answer is not read from the stream is looked at with everything in sight.
        features = {name: x for name, x in asked.features.items() if name != "hidden"}
        batches.append((features, asked.true, asked.hidden))
    return batches


def _means(sums: dict[str, Any]) -> dict[str, Any]:
    """Sums over positions as what people read."""
    means = jax.tree.map(lambda x: x / sums["count"], sums)
    num_layers = len(means["skip_map"])
    later = np.triu(np.ones((num_layers, num_layers), bool), k=1)
    effect = np.where(later, means["skip_map"], 0.0)
    result = {
        "relative_contribution": _where_defined(sums, "relative_contribution"),
        "cosine": _where_defined(sums, "cosine"),
        "stream_norm": means["stream_norm"].tolist(),
        "skip_map": [
            [float(x) if after else None for x, after in zip(row, mask, strict=True)]
            for row, mask in zip(effect, later, strict=True)
        ],
        "skip_output": None,
        "logit_lens": None,
        "base_nll": None,
        "depth_score": _depth_score(effect),
    }
    if "skip_output" in means:
        result["base_nll"] = float(means["base_nll"])
        result["skip_output"] = _output(means["skip_output"], result["base_nll"])
    if "logit_lens" in means:
        result["logit_lens"] = _lists(means["logit_lens"])
    return result


def _where_defined(sums: dict[str, Any], name: str) -> dict[str, list[float | None]]:
    """Means over the positions that have a stream to compare with; None where none has."""
    return {
        key: [float(x / n) if n else None for x, n in zip(total, sums["defined"][key], strict=True)]
        for key, total in sums[name].items()
    }


def _output(means: dict[str, np.ndarray], base_nll: float) -> dict[str, list[float]]:
    lists = _lists({name: value for name, value in means.items() if name != "nll"})
    return {**lists, "delta_nll": (means["nll"] - base_nll).tolist()}


def _depth_score(effect: np.ndarray) -> dict[str, float | None]:
    """Centre of mass of the layers' effects on later layers (Csordás et al. 2025), in layers.

    The last layer has no later one, so that it does not count.
    """
    num_layers = len(effect)
    later = np.maximum(num_layers - 1 - np.arange(num_layers), 1)
    per_layer = effect.sum(axis=1) / later
    if num_layers < 2 or not per_layer.sum():
        return {"layers": None, "relative": None}
    centre = float((np.arange(num_layers) * per_layer).sum() / per_layer.sum())
    return {"layers": centre, "relative": centre / (num_layers - 1)}


def _lists(arrays: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: np.asarray(value).tolist() for name, value in arrays.items()}
