"""The sections on training, held-out proteins, the export, and the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from protlm_jax.evaluation import statistics
from protlm_jax.report import page
from protlm_jax.report.charts import curves, intervals
from protlm_jax.report.page import Piece, name
from protlm_jax.report.picture import number, steps

Results = Mapping[str, Any]
_LOSSES = {"hidden/nll": "training batches", "heldout/nll": "held-out batches"}


def training(lines: Sequence[Results], entropy: float | None) -> Piece:
    """Loss at hidden residues and gradient norms per layer, from the lines of metrics.jsonl."""
    rows = [
        {"series": label, "x": line["step"], "y": line[key]}
        for key, label in _LOSSES.items()
        for line in lines
        if isinstance(line.get(key), int | float)
    ]
    references = {"training frequencies": entropy} if entropy else {}
    parts = [
        page.picture(curves(rows, x="step", y="nats per hidden residue", references=references)),
        page.caption(
            "Cross-entropy at residues that the model is shown as mask; lower is better. The "
            "dashed line is the loss of predicting training frequencies."
        ),
    ]
    keys = {key for line in lines for key, value in line.items() if isinstance(value, list)}
    for key in sorted(k for k in keys if k.startswith("layers/") and k.endswith("/grad_norm")):
        stack = key.removeprefix("layers/").removesuffix("/grad_norm")
        found = [(line["step"], line[key]) for line in lines if key in line]
        layers = len(found[0][1])
        rows = [
            {"series": f"layer {layer}", "x": step, "y": norms[layer]}
            for layer in range(layers)
            for step, norms in found
        ]
        colours = {f"layer {layer}": hue for layer, hue in enumerate(steps(layers))}
        chart = curves(rows, x="step", y="gradient norm", colours=colours)
        parts += [
            page.heading(f"Gradient norm by layer, {stack}"),
            page.picture(chart),
            page.caption("Gradient norm per layer; diverging curves mean that layers learn at "
                         "different times. Blue is the first layer, orange the last."),
        ]  # fmt: skip
    return page.section("Training", *parts)


def heldout(result: Results) -> Piece:
    """The loss on held-out proteins beside its baselines."""
    systems = {"model": result["model"], **result["baselines"]}
    rows = [{"label": name(key), **one["nll"]} for key, one in systems.items()]
    differences = [
        (
            f"minus {name(key)}",
            statistics.written(e, 4, sign="+"),
            "-" if e["low"] is None else f"{e['low']:+.4f} to {e['high']:+.4f}",
        )
        for key, e in result["model_minus"].items()
    ]
    accuracy = statistics.written(result["model"]["accuracy"], 1, scale=100)
    return page.section(
        "Held-out proteins",
        page.caption(
            f"Scored on {result['targets']:,} hidden residues of {result['proteins']:,} proteins "
            f"that were not trained on. Perplexity {result['model']['perplexity']:.2f} (20 would "
            f"be a blind guess); the right residue comes first in {accuracy} %."
        ),
        page.picture(intervals(rows, x="nats per residue, 95 % interval over proteins")),
        page.table(("difference in nats", "± standard error", "95 % interval"), differences),
        page.caption(
            "This model minus each baseline: below zero the model predicts better, on the "
            "same residues of the same proteins (paired bootstrap)."
        ),
        page.folded("How it was measured", str(result.get("protocol", ""))),
    )


def first_numbers(result: Results) -> list[tuple[str, str]]:
    """The loss on held-out proteins and its difference from their own composition, with words."""
    gap = result["model_minus"]["own_composition"]["value"]
    return [
        (f"{result['model']['nll']['value']:.3f}", "nats per hidden residue"),
        (f"{gap:+.3f}", "nats against the protein's own composition"),
    ]


def export(result: Results) -> Piece:
    """What was checked after loading the exported folder back."""
    return page.section(
        "Export",
        page.caption(
            "The exported folder, loaded back by another library and compared with this one."
        ),
        _listed(result, "what", omit=("summary",)),
    )


def run(result: Results) -> Piece:
    """Command, machine, versions, timings; the configuration folded away."""
    config = result.get("config")
    return page.section(
        "What was run",
        _listed(result, "", omit=("config", "title")),
        page.folded("Configuration", json.dumps(config, indent=2, default=str)) if config else "",
    )


def _listed(result: Results, title: str, omit: Sequence[str]) -> Piece:
    rows = [(name(key), _plain(value)) for key, value in result.items() if key not in omit]
    return page.table((title, ""), rows, kind="text")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return number(value) if isinstance(value, float) else str(value)
