"""Charts of what was measured on one stack, whichever measurements there are.

A quantity is drawn by the names of its dimensions: over layers or depths it is a curve, over two of
them a heat map, and a dimension before those (a part, a block's size, a level of noise) gives one
of them each. What has other dimensions becomes a table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from protlm_jax.evaluation.report.depth_panels import BY_NOISE, KNOWN, PANELS, Panel
from protlm_jax.evaluation.report.frame import colour_of, number
from protlm_jax.evaluation.report.page import caption, grid, heading, table, titled
from protlm_jax.evaluation.report.sections import name
from protlm_jax.evaluation.report.svg import Series, heat_map, largest_of, line_chart

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


def panels(stack: Results, control: Results | None = None) -> list[str]:
    """Every chart for which there is a measurement; a control's curves are dashed."""
    drawn = [_panel(panel, stack, control) for panel in PANELS]
    for key in stack["quantities"]:
        if key not in KNOWN:
            title = name(key).capitalize()
            drawn.append(_panel(Panel(title, {key: ""}, name(key), ""), stack, control))
    return [part for part in drawn if part]


def noise_panels(stack: Results) -> list[str]:
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


def curves(stack: Results, key: str, label: str = "") -> list[Series]:
    """A quantity over layers, one curve for each entry of the dimensions before it."""
    found: list[Series] = []
    for words, x in _entries(stack, key):
        (dim,) = x["dims"]
        places = stack["coords"].get(dim, range(len(x["values"])))
        found.append(
            Series(
                ", ".join(filter(None, (label, words))) or name(key),
                x["values"],
                [float(place) for place in places],
                low=x.get("low", ()),
                high=x.get("high", ()),
            )
        )
    return found


def heats(maps: Sequence[tuple[str, Results]], row_label: str, column_label: str) -> str:
    """Heat maps in the same colours, under their titles; only what lies above the diagonal."""
    above = [(title, {key: _above(x[key]) for key in _FIELDS if key in x}) for title, x in maps]
    most = max(largest_of(x["values"]) for _, x in above)
    charts = [
        heat_map(
            x["values"],
            row_label=row_label,
            column_label=column_label,
            low=x.get("low", ()),
            high=x.get("high", ()),
            largest=x.get("largest", ()),
            most=most,
        )
        for _, x in above
    ]
    if len(charts) > 1:
        named = [titled(title, "", chart) for (title, _), chart in zip(above, charts, strict=True)]
        charts = [grid("grid-of", named)]
    scale = f'<div class="scale"><span>0</span><i></i><span>{number(most, 2)}</span></div>'
    return f'<div class="heats">{charts[0]}{scale}</div>'


def _panel(panel: Panel, stack: Results, control: Results | None) -> str:
    there = {key: label for key, label in panel.quantities.items() if key in stack["quantities"]}
    if not there:
        return ""
    first = next(iter(there))
    kind = _kind(stack, first)
    if kind == "table":
        chart = _table(stack, first)
    elif kind == "map":
        chart = _maps(stack, control, first)
    else:
        chart = _chart(panel, stack, control, there)
    words = caption(panel.words) if panel.words else ""
    return f"{heading(panel.title)}{chart}{words}" if chart else ""


def _chart(panel: Panel, stack: Results, control: Results | None, there: Results) -> str:
    series = [each for key, label in there.items() for each in curves(stack, key, label)]
    scale = len(series) if stack["quantities"][next(iter(there))]["dims"][0] in _SCALES else 0
    series = [replace(each, colour=_hue(i, scale)) for i, each in enumerate(series)]
    if len(series) == 1 and control is not None:
        series = [replace(series[0], label="this model")]
    by_label = {each.label: each.colour for each in series}
    twins = [each for key, label in there.items() if control and key in control["quantities"]
             for each in curves(control, key, label)]  # fmt: skip
    for twin in twins:
        own = len(by_label) == 1
        colour = "var(--soft)" if own else by_label[twin.label]
        label = CONTROL if own else f"{twin.label}, {CONTROL}"
        series.append(replace(twin, label=label, colour=colour, dashed=True))
    dim = stack["quantities"][next(iter(there))]["dims"][-1]
    return line_chart(
        series,
        x_label=_AXES.get(dim, name(dim)),
        y_label=panel.unit,
        references=[("blind guess", math.log(20))] if panel.guess else (),
        whole=dim in _AXES,
    )


def _hue(index: int, scale: int) -> str:
    """The colour of a curve; of steps of one scale, from the first to the last of so many."""
    return f"var(--s{round(4 * index / (scale - 1))})" if scale > 2 else colour_of(index)


def _maps(stack: Results, control: Results | None, key: str) -> str:
    maps = [(words or "this model", x) for words, x in _entries(stack, key)]
    if len(maps) == 1 and control is not None and key in control["quantities"]:
        maps += [(CONTROL, x) for _, x in _entries(control, key)]
    row, column = maps[0][1]["dims"]
    if not any(largest_of(_above(x["values"])) for _, x in maps):
        return ""
    return heats(maps, _AXES[row], _COLUMNS[column])


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


def _above(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """What lies above the diagonal; None elsewhere, where an effect says nothing."""
    return [[x if c > r else None for c, x in enumerate(row)] for r, row in enumerate(rows)]


def _table(stack: Results, key: str) -> str:
    """Every entry with its interval, up to a number of them."""
    x = stack["quantities"][key]
    rows = list(itertools.islice(_flat(stack, x, x["dims"]), _MOST_ROWS + 1))
    more = (
        caption("More of it is in the tables beside this page.") if len(rows) > _MOST_ROWS else ""
    )
    body = [("", cells) for cells in rows[:_MOST_ROWS]]
    return table((*map(name, x["dims"]), "value"), body) + more


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
