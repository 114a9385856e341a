"""Several models in one report: side by side on relative depth, and a family over its depths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from statistics import fmean
from typing import Any

from protlm_jax.evaluation.report.depth import WHAT, depth
from protlm_jax.evaluation.report.depth_charts import CONTROL, curves, estimate, heats
from protlm_jax.evaluation.report.frame import Frame, colour_of, number, ticks
from protlm_jax.evaluation.report.page import caption, heading, section, sentences, table
from protlm_jax.evaluation.report.svg import Series, figure, line_chart

Results = Mapping[str, Any]

# Quantity -> title, unit, and whether it counts layers passed.
_SIDES = {
    "skip_kl": ("What the answer loses without a layer", "nats per residue", False),
    "skip_delta_nll": ("Rise of the loss without a layer", "nats per residue", False),
    "lens_nll": ("Loss if the answer were read early", "nats per residue", True),
    "tuned_lens_nll": ("The same through a trained map", "nats per residue", True),
    "relative_contribution": ("Size of what a layer adds", "norm / stream", False),
    "cosine": ("Direction of what a layer adds", "cosine with stream", False),
    "block_influence": ("How far a layer turns the stream", "1 - cosine", False),
    "effective_rank": ("Directions in use", "effective rank", True),
}
_TREND = {
    "depth_score": "depth score",
    "small_share": "layers below 0.05 nats",
    "exit_depth": "95 % of the answer",
    "late_contribution": "late contribution",
}
_TREND_WORDS = (
    "Depth score: where the layers' effect on later ones has its centre, from 0, the first, to 1, "
    "the last. Layers below 0.05 nats: the share without which, one at a time, the answer changes "
    "by less. 95 % of the answer: the share of the depth after which the model's head reads it. "
    "Late contribution: norm of what a layer of the second half adds, relative to the stream."
)


def depths(study: Results) -> str:
    """Trends first, then models side by side, then each of them.

    Args:
        study: of `evaluation.depth.study.study`.
    """
    models = study["models"]
    trained = {title: x for title, x in models.items() if not x["control_of"]}
    twins = {x["control_of"]: x for x in models.values() if x["control_of"]}
    parts = [_trend(found) for found in study["trends"]]
    if len(trained) > 1:
        parts.append(section("Models side by side", *_compared(trained, twins)))
    for title, x in trained.items():
        shown = WHAT if len(trained) == 1 else title
        parts.append(depth(x, twins.get(title), shown, fold=len(trained) > 2))
    return "".join(parts)


def _trend(found: Results) -> str:
    """One family: table, chart and sentences."""
    there = [key for key in _TREND if any(key in row for row in found["rows"])]
    rows = [
        ("", (f"{row['model']}", str(row["layers"]), *(estimate(row.get(k, {})) for k in there)))
        for row in found["rows"]
    ]
    header = ("model", "layers", *(_TREND[key] for key in there))
    single = len({row["layers"] for row in found["rows"]}) == sum(
        not row["control"] for row in found["rows"]
    )
    runs = "There is one model of each depth" if single else "There are few models of each depth"
    return section(
        f"Trend across depth: {found['family']}, {found['stack']}",
        sentences(found["reading"]),
        _trend_chart(found["rows"], there),
        table(header, rows, kind="views wrap"),
        caption(_TREND_WORDS),
        caption(
            f"{runs}, and deeper models of a family are mostly wider and trained longer too: "
            "intervals are over proteins, and cannot tell depth from what came with it."
        ),
    )


def _trend_chart(rows: Sequence[Results], keys: Sequence[str]) -> str:
    """A dot for each model, and a line through the means of each depth; controls dashed."""
    found = [(key, row, row[key]) for key in keys for row in rows if key in row]
    if not found:
        return ""
    layers = [row["layers"] for row in rows]
    highest = max(x["high"] or x["value"] for _, _, x in found)
    frame = Frame(sorted({*layers}), ticks(0.0, max(highest, 0.1)), height=270)
    parts = [frame.axes("layers", "share, or norm / stream")]
    for index, key in enumerate(keys):
        hue, marks = colour_of(index), []
        for control in (False, True):
            mine = [(row, row[key]) for row in rows if key in row and row["control"] == control]
            marks.append(_means(frame, mine, f"stroke:{hue}" + ";stroke-dasharray:5 4" * control))
            marks += [_dot(frame, row, x, hue, _TREND[key]) for row, x in mine]
        parts.append(f'<g data-s="{index}">{"".join(marks)}</g>')
    return figure("".join(parts), 270, "trend", [Series(_TREND[key], []) for key in keys])


def _means(frame: Frame, rows: Sequence[tuple[Results, Results]], style: str) -> str:
    by_depth: dict[int, list[float]] = {}
    for row, x in rows:
        by_depth.setdefault(row["layers"], []).append(x["value"])
    path = "L".join(
        f"{frame.x(depth):.1f} {frame.y(fmean(values)):.1f}"
        for depth, values in sorted(by_depth.items())
    )
    return f'<path class="curve" style="{style}" d="M{path}"/>' if path else ""


def _dot(frame: Frame, row: Results, x: Results, hue: str, what: str) -> str:
    at, whisker = frame.x(row["layers"]), ""
    if x["low"] is not None:
        whisker = (
            f'<path class="error" style="stroke:{hue}" '
            f'd="M{at:.1f} {frame.y(x["low"]):.1f}V{frame.y(x["high"]):.1f}"/>'
        )
    fill = "var(--paper)" if row["control"] else hue
    words = f"{row['model']}, {row['layers']} layers\n{what}: {estimate(x)}"
    return (
        f'{whisker}<circle class="dot" style="fill:{fill};stroke:{hue}" cx="{at:.1f}" '
        f'cy="{frame.y(x["value"]):.1f}" r="3.6"><title>{escape(words)}</title></circle>'
    )


def _compared(models: Results, twins: Results) -> list[str]:
    """Curves over layers as a share of all, and the maps of all models in the same colours."""
    pairs = [(title, stack) for title, x in models.items() for stack in x["stacks"]]
    colours = {pair: colour_of(i) for i, pair in enumerate(pairs)}
    parts = []
    for key, (title, unit, passed) in _SIDES.items():
        series = []
        for (model, stack), hue in colours.items():
            label = model if len(models[model]["stacks"]) == 1 else f"{model}, {stack}"
            for source, words, dashed in (
                (models[model], label, False),
                (twins.get(model), f"{label}, {CONTROL}", True),
            ):
                measured = source["stacks"][stack] if source else {"quantities": {}}
                if key in measured["quantities"]:
                    curve = _relative(measured, key, passed)
                    series.append(replace(curve, label=words, colour=hue, dashed=dashed))
        if len(series) > 1:
            parts.append(heading(title))
            parts.append(line_chart(series, x_label="relative depth", y_label=unit))
    maps = [
        (title if len(models[title]["stacks"]) == 1 else f"{title}, {stack}",
         models[title]["stacks"][stack]["quantities"]["skip_effect"])
        for title, stack in pairs
        if "skip_effect" in models[title]["stacks"][stack]["quantities"]
    ]  # fmt: skip
    if len(maps) > 1:
        parts += [heading("Who builds on whom"), heats(maps, "layer left out", "later layer")]
    words = (
        "Layers are placed from 0, the first, to 1, the last; bands are 95 % intervals. Dashed: "
        "re-initialised copies. A click on a name in a legend hides or shows it."
    )
    return [caption(words), *parts]


def _relative(measured: Results, key: str, passed: bool) -> Series:
    """The whole layer's curve of a quantity, over relative depth."""
    curve = curves(measured, key)[0]
    layers = measured["layers"]
    last = max(layers if passed else layers - 1, 1)
    where = "after {} of {} layers" if passed else "layer {} of {}"
    return replace(
        curve,
        x=[x / last for x in curve.x],
        names=[where.format(number(x), layers) for x in curve.x],
    )
