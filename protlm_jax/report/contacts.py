"""The contact part of the report: how many of the surest pairs are true, beside the controls."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.contacts.run import estimate, uses
from protlm_jax.report.charts import bars, intervals
from protlm_jax.report.page import (
    Piece,
    caption,
    folded,
    heading,
    headline,
    picture,
    section,
    table,
    unfolds,
)
from protlm_jax.report.picture import Picture
from protlm_jax.report.sections import around
from protlm_jax.report.verdict import errors_in_words

if TYPE_CHECKING:
    import xarray

_RANGES = {"long": "24 apart or more", "medium": "12 to 23 apart", "short": "6 to 11 apart"}
_NAMES = {
    "regression": "regression over heads",
    "own_head": "the model's own head",
    "random": "regression, random weights",
    "separation": "nearest pairs first",
}


def contacts(data: xarray.Dataset) -> Piece:
    """Precision by range of separation, differences, and which layers the regression reads."""
    about, attributes = json.loads(data.attrs["benchmark"]), data.attrs
    predictors = data["predictor"].values.tolist()
    ranges = [kind for kind in _RANGES if estimate(data, "mean", "regression", kind, "L")]

    def cell(name: str, way: str, kind: str, count: str, sign: str = "") -> str:
        return statistics.written(estimate(data, name, way, kind, count), 1, scale=100, sign=sign)

    rows = [
        (f"{kind}, {count}", *(cell("mean", way, kind, count) for way in predictors),
         cell("mean", "regression", kind, "chance"))
        for kind in ranges for count in ("L", "L/2", "L/5")
    ]  # fmt: skip
    gaps = [(r, *(cell("difference", way, r, "L", "+") for way in predictors[1:])) for r in ranges]
    shares = data["share"].sum("head").values.tolist()
    weights = [{"label": str(i), "value": share} for i, share in enumerate(shares)]
    left = attributes["left_out"]
    omitted = f" {left:,} test chains are longer than the model takes." if left else ""
    titles = [_NAMES[way] for way in predictors]
    return section(
        about["title"],
        headline(_verdict(data, ranges[0])) if ranges else "",
        picture(_dots(data, ranges)),
        table(("percent true", *titles, "any pairs"), rows, kind="views"),
        caption(
            "Share of the L, L/2 and L/5 most probable pairs of a range that are in contact, L "
            f"being the residues of a chain: mean over {data.sizes['protein']:,} chains, ± one "
            f"standard error.{omitted}"
        ),
        table(("regression minus", *titles[1:]), gaps, kind="views"),
        caption("Of the L most probable pairs, paired over chains."),
        heading("Where the contacts are read"),
        picture(bars(weights, x="block", y="share of weight")),
        caption(
            f"{uses(data)}, {attributes['contacts']:,} of them contacts. Bars: what each block's "
            "heads add to its answer, by size of weight and spread."
        ),
        unfolds("Notes on the data", *map(caption, about["notes"])) if about["notes"] else "",
        unfolds("Licences and sources", caption(about["licence"]),
                caption(f"Cite: {about['source']}")),
        folded("How it was measured", attributes["protocol"]),
    )  # fmt: skip


def _verdict(data: xarray.Dataset, kind: str) -> str:
    """Of the first range: the score, chance, and the lead over the strongest control."""
    chance = estimate(data, "mean", "regression", kind, "chance") or {}
    score = statistics.written(estimate(data, "mean", "regression", kind, "L"), 1, scale=100)
    text = (
        f"Of the L most probable {kind}-range pairs, {score}\u00a0% are contacts (any pairs: "
        f"{100 * chance['value']:.1f}\u00a0%)"
    )
    controls = [way for way in ("random", "separation") if way in data["predictor"]]
    against = {w: gap for w in controls if (gap := estimate(data, "difference", w, kind, "L"))}
    if not against:
        return f"{text}."
    way, gap = min(against.items(), key=lambda item: float(item[1]["value"]))
    side = "above" if gap["value"] >= 0 else "below"
    return (
        f"{text}, {100 * abs(gap['value']):.1f} points {side} the strongest control, "
        f"{_NAMES[way]} ({errors_in_words(gap)})."
    )


def _dots(data: xarray.Dataset, ranges: list[str]) -> Picture:
    rows = [
        {"label": f"{kind} range, {_RANGES[kind]}", "series": _NAMES[way], **around(found, 100)}
        for way in data["predictor"].values.tolist()
        for kind in ranges
        if (found := estimate(data, "mean", way, kind, "L"))
    ]
    return intervals(rows, x="percent true of the L most probable pairs, ± one standard error")
