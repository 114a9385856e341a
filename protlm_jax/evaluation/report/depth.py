"""The depth part of the report: what each layer adds, and what is lost without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from protlm_jax.evaluation.report.page import caption, folded, heading, section
from protlm_jax.evaluation.report.sections import depth_map, name
from protlm_jax.evaluation.report.svg import Series, bar_chart, heat_map, line_chart

WHAT = "What each layer does"
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
    return section(WHAT, *parts, folded("How it was measured", method))


def depths(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Models side by side on relative depth, and then each of them."""
    parts = []
    if len(results) > 1:
        parts.append(section("Models side by side", *_compared(results)))
    for title, result in results.items():
        parts.append(depth(result).replace("What each layer does", f"{escape(title)}: {WHAT}", 1))
    return "".join(parts)


def _compared(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Curves of the stack that is read, over layers as a share of all."""
    kinds = {
        "skip_output": ("kl", "What the answer loses without a layer", "nats per residue"),
        "logit_lens": ("nll", "Loss if the answer were read early", "nats per residue"),
        "relative_contribution": ("layer", "Size of what a layer adds", "norm / stream"),
        "cosine": ("layer", "Direction of what a layer adds", "cosine with stream"),
    }
    parts = []
    for key, (name_, title, unit) in kinds.items():
        curves = []
        for model, result in results.items():
            for stack, measured in result["stacks"].items():
                values = (measured.get(key) or {}).get(name_)
                if values and len(values) > 1:
                    label = model if len(result["stacks"]) == 1 else f"{model}, {stack}"
                    places = [i / (len(values) - 1) for i in range(len(values))]
                    there = [(y, x) for y, x in zip(values, places, strict=True) if y is not None]
                    curves.append(Series(label, [y for y, _ in there], [x for _, x in there]))
        if curves:
            parts += [heading(title), line_chart(curves, x_label="relative depth", y_label=unit)]
    return [*parts, caption("Layers are placed from 0, the first, to 1, the last.")]


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
    parts += _answer(measured, bars)
    if local := measured.get("local_map"):
        parts += [
            heading("Who reads whom directly"),
            heat_map(local, row_label="layer left out", column_label="later layer"),
            caption(
                "The same map with what a layer wrote taken from the input of one later layer at a "
                "time, nothing in between answering to it."
            ),
        ]
    parts += _shape(measured)
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


def _answer(measured: Mapping[str, Any], bars: Callable[..., str]) -> list[str]:
    """What the answer loses without a layer, without a part of one, and with two exchanged."""
    parts = []
    if skipped := measured.get("skip_output"):
        parts += [
            heading("What the answer loses without a layer"),
            bars({"delta_nll": skipped["delta_nll"], "kl": skipped["kl"]}, "nats per residue"),
            caption(
                "Rise of the loss at hidden residues, and divergence of the predicted "
                "distribution from the whole model's, when one layer is skipped."
            ),
        ]
    if by_part := measured.get("sublayer_skip_output"):
        rises = {part: found["kl"] for part, found in by_part.items()}
        parts += [
            heading("And without a part of it"),
            bars(rises, "nats per residue"),
            caption("Divergence of the answer when one sublayer of one layer adds nothing."),
        ]
    if swapped := measured.get("swap_output"):
        places = [str(i) for i in range(len(swapped["kl"]))]
        series = [Series("divergence", swapped["kl"])]
        parts += [
            heading("And with two layers exchanged"),
            bar_chart(places, series, x_label="layer swapped with the next", y_label="nats"),
        ]
    return parts


def _shape(measured: Mapping[str, Any]) -> list[str]:
    """How far the stream turns, and how many directions it uses."""
    parts = []
    for key, title, unit, words in (
        (
            "block_influence",
            "How far each layer turns the stream",
            "1 - cosine",
            "Mean over positions of 1 - cos(before, after): layers near 0 are candidates to prune.",
        ),
        (
            "effective_rank",
            "Directions in use",
            "effective rank",
            "exp of the entropy of the singular values of the streams of some positions.",
        ),
        (
            "intrinsic_dimension",
            "Dimension of the cloud of streams",
            "TwoNN estimate",
            "From the ratio of the distances to the two nearest neighbours of each position.",
        ),
    ):
        values = measured.get(key) or []
        there = [(i, x) for i, x in enumerate(values) if x is not None]
        if len(there) > 1:
            curve = Series(title, [x for _, x in there], [i for i, _ in there])
            chart = line_chart([curve], x_label="layer", y_label=unit, height=200, legend=False)
            parts += [heading(title), chart, caption(words)]
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
