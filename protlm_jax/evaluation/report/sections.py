"""Each part of the report: results in, HTML out, with one sentence on what each number means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.report.frame import number
from protlm_jax.evaluation.report.page import caption, folded, heading, section, table
from protlm_jax.evaluation.report.svg import Series, interval_chart, line_chart

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


def training(lines: Sequence[Results], entropy: float | None) -> str:
    """Loss at hidden residues and gradient norms per layer, from the lines of metrics.jsonl."""
    references = [("training frequencies", entropy)] if entropy else []
    curves = [
        _curve(lines, "hidden/nll", "training batches"),
        _curve(lines, "heldout/nll", "held-out batches"),
    ]
    parts = [
        line_chart(
            [c for c in curves if c.y],
            x_label="step",
            y_label="nats per hidden residue",
            references=references,
        ),
        caption(
            "Cross-entropy at residues that the model is shown as mask; lower is better, and the "
            "dashed line is what knowing only how common each amino acid is would give."
        ),
    ]
    for key in sorted({k for line in lines for k, v in line.items() if _per_layer(k, v)}):
        stack = key.removeprefix("layers/").removesuffix("/grad_norm")
        layers = len(next(line[key] for line in lines if key in line))
        chart = line_chart(
            [_layer_curve(lines, key, layer, layers) for layer in range(layers)],
            x_label="step",
            y_label="gradient norm",
            legend=layers <= 12,
        )
        parts += [heading(f"Gradient norm by layer, {stack}"), chart]
        parts.append(
            caption("How strongly each layer is pulled: curves that part ways show layers that "
                    "learn at different times; blue is the first layer, red the last.")
        )  # fmt: skip
    return section("Training", *parts)


def heldout(result: Results) -> str:
    """The loss on held-out proteins beside its baselines."""
    systems = [("model", result["model"]["nll"])]
    systems += [(key, base["nll"]) for key, base in result["baselines"].items()]
    rows = [(name(key), e["value"], e["low"], e["high"]) for key, e in systems]
    differences = [
        (
            "",
            (
                f"minus {name(key)}",
                statistics.written(e, 4, sign="+"),
                "-" if e["low"] is None else f"{e['low']:+.4f} to {e['high']:+.4f}",
            ),
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
        interval_chart(rows, x_label="nats per residue, 95 % interval over proteins"),
        table(("difference in nats", "± standard error", "95 % interval"), differences),
        caption(
            "This model minus each baseline: below zero the model predicts better, on the "
            "same residues of the same proteins (paired bootstrap)."
        ),
        folded("How it was measured", str(result.get("protocol", ""))),
    )


def export(result: Results) -> str:
    """What was checked after loading the exported folder back."""
    rows = [("", (name(key), _plain(value))) for key, value in result.items() if key != "summary"]
    return section(
        "Export",
        caption("The exported folder, loaded back by another library and compared with this one."),
        table(("what", ""), rows, text=True),
    )


def run(result: Results) -> str:
    """Command, machine, versions, timings; the configuration folded away."""
    shown = {k: v for k, v in result.items() if k not in ("config", "title")}
    rows = [("", (name(key), _plain(value))) for key, value in shown.items()]
    config = result.get("config")
    return section(
        "What was run",
        table(("", ""), rows, text=True),
        folded("Configuration", json.dumps(config, indent=2, default=str)) if config else "",
    )


def _curve(lines: Sequence[Results], key: str, label: str) -> Series:
    found = [line for line in lines if isinstance(line.get(key), int | float)]
    return Series(label, [line[key] for line in found], [line["step"] for line in found])


def _layer_curve(lines: Sequence[Results], key: str, layer: int, layers: int) -> Series:
    found = [line for line in lines if key in line]
    hue = 205 - 190 * layer / max(1, layers - 1)
    return Series(
        f"layer {layer}",
        [line[key][layer] for line in found],
        [line["step"] for line in found],
        f"hsl({hue:.0f} 55% 52%)",
    )


def _per_layer(key: str, value: Any) -> bool:
    return key.startswith("layers/") and key.endswith("/grad_norm") and isinstance(value, list)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return number(value) if isinstance(value, float) else str(value)
