"""The depth part of the report: what each layer adds, and what is lost without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protlm_jax.evaluation.report.page import caption, folded, heading, section
from protlm_jax.evaluation.report.sections import depth_map, name
from protlm_jax.evaluation.report.svg import Series, bar_chart, line_chart

_SUBLAYERS = {
    "kl": "divergence",
    "delta_nll": "rise of loss",
    "layer": "whole layer",
    "mlp": "MLP",
}


def depth(result: Mapping[str, Any]) -> str:
    """All stacks of a model, one after the other."""
    stacks = result["stacks"]
    parts = [
        caption(
            f"Measured on {result['proteins']} held-out proteins, at residues that the model "
            "cannot see. Layers count from 0."
        )
    ]
    for stack, measured in stacks.items():
        if len(stacks) > 1:
            parts.append(heading(f"The {stack}"))
        parts += _stack(measured)
    method = "; ".join(f"{k}: {result[k]}" for k in ("positions", "cost") if k in result)
    return section("What each layer does", *parts, folded("How it was measured", method))


def _stack(measured: Mapping[str, Any]) -> list[str]:
    relative, cosine = measured["relative_contribution"], measured["cosine"]
    layers = [str(i) for i in range(len(relative["layer"]))]

    def bars(values: Mapping[str, Any], y_label: str) -> str:
        series = [Series(_sublayer(key), values[key]) for key in values]
        return bar_chart(layers, series, x_label="layer", y_label=y_label)

    parts = [
        heading("Size of what is added"),
        bars(relative, "norm / stream"),
        caption("Norm of what a sublayer adds to the stream, relative to the stream."),
        heading("Direction of what is added"),
        bars(cosine, "cosine with stream"),
        caption(
            "Below zero a sublayer erases, near zero it adds something new, above zero it "
            "amplifies."
        ),
        heading("Who builds on whom"),
        depth_map(measured["skip_map"]),
        _score(measured.get("depth_score") or {}),
    ]
    if skipped := measured.get("skip_output"):
        parts += [
            heading("What the answer loses without a layer"),
            bars({"delta_nll": skipped["delta_nll"], "kl": skipped["kl"]}, "nats per residue"),
            caption(
                "Rise of the loss at hidden residues, and divergence of the predicted "
                "distribution from the whole model's, when one layer is skipped."
            ),
        ]
    if lens := measured.get("logit_lens"):
        curve = Series("loss", lens["nll"])
        parts += [
            heading("Reading the answer early"),
            line_chart([curve], x_label="layers passed", y_label="nats per residue", height=220),
            caption(
                "Logit lens: the loss if the model's head read the stream after so many layers; "
                "the last point is the model itself."
            ),
        ]
    return parts


def _score(score: Mapping[str, Any]) -> str:
    if score.get("relative") is None:
        return ""
    return caption(
        f"Depth score {score['relative']:.2f} (centre of mass of the layers' effect on later "
        "layers: 0 if only the first mattered, 1 if only the last)."
    )


def _sublayer(key: str) -> str:
    return _SUBLAYERS.get(key, name(key))
