"""Depth analysis as the short dict that the terminal shows."""

from __future__ import annotations

from typing import Any

import numpy as np

from protlm_jax.evaluation.depth.plain import nested
from protlm_jax.evaluation.depth.results import Analysis, Measured
from protlm_jax.evaluation.depth.scores import depth_score, exit_depth, per_layer_effect

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
    "none": "chosen residues, all in sight; the model has no head, so that effects on the answer "
    "are not defined",
}
LENS = ("l2", "kl", "js", "top1_agreement", "top3_overlap", "rank_correlation", "nll", "accuracy")
OUTPUT = ("l2", "kl", "kl_reverse", "top1_agreement")


def summary(found: Analysis, positions: str) -> dict[str, Any]:
    """A plain dict, ready for JSON.

    Returns:
        "stacks" -> name -> "relative_contribution" and "cosine" by part (None for a layer before
        which the stream is zero wherever it is looked at: ESM-2's first), "stream_norm",
        "block_influence", "angular_distance", "skip_map" (rows: skipped layer; columns: later
        layer; None where nothing is skipped) and "skip_map_largest", "sublayer_skip_map" by part,
        "local_map", "skip_output", "sublayer_skip_output" and "swap_output", "base_nll",
        "logit_lens", "exit_depth", "depth_score", "cka", "effective_rank", "intrinsic_dimension",
        and "undefined": why what is None is not defined.
    """
    first = next(iter(found.stacks.values()))
    counts: Any = first["stream_norm"]
    return {
        "model": found.model,
        "stacks": {name: _stack(measured) for name, measured in found.stacks.items()},
        "positions": positions,
        "proteins": len(found.proteins),
        "hidden_residues": int(counts.counts[0].sum()),
        "cost": found.cost,
    }


def _stack(measured: Measured) -> dict[str, Any]:
    parts, sublayers = measured.coords["part"], measured.coords["sublayer"]
    skip = measured["skip_effect"].values
    result: dict[str, Any] = {
        name: dict(zip(parts, plain(measured.values(name)), strict=True))
        for name in ("relative_contribution", "cosine")
    }
    for name in ("stream_norm", "block_influence", "angular_distance"):
        result[name] = plain(measured.values(name))
    for name in ("cka", "effective_rank", "intrinsic_dimension"):
        result[name] = plain(measured.values(name))
    largest: Any = measured["skip_effect"]
    result["skip_map"] = _later(skip)
    result["skip_map_largest"] = _later(largest.largest)
    result["local_map"] = _later(measured.values("local_effect"))
    by_sublayer = measured["sublayer_skip_effect"].values
    result["sublayer_skip_map"] = {
        part: _later(x) for part, x in zip(sublayers, by_sublayer, strict=True)
    }
    result |= _answers(measured)
    result["depth_score"] = depth_score(per_layer_effect(skip))
    result["undefined"] = measured.undefined
    return result


def _answers(measured: Measured) -> dict[str, Any]:
    """What needs an answer, None where there is none."""
    if "skip_nll" not in measured:
        names = ("skip_output", "sublayer_skip_output", "swap_output", "logit_lens", "exit_depth")
        return dict.fromkeys((*names, "base_nll", "output_depth_score"))
    base = measured["base_nll"].values
    result: dict[str, Any] = {"base_nll": float(base)}
    for key, prefix in (("skip_output", "skip"), ("swap_output", "swap")):
        result[key] = _output(measured, prefix, base)
    parts = [
        {k: v[i] for k, v in _output(measured, "sublayer_skip", base).items()}
        for i in range(len(measured.coords["sublayer"]))
    ]
    result["sublayer_skip_output"] = dict(zip(measured.coords["sublayer"], parts, strict=True))
    result["output_depth_score"] = depth_score(measured["skip_l2"].values)
    lens = {name: measured.values(f"lens_{name}") for name in LENS}
    result["logit_lens"] = result["exit_depth"] = None
    if lens["nll"] is not None and lens["accuracy"] is not None:
        result["logit_lens"] = {name: plain(x) for name, x in lens.items()}
        result["exit_depth"] = {
            "accuracy": exit_depth(lens["accuracy"]),
            "nll": exit_depth(np.log(20) - lens["nll"]),
        }
    return result


def _output(measured: Measured, prefix: str, base: np.ndarray) -> Any:
    if f"{prefix}_nll" not in measured:
        return None
    found = {name: plain(measured.values(f"{prefix}_{name}")) for name in OUTPUT}
    return {**found, "delta_nll": plain(measured[f"{prefix}_nll"].values - base)}


def _later(effects: np.ndarray | None) -> Any:
    """A map whose entries that are not above the diagonal say nothing."""
    if effects is None:
        return None
    above = np.triu(np.ones(effects.shape, bool), k=1)
    return plain(np.where(above, effects, np.nan))


def plain(x: np.ndarray | None) -> Any:
    """`nested`, of what may not have been measured."""
    return None if x is None else nested(x)
