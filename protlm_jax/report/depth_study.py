"""Several models in one report: side by side on relative depth, and a family over its depths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protlm_jax.report.charts import curves, trends
from protlm_jax.report.depth import WHAT, depth
from protlm_jax.report.depth_charts import CONTROL, cells, estimate, points
from protlm_jax.report.grids import heat_maps
from protlm_jax.report.page import Piece, caption, heading, picture, section, sentences, table
from protlm_jax.report.picture import PALETTE, Picture, Row, number

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


def depths(study: Results) -> Piece:
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
    return Piece("").join(parts)


def _trend(found: Results) -> Piece:
    """One family: table, chart and sentences."""
    there = [key for key in _TREND if any(key in row for row in found["rows"])]
    rows = [
        (row["model"], str(row["layers"]), *(estimate(row.get(k, {})) for k in there))
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
        picture(_trend_chart(found["rows"], there)),
        table(header, rows, kind="views wrap"),
        caption(_TREND_WORDS),
        caption(
            f"{runs}, and deeper models of a family are mostly wider and trained longer too: "
            "intervals are over proteins, and cannot tell depth from what came with it."
        ),
    )


def _trend_chart(rows: Sequence[Results], keys: Sequence[str]) -> Picture:
    """A dot for each model, and a line through the means of each depth; controls dashed."""
    dots = [
        {"series": _TREND[key], "x": row["layers"], "y": row[key]["value"], "low": row[key]["low"],
         "high": row[key]["high"], "dashed": row["control"], "place": row["model"]}
        for key in keys for row in rows if key in row
    ]  # fmt: skip
    return trends(dots, x="layers", y="share, or norm / stream")


def _compared(models: Results, twins: Results) -> list[Piece]:
    """Curves over layers as a share of all, and the maps of all models on one scale."""
    stacks = {
        (title if len(x["stacks"]) == 1 else f"{title}, {stack}"): (title, stack)
        for title, x in models.items()
        for stack in x["stacks"]
    }
    parts = []
    for key, (heading_, unit, passed) in _SIDES.items():
        rows: list[Row] = []
        colours = []
        for index, (label, (title, stack)) in enumerate(stacks.items()):
            for source, words in (
                (models[title], label),
                (twins.get(title), f"{label}, {CONTROL}"),
            ):
                measured = source["stacks"][stack] if source else {"quantities": {}}
                if key in measured["quantities"]:
                    rows += _relative(measured, key, passed, words, source is not models[title])
                    colours.append(PALETTE[index % len(PALETTE)])
        if len(colours) > 1:
            chart = curves(rows, x="relative depth", y=unit, colours=colours)
            parts += [heading(heading_), picture(chart, label=heading_)]
    maps = {
        label: cells(models[title]["stacks"][stack]["quantities"]["skip_effect"])
        for label, (title, stack) in stacks.items()
        if "skip_effect" in models[title]["stacks"][stack]["quantities"]
    }
    if len(maps) > 1:
        chart = heat_maps(maps, row="layer left out", column="later layer")
        parts += [heading("Who builds on whom"), picture(chart, label="Who builds on whom")]
    words = (
        "Layers are placed from 0, the first, to 1, the last; bands are 95 % intervals. Dashed: "
        "re-initialised copies. A click on a name in a legend shows it alone."
    )
    return [caption(words), *parts]


def _relative(
    measured: Results, key: str, passed: bool, series: str, dashed: bool
) -> list[dict[str, Any]]:
    """The whole layer's curve of a quantity, over relative depth."""
    layers, found = measured["layers"], points(measured, key)
    last = max(layers if passed else layers - 1, 1)
    where = "after {} of {} layers" if passed else "layer {} of {}"
    return [
        {**row, "series": series, "dashed": dashed, "x": row["x"] / last,
         "place": where.format(number(row["x"]), layers)}
        for row in found if row["series"] == found[0]["series"]
    ]  # fmt: skip
