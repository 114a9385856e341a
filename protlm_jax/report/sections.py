"""Each part of the report: results in, HTML out, with one sentence on what each number means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from protlm_jax.evaluation import statistics
from protlm_jax.report.charts import curves, intervals
from protlm_jax.report.page import Piece, caption, folded, heading, picture, section, table
from protlm_jax.report.picture import number, steps

Results = Mapping[str, Any]

NAMES = {
    "model": "this model",
    "random": "random initialisation",
    "one_hot": "one-hot residues",
    "blosum62": "BLOSUM62 rows",
    "training_frequencies": "training frequencies",
    "own_composition": "own composition",
    "own_composition_best_smoothing": "smoothed composition",
    "composition": "amino-acid composition",
    "majority": "commonest class",
    "linear": "linear head",
    "cnn": "CNN head",
    "fnn": "FNN head",
    "light_attention": "Light Attention head",
    "q3": "Q3",
    "q8": "Q8",
    "gb1": "GB1",
    "mcc": "MCC",
    "mae": "MAE",
    "cb513": "CB513",
    "ts115": "TS115",
    "casp12": "CASP12",
    "new364": "NEW364",
}


def name(key: str) -> str:
    return NAMES.get(key, key.replace("_", " "))


def training(lines: Sequence[Results], entropy: float | None) -> Piece:
    """Loss at hidden residues and gradient norms per layer, from the lines of metrics.jsonl."""
    losses = {"hidden/nll": "training batches", "heldout/nll": "held-out batches"}
    rows = [
        {"series": label, "x": line["step"], "y": line[key]}
        for key, label in losses.items()
        for line in lines
        if isinstance(line.get(key), int | float)
    ]
    references = {"training frequencies": entropy} if entropy else {}
    parts = [
        picture(curves(rows, x="step", y="nats per hidden residue", references=references)),
        caption(
            "Cross-entropy at residues that the model is shown as mask; lower is better. The "
            "dashed line is the loss of predicting training frequencies."
        ),
    ]
    for key in sorted({k for line in lines for k, v in line.items() if _per_layer(k, v)}):
        stack = key.removeprefix("layers/").removesuffix("/grad_norm")
        found = [(line["step"], line[key]) for line in lines if key in line]
        layers = len(found[0][1])
        rows = [
            {"series": f"layer {layer}", "x": step, "y": norms[layer]}
            for layer in range(layers)
            for step, norms in found
        ]
        chart = curves(rows, x="step", y="gradient norm", colours=steps(layers))
        parts += [heading(f"Gradient norm by layer, {stack}"), picture(chart)]
        parts.append(
            caption("Gradient norm per layer; diverging curves mean that layers learn at different "
                    "times. Blue is the first layer, orange the last.")
        )  # fmt: skip
    return section("Training", *parts)


def heldout(result: Results) -> Piece:
    """The loss on held-out proteins beside its baselines."""
    systems = [("model", result["model"]["nll"])]
    systems += [(key, base["nll"]) for key, base in result["baselines"].items()]
    rows = [
        {"label": name(key), "value": e["value"], "low": e["low"], "high": e["high"]}
        for key, e in systems
    ]
    differences = [
        (
            f"minus {name(key)}",
            statistics.written(e, 4, sign="+"),
            "-" if e["low"] is None else f"{e['low']:+.4f} to {e['high']:+.4f}",
        )
        for key, e in result["model_minus"].items()
    ]
    accuracy = statistics.written(result["model"]["accuracy"], 1, scale=100)
    return section(
        "Held-out proteins",
        caption(
            f"Scored on {result['targets']:,} hidden residues of {result['proteins']:,} proteins "
            f"that were not trained on. Perplexity {result['model']['perplexity']:.2f} (20 would "
            f"be a blind guess); the right residue comes first in {accuracy} %."
        ),
        picture(intervals(rows, x="nats per residue, 95 % interval over proteins")),
        table(("difference in nats", "± standard error", "95 % interval"), differences),
        caption(
            "This model minus each baseline: below zero the model predicts better, on the "
            "same residues of the same proteins (paired bootstrap)."
        ),
        folded("How it was measured", str(result.get("protocol", ""))),
    )


def export(result: Results) -> Piece:
    """What was checked after loading the exported folder back."""
    rows = [(name(key), _plain(value)) for key, value in result.items() if key != "summary"]
    return section(
        "Export",
        caption("The exported folder, loaded back by another library and compared with this one."),
        table(("what", ""), rows, kind="text"),
    )


def run(result: Results) -> Piece:
    """Command, machine, versions, timings; the configuration folded away."""
    shown = {k: v for k, v in result.items() if k not in ("config", "title")}
    rows = [(name(key), _plain(value)) for key, value in shown.items()]
    config = result.get("config")
    return section(
        "What was run",
        table(("", ""), rows, kind="text"),
        folded("Configuration", json.dumps(config, indent=2, default=str)) if config else "",
    )


def around(estimate: Results, scale: float = 1.0) -> dict[str, float | None]:
    """An estimate as "value", with one standard error to each side as "low" and "high"."""
    value, error = scale * estimate["value"], estimate["standard_error"]
    if error is None:
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": value - scale * error, "high": value + scale * error}


def _per_layer(key: str, value: Any) -> bool:
    return key.startswith("layers/") and key.endswith("/grad_norm") and isinstance(value, list)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return number(value) if isinstance(value, float) else str(value)
