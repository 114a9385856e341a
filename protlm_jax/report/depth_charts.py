"""Charts of what was measured on one stack, whichever measurements there are.

A quantity is drawn by the names of its dimensions: over layers or depths it is a curve, over two of
them a heat map, and a dimension before those (a part, a block's size, a level of noise) gives one
of them each. What has other dimensions becomes a table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protlm_jax.report.charts import curves
from protlm_jax.report.depth_panels import BY_NOISE, KNOWN, PANELS, Panel
from protlm_jax.report.grids import heat_maps
from protlm_jax.report.page import Piece, caption, heading, picture, table
from protlm_jax.report.picture import PALETTE, Row, number, steps
from protlm_jax.report.sections import name

Results = Mapping[str, Any]

CONTROL = "re-initialised"
# What an axis of layers counts.
_AXES = {
    "layer": "layer",
    "skipped": "layer left out",
    "depth": "layers passed",
    "at_depth": "layers passed",
}
_SCALES = ("noise", "size")  # dimensions whose entries are steps of one scale
_COLUMNS = {"affected": "later layer", "other_depth": "layers passed"}
_ENTRIES = {"layer": "whole layer", "mlp": "MLP"}
_FIELDS = ("values", "low", "high", "largest")
_MOST_ROWS = 60


def panels(stack: Results, control: Results | None = None) -> list[Piece]:
    """Every chart for which there is a measurement; a control's curves are dashed."""
    drawn = [_panel(panel, stack, control) for panel in PANELS]
    for key in stack["quantities"]:
        if key not in KNOWN:
            title = name(key).capitalize()
            drawn.append(_panel(Panel(title, {key: ""}, name(key), ""), stack, control))
    return [part for part in drawn if part]


def noise_panels(stack: Results) -> list[Piece]:
    """Of what was measured by level of noise, the whole layers' charts: a curve or map a level."""
    whole = {dim: list(labels) for dim, labels in stack["coords"].items()}
    quantities = {}
    for key, x in stack["quantities"].items():
        if x["dims"][:2] == ["noise", "part"]:
            x = {f: [level[0] for level in x[f]] for f in _FIELDS if f in x} | {
                "dims": ["noise", *x["dims"][2:]]
            }
        quantities[key] = x
    picked = {**stack, "coords": whole, "quantities": quantities}
    return [_panel(panel, picked, None) for panel in PANELS if BY_NOISE & {*panel.quantities}]


def points(stack: Results, key: str, label: str = "") -> list[Row]:
    """A quantity over layers as points of curves, one for each entry of the dimensions before."""
    rows: list[Row] = []
    for words, x in _entries(stack, key):
        (dim,) = x["dims"]
        series = ", ".join(filter(None, (label, words))) or name(key)
        for i, place in enumerate(stack["coords"].get(dim, range(len(x["values"])))):
            ends = {end: x[end][i] for end in ("low", "high") if end in x}
            rows.append({"series": series, "x": float(place), "y": x["values"][i], **ends})
    return rows


def cells(x: Results) -> list[Row]:
    """The cells of a map that lie above the diagonal: elsewhere an effect says nothing."""
    fields = {"value": "values", "low": "low", "high": "high", "largest": "largest"}
    return [
        {"row": r, "column": c, **{f: x[key][r][c] for f, key in fields.items() if key in x}}
        for r, row in enumerate(x["values"])
        for c in range(r + 1, len(row))
    ]


def _panel(panel: Panel, stack: Results, control: Results | None) -> Piece:
    there = {key: label for key, label in panel.quantities.items() if key in stack["quantities"]}
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


def _chart(panel: Panel, stack: Results, control: Results | None, there: Results) -> Piece:
    rows = [row for key, label in there.items() for row in points(stack, key, label)]
    series = list(dict.fromkeys(row["series"] for row in rows))
    first = stack["quantities"][next(iter(there))]["dims"]
    scaled = first[0] in _SCALES and len(series) > 2
    colours = steps(len(series)) if scaled else PALETTE[: len(series)]
    if control is not None:
        alone = len(series) == 1
        twins = [row for key, label in there.items() if key in control["quantities"]
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
            x=_AXES.get(first[-1], name(first[-1])),
            y=panel.unit,
            references={"blind guess": math.log(20)} if panel.guess else None,
            whole=first[-1] in _AXES,
            colours=colours,
        ),
        label=panel.title,
    )


def _maps(stack: Results, control: Results | None, key: str) -> Piece:
    maps = {words or "this model": x for words, x in _entries(stack, key)}
    if len(maps) == 1 and control is not None and key in control["quantities"]:
        maps[CONTROL] = next(x for _, x in _entries(control, key))
    row, column = next(iter(maps.values()))["dims"]
    drawn = {title: cells(x) for title, x in maps.items()}
    if not any(cell["value"] for some in drawn.values() for cell in some):
        return Piece("")
    return picture(heat_maps(drawn, row=_AXES[row], column=_COLUMNS[column]), label=name(key))


def _kind(stack: Results, key: str) -> str:
    """How a quantity is drawn: "curve", "map", or as a "table"."""
    dims = stack["quantities"][key]["dims"]
    rest = [dim for dim in dims if dim in _COLUMNS]
    if len(dims) > 1 and rest == dims[-1:] and dims[-2] in _AXES:
        return "map"
    numeric = dims and all(
        isinstance(place, int | float) for place in stack["coords"].get(dims[-1], "-")
    )
    return "curve" if dims and not rest and (dims[-1] in _AXES or numeric) else "table"


def _entries(stack: Results, key: str) -> Iterator[tuple[str, Results]]:
    """The curves or maps in a quantity: words on its leading dimensions, and the rest of it."""
    x = stack["quantities"][key]
    kept = 2 if _kind(stack, key) == "map" else 1
    lead = x["dims"][:-kept]
    sizes = [len(stack["coords"].get(dim, ())) or len(x["values"]) for dim in lead]
    for places in itertools.product(*map(range, sizes)):
        words = ", ".join(_entry(stack, dim, i) for dim, i in zip(lead, places, strict=True))
        part: dict[str, Any] = {"dims": x["dims"][-kept:]}
        for field in _FIELDS:
            if field in x:
                part[field] = x[field]
                for i in places:
                    part[field] = part[field][i]
        yield words, part


def _entry(stack: Results, dim: str, index: int) -> str:
    """An entry of a dimension, for people."""
    label = stack["coords"].get(dim, range(index + 1))[index]
    if isinstance(label, str):
        return _ENTRIES.get(label, name(label))
    words = {"size": "{} layers", "noise": "{} hidden"}.get(dim, f"{name(dim)} {{}}")
    return words.format(number(label))


def _table(stack: Results, key: str) -> Piece:
    """Every entry with its interval, up to a number of them."""
    x = stack["quantities"][key]
    rows = list(itertools.islice(_flat(stack, x, x["dims"]), _MOST_ROWS + 1))
    found = table((*map(name, x["dims"]), "value"), rows[:_MOST_ROWS])
    if len(rows) <= _MOST_ROWS:
        return found
    return found + caption("The other values are in the tables beside this page.")


def _flat(stack: Results, x: Results, dims: Sequence[str]) -> Iterator[tuple[str, ...]]:
    if not dims:
        yield (estimate({**x, "value": x["values"]}),)
        return
    for i in range(len(x["values"])):
        part = {k: x[k][i] for k in ("values", "low", "high") if k in x}
        for cells in _flat(stack, part, dims[1:]):
            yield (_entry(stack, dims[0], i), *cells)


def estimate(x: Results) -> str:
    """A value and its interval: "0.31 (0.28 to 0.34)"."""
    text = number(x.get("value"))
    if x.get("low") is None or x.get("high") is None:
        return text
    return f"{text} ({number(x['low'])} to {number(x['high'])})"
