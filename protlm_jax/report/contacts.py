"""The contact part of the report: how many of the surest pairs are true, beside the controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protlm_jax.evaluation import statistics
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
from protlm_jax.report.sections import around, name
from protlm_jax.report.verdict import errors_in_words

Results = Mapping[str, Any]

_RANGES = {"long": "24 apart or more", "medium": "12 to 23 apart", "short": "6 to 11 apart"}
_NAMES = {
    "regression": "regression over heads",
    "own_head": "the model's own head",
    "random": "regression, random weights",
    "separation": "nearest pairs first",
}


def contacts(result: Results) -> Piece:
    """Precision by range of separation, differences, and which layers the regression reads."""
    predictors, about = result["predictors"], result["benchmark"]
    ranges = [r for r in _RANGES if predictors["regression"].get(r, {}).get("precision")]
    rows = [
        (f"{r}, {label}",
         *(_percent(found[r]["precision"].get(label)) for found in predictors.values()),
         _percent(predictors["regression"][r]["chance"]))
        for r in ranges for label in ("L", "L/2", "L/5")
    ]  # fmt: skip
    minus = result["model_minus"]
    gaps = [
        (r, *(_percent((by_range.get(r) or {}).get("L"), "+") for by_range in minus.values()))
        for r in ranges
    ]
    shares = result["regression"]["share_by_layer"]
    weights = [{"label": str(i), "value": share} for i, share in enumerate(shares)]
    left = result["left_out"]
    omitted = f" {left:,} test chains are longer than the model takes." if left else ""
    return section(
        about["title"],
        headline(_verdict(result, ranges[0])) if ranges else "",
        picture(_dots(result, ranges)),
        table(("percent true", *map(_title, predictors), "any pairs"), rows, kind="views"),
        caption(
            "Share of the L, L/2 and L/5 most probable pairs of a range that are in contact, L "
            f"being the residues of a chain: mean over {result['proteins']:,} chains, ± one "
            f"standard error.{omitted}"
        ),
        table(("regression minus", *map(_title, minus)), gaps, kind="views"),
        caption("Of the L most probable pairs, paired over chains."),
        heading("Where the contacts are read"),
        picture(bars(weights, x="block", y="share of weight")),
        caption(_fitted(result["regression"])),
        unfolds("Notes on the data", *map(caption, about["notes"])) if about["notes"] else "",
        unfolds("Licences and sources", caption(about["licence"]),
                caption(f"Cite: {about['source']}")),
        folded("How it was measured", result["protocol"]),
    )  # fmt: skip


def _verdict(result: Results, kind: str) -> str:
    """Of the first range: the score, chance, and the lead over the strongest control."""
    found = result["predictors"]["regression"][kind]
    chance = 100 * found["chance"]["value"]
    score = _percent(found["precision"]["L"])
    against = {
        way: gap
        for way in ("random", "separation")
        if (gap := (result["model_minus"].get(way, {}).get(kind) or {}).get("L"))
    }
    text = (
        f"Of the L most probable {kind}-range pairs, {score}\u00a0% are contacts (any pairs: "
        f"{chance:.1f}\u00a0%)"
    )
    if not against:
        return f"{text}."
    way, gap = min(against.items(), key=lambda item: item[1]["value"])
    side = "above" if gap["value"] >= 0 else "below"
    return (
        f"{text}, {100 * abs(gap['value']):.1f} points {side} the strongest control, "
        f"{_title(way)} ({errors_in_words(gap)})."
    )


def _dots(result: Results, ranges: list[str]) -> Picture:
    rows = [
        {"label": f"{r} range, {_RANGES[r]}", "series": _title(way), **around(found, 100)}
        for way, by_range in result["predictors"].items()
        for r in ranges
        if (found := by_range[r]["precision"].get("L"))
    ]
    return intervals(rows, x="percent true of the L most probable pairs, ± one standard error")


def _fitted(fitted: Results) -> str:
    return (
        f"The regression uses {fitted['heads_used']} of {fitted['heads']} heads, fitted on "
        f"{fitted['pairs']:,} pairs of {fitted['proteins']} chains, {fitted['contacts']:,} of them "
        "contacts. Bars: what each block's heads add to its answer, by size of weight and spread."
    )


def _title(way: str) -> str:
    return _NAMES.get(way, name(way))


def _percent(estimate: Results | None, sign: str = "") -> str:
    return statistics.written(estimate, 1, scale=100, sign=sign)
