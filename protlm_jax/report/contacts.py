"""The section on contacts: how many of the most probable pairs are true, beside the controls."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.contacts.run import estimate, uses
from protlm_jax.report import page
from protlm_jax.report.charts import bars, intervals
from protlm_jax.report.page import Piece

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

    def cell(way: str, kind: str, count: str) -> str:
        return statistics.written(estimate(data, "mean", way, kind, count), 1, scale=100)

    rows = [
        (f"{kind}, {count}", *(cell(way, kind, count) for way in predictors),
         cell("regression", kind, "chance"))
        for kind in ranges for count in ("L", "L/2", "L/5")
    ]  # fmt: skip
    gaps = [
        page.difference(f"{kind} range: regression minus {_NAMES[way]}, points", found, 100)
        for kind in ranges
        for way in predictors[1:]
        if (found := estimate(data, "difference", way, kind, "L"))
    ]
    dots = [
        {
            "label": f"{kind} range, {_RANGES[kind]}",
            "series": _NAMES[way],
            **page.around(found, 100),
        }
        for way in predictors
        for kind in ranges
        if (found := estimate(data, "mean", way, kind, "L"))
    ]
    shares = data["share"].sum("head").values.tolist()
    weights = [{"label": str(i), "value": share} for i, share in enumerate(shares)]
    left = attributes["left_out"]
    omitted = f" {left:,} test chains are longer than the model takes." if left else ""
    axis = "percent true of the L most probable pairs, ± one standard error"
    return page.section(
        about["title"],
        page.claims(gaps),
        page.picture(intervals(dots, x=axis)),
        page.table(("percent true", *map(_NAMES.get, predictors), "any pairs"), rows, "views"),
        page.caption(
            "Share of the L, L/2 and L/5 most probable pairs of a range that are in contact, L "
            f"being the residues of a chain: mean over {data.sizes['protein']:,} chains, ± one "
            f"standard error. Claims are on the L most probable, paired over chains.{omitted}"
        ),
        page.heading("Where the contacts are read"),
        page.picture(bars(weights, x="block", y="share of weight")),
        page.caption(
            f"{uses(data)}, {attributes['contacts']:,} of them contacts. Bars: what each block's "
            "heads add to its answer, by size of weight and spread."
        ),
        page.unfolds("Notes on the data", *map(page.caption, about["notes"])),
        page.unfolds("Licences and sources", page.caption(about["licence"]),
                page.caption(f"Cite: {about['source']}")),
        page.folded("How it was measured", attributes["protocol"]),
    )  # fmt: skip
