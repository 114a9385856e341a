"""Charts of what was measured on one stack, whichever measurements there are.

A quantity is drawn by the names of its dimensions: over layers or depths it is a curve, over two of
them a heat map, and a dimension before those (a part, a block's size, a level of noise) gives one
of them each. What has other dimensions becomes a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import xarray

from protlm_jax.evaluation.depth.claims import span
from protlm_jax.evaluation.depth.results import names, records
from protlm_jax.evaluation.tables import Table
from protlm_jax.report.charts import curves
from protlm_jax.report.depth_panels import BY_NOISE, KNOWN, PANELS, Panel
from protlm_jax.report.grids import heat_maps
from protlm_jax.report.page import Piece, caption, heading, picture, table
from protlm_jax.report.picture import PALETTE, Row, number, steps
from protlm_jax.report.sections import name

CONTROL = "re-initialised"
# What an axis of layers counts.
_AXES = {
    "layer": "layer",
    "first": "first layer",
    "skipped": "layer left out",
    "depth": "layers passed",
    "at_depth": "layers passed",
}
_SCALES = ("noise", "size")  # dimensions whose entries are steps of one scale
_COLUMNS = {"affected": "later layer", "other_depth": "layers passed"}
_ENTRIES = {"layer": "whole layer", "mlp": "MLP"}
_MOST_ROWS = 60


def panels(stack: xarray.Dataset, control: xarray.Dataset | None = None) -> list[Piece]:
    """Every chart for which there is a measurement; a control's curves are dashed."""
    drawn = [_panel(panel, stack, control) for panel in PANELS]
    for key in names(stack):
        if key not in KNOWN:
            title = name(key).capitalize()
            drawn.append(_panel(Panel(title, {key: ""}, name(key), ""), stack, control))
    return [part for part in drawn if part]


def noise_panels(stack: xarray.Dataset) -> list[Piece]:
    """Of what was measured by level of noise, the whole layers' charts: a curve or map a level."""
    whole = stack.sel(part="layer") if "part" in stack.dims else stack
    return [_panel(panel, whole, None) for panel in PANELS if BY_NOISE & {*panel.quantities}]


def points(stack: xarray.Dataset, key: str, label: str = "") -> list[Row]:
    """A quantity over layers as points of curves, one for each entry of the dimensions before."""
    dims = list(map(str, stack[key].dims))
    rows: list[Row] = []
    for entry in records(stack, key):
        words = ", ".join(_entry(dim, entry[dim]) for dim in dims[:-1])
        series = ", ".join(filter(None, (label, words))) or name(key)
        row = {"series": series, "x": float(entry[dims[-1]]), "y": entry["value"]}
        rows.append(row | {end: entry[end] for end in ("low", "high") if end in entry})
    return rows


def cells(stack: xarray.Dataset, key: str) -> dict[str, list[Row]]:
    """By map the cells above the diagonal: elsewhere an effect says nothing."""
    *lead, row, column = map(str, stack[key].dims)
    maps: dict[str, list[Row]] = {}
    for entry in records(stack, key):
        words = ", ".join(_entry(dim, entry[dim]) for dim in lead)
        if entry[column] > entry[row]:
            place = {"row": entry[row], "column": entry[column]}
            numbers = {f: entry[f] for f in ("value", "low", "high", "largest") if f in entry}
            maps.setdefault(words, []).append(place | numbers)
    return maps


def _panel(panel: Panel, stack: xarray.Dataset, control: xarray.Dataset | None) -> Piece:
    there = {key: label for key, label in panel.quantities.items() if key in stack}
    if not there:
        return Piece("")
    first = next(iter(there))
    kind = _kind(stack, first)
    if kind == "table":
        chart = _table(stack, first)
    elif kind == "map":
        chart = _maps(stack, control, first)
    else:
        chart = _chart(panel, stack, control, there)
    words = caption(panel.words) if panel.words else Piece("")
    return heading(panel.title) + chart + words if chart.strip() else Piece("")


def _chart(
    panel: Panel, stack: xarray.Dataset, control: xarray.Dataset | None, there: Mapping[str, str]
) -> Piece:
    rows = [row for key, label in there.items() for row in points(stack, key, label)]
    series = list(dict.fromkeys(row["series"] for row in rows))
    dims = list(map(str, stack[next(iter(there))].dims))
    scaled = dims[0] in _SCALES and len(series) > 2
    colours = steps(len(series)) if scaled else PALETTE[: len(series)]
    if control is not None:
        alone = len(series) == 1
        twins = [row for key, label in there.items() if key in control
                 for row in points(control, key, label)]  # fmt: skip
        mine = "this model" if alone else ""
        rows = [{**row, "series": mine or row["series"], "dashed": False} for row in rows]
        for row in twins:
            words = CONTROL if alone else f"{row['series']}, {CONTROL}"
            rows.append({**row, "series": words, "dashed": True})
        there_too = [s for s in series if any(row["series"] == s for row in twins)]
        again = [colours[series.index(s)] for s in there_too]
        colours = [*colours, *(["var(--soft)"] if alone and twins else again)]
    return picture(
        curves(
            rows,
            x=_AXES.get(dims[-1], name(dims[-1])),
            y=panel.unit,
            references={"blind guess": math.log(20)} if panel.guess else None,
            whole=dims[-1] in _AXES,
            colours=colours,
        ),
        label=panel.title,
    )


def _maps(stack: xarray.Dataset, control: xarray.Dataset | None, key: str) -> Piece:
    maps = {words or "this model": some for words, some in cells(stack, key).items()}
    if len(maps) == 1 and control is not None and key in control:
        maps[CONTROL] = cells(control, key)[""]
    row, column = map(str, stack[key].dims[-2:])
    if not any(cell["value"] for some in maps.values() for cell in some):
        return Piece("")
    return picture(heat_maps(maps, row=_AXES[row], column=_COLUMNS[column]), label=name(key))


def _kind(stack: xarray.Dataset, key: str) -> str:
    """How a quantity is drawn: "curve", "map", or as a "table"."""
    dims = list(map(str, stack[key].dims))
    rest = [dim for dim in dims if dim in _COLUMNS]
    if len(dims) > 1 and rest == dims[-1:] and dims[-2] in _AXES:
        return "map"
    return "curve" if dims and dims[-1] in (*_AXES, *_SCALES) else "table"


def _entry(dim: str, label: Any) -> str:
    """An entry of a dimension, for people."""
    if isinstance(label, str):
        return _ENTRIES.get(label, name(label))
    words = {"size": "{} layers", "noise": "{} hidden"}.get(dim, f"{name(dim)} {{}}")
    return words.format(number(label))


def _table(stack: xarray.Dataset, key: str) -> Piece:
    """Every entry with its interval, up to a number of them."""
    dims = list(map(str, stack[key].dims))
    found = records(stack, key)
    rows = [
        [*(_entry(dim, x[dim]) for dim in dims), x["value"], span(x.get("low"), x.get("high"))]
        for x in found[:_MOST_ROWS]
    ]
    made = Table([*map(name, dims), "value", "95 % interval"], rows)
    more = "The other values are in the tables beside this page."
    end = caption(more) if len(found) > _MOST_ROWS else Piece("")
    return table(made.columns, made.cells()) + end
