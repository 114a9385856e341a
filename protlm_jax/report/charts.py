"""Builders of charts: rows of numbers in, a `Picture` out.

Rows are mappings, one for each mark, with the fields that a docstring names.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from protlm_jax.report.picture import (
    CLASSES,
    Picture,
    Row,
    Spec,
    colour,
    distinct,
    ends,
    finite,
    has,
    legend_switch,
    number,
    steps,
    tooltip,
)

MOST_POINTS = 240  # of a curve; more are averaged in groups
MOST_DOTS = 60  # a curve of more points has small dots
_FREE = {"zero": False}
_DASHES = {
    "field": "dashed", "type": "nominal", "legend": None,
    "scale": {"domain": [False, True], "range": [[1, 0], [5, 4]]},
}  # fmt: skip
_LOG = "1 - log(max({0}, {1})) / log({1})"


def curves(
    rows: Sequence[Row],
    *,
    x: str,
    y: str,
    references: Mapping[str, float] | None = None,
    whole: bool = False,
    whiskers: bool = False,
    colours: Mapping[str, str] | None = None,
) -> Picture:
    """Lines over x, through the mean of the rows that share an x, with intervals and dots.

    Args:
        rows: "series", "x", "y"; optionally "low" and "high" (an interval), "dashed" and "chosen"
            (true or false), "place" (what x is called).
        x, y: titles of the axes.
        references: horizontal lines by name.
        whole: no ticks between whole numbers of x.
        whiskers: intervals are bars, instead of bands.
        colours: by series.
    """
    points = _thinned(finite(rows, "x", "y"))
    series, place = distinct(points, "series"), "place" if has(points, "place") else "x"
    few = [name for name in series if sum(p["series"] == name for p in points) <= MOST_DOTS]
    pick, shown = legend_switch()
    up: Spec = {"field": "y", "type": "quantitative", "title": y, "scale": _FREE}
    hue = colour("series", series, colours or {}, {} if 1 < len(series) <= 14 else None)
    line: Spec = {"y": up | {"aggregate": "mean"}, "detail": {"field": "series"}}
    dot: Spec = {
        "y": up, "fill": hue,
        "size": {"condition": {"test": {"field": "series", "oneOf": few}, "value": 40}, "value": 4},
        "tooltip": tooltip({"series": "", place: x}, "y", y, points),
    }  # fmt: skip
    layers: list[Spec] = []
    if has(points, "low"):
        mark: Spec = {"type": "rule"} if whiskers else {"type": "area", "fillOpacity": 0.15}
        between = {"y": up | {"field": "low"}, "y2": {"field": "high"}}
        layers.append({"mark": mark, "encoding": between})
    if has(points, "dashed"):
        line["strokeDash"] = _DASHES
        dot["fillOpacity"] = {"condition": {"test": "datum.dashed", "value": 0}, "value": 1}
    layers.append({"mark": {"type": "line", "strokeWidth": 1.6}, "encoding": line})
    layers.append({"mark": {"type": "point", "strokeWidth": 1}, "encoding": dot})
    if any(row.get("chosen") for row in points):
        ring: Spec = {"type": "point", "size": 230, "strokeWidth": 1.6}
        chosen = [{"filter": "datum.chosen"}]
        layers.append({"mark": ring, "transform": chosen, "encoding": {"y": up}})
    layers[0]["params"] = [pick]
    shared = {
        "x": {
            "field": "x", "type": "quantitative", "title": x,
            "scale": {"zero": False, "nice": False, "padding": 8},
            "axis": {"grid": False, **({"tickMinStep": 1} if whole else {})},
        },
        "color": hue,
        "opacity": shown,
    }  # fmt: skip
    lines: Spec = {"layer": layers, "encoding": shared}
    chart = {"width": "container", "height": 230, "layer": [lines, *_lines(references or {})]}
    return Picture(chart, points, {"series": "series", place: x, "y": y} | ends(points))


def intervals(rows: Sequence[Row], *, x: str, colours: Mapping[str, str] | None = None) -> Picture:
    """A dot with its interval for each system, one below the other.

    Args:
        rows: "label", "value", "low", "high" (None: no line); optionally "series": then the dots of
            a label stand below each other in the colours of their series.
        x: title of the axis.
        colours: by series.
    """
    points = finite(rows, "value")
    labels, grouped = distinct(points, "label"), has(points, "series")
    names = distinct(points, "series") if grouped else labels
    series = {"series": "series"} if grouped else {}
    pick, shown = legend_switch()
    if not grouped:
        colours = dict.fromkeys(labels[1:], "var(--c1)")
    encoding: Spec = {
        "y": {"field": "label", "type": "nominal", "sort": labels, "title": None,
              "axis": {"ticks": False, "grid": grouped}},
        "color": colour("series" if grouped else "label", names, colours or {},
                        {} if grouped and len(names) > 1 else None),
        "tooltip": tooltip({"label": "", **series}, "value", x, points),
    }  # fmt: skip
    if grouped:
        encoding |= {"yOffset": {"field": "series", "sort": names}, "opacity": shown}
    across: Spec = {"field": "value", "type": "quantitative", "title": x, "scale": _FREE}
    line: Spec = {"type": "rule", "strokeWidth": 2.2, "strokeCap": "round"}
    chart = {
        "width": "container",
        "height": (max(34, 10 * len(names)) if grouped else 30) * len(labels),
        "layer": [
            {"mark": line, "encoding": {"x": across | {"field": "low"}, "x2": {"field": "high"}},
             "params": [pick] if grouped else []},
            {"mark": {"type": "circle", "size": 70}, "encoding": {"x": across}},
        ],
        "encoding": encoding,
    }  # fmt: skip
    return Picture(chart, points, {"label": "", **series, "value": x} | ends(points))


def bars(rows: Sequence[Row], *, x: str, y: str) -> Picture:
    """Bars from 0; rows have "label" and "value", `x` and `y` are titles of the axes."""
    found = finite(rows, "value")
    chart = {
        "width": "container",
        "height": 190,
        "mark": {"type": "bar", "color": "var(--c0)"},
        "encoding": {
            "x": {"field": "label", "type": "nominal", "sort": distinct(found, "label"),
                  "title": x, "axis": {"labelAngle": 0}},
            "y": {"field": "value", "type": "quantitative", "title": y},
            "tooltip": tooltip({"label": x}, "value", y, found),
        },
    }  # fmt: skip
    return Picture(chart, found, {"label": x, "value": y})


def heat_maps(maps: Mapping[str, Sequence[Row]], *, row: str, column: str) -> Picture:
    """Square maps from pale (0) to full colour, all on one scale, with switches.

    Args:
        maps: title -> cells: "row", "column", "value"; optionally "low", "high", "largest". Cells
            that are absent stay empty.
        row, column: what rows and columns count.
    """
    cells = [
        {"map": title, **cell} for title, some in maps.items() for cell in finite(some, "value")
    ]
    both, several = has(cells, "largest"), len(maps) > 1
    most = {
        field: max((cell.get(field) or 0.0 for cell in cells), default=0.0) or 1.0
        for field in ("value", "largest")
    }
    share = f"datum.value / {most['value']}"
    if both:
        share = f"(which == 'largest' ? datum.largest / {most['largest']} : {share})"
    least = min((cell["value"] for cell in cells if cell["value"] > 0), default=1.0)
    floor = min(max(least / most["value"], 1e-6), 0.5)
    shade = f"scale == 'log' ? {_LOG.format(share, floor)} : {share}"
    chart: Spec = {
        "width": 240 if several else 320,
        "height": 240 if several else 320,
        "transform": [{"calculate": shade, "as": "shade"}],
        "mark": {"type": "rect", "color": "var(--c0)"},
        "encoding": {
            "x": _ordinal(cells, "column", column),
            "y": _ordinal(cells, "row", row),
            "opacity": _opacity("shade", 1),
            "tooltip": tooltip({"row": row, "column": column}, "value", "value", cells),
        },
    }
    if several:
        chart = _facets(list(maps), 2, chart)
        chart["resolve"] = {"scale": {"x": "independent", "y": "independent"}}
    params = [_switch("scale", "colours ", ["linear", "log"])]
    params += [_switch("which", " of ", ["mean", "largest"])] if both else []
    table = {**({"map": ""} if several else {}), "row": row, "column": column, "value": "value"}
    more = {"largest": "largest"} if both else {}
    return Picture({**chart, "params": params}, cells, table | ends(cells) | more)


def confusion(counts: Sequence[Sequence[float]], classes: Sequence[str]) -> Picture:
    """Percentages of each row: true class by predicted class; counts under the pointer."""
    rows = [
        {"true": truth, "predicted": classes[c], "count": n, "percent": 100 * n / sum(line)}
        for truth, line in zip(classes, counts, strict=True)
        if sum(line)
        for c, n in enumerate(line)
    ]
    order = list(classes)
    size = min(58, max(30, 420 // max(len(order), 1))) * len(order)
    sides: Spec = {
        axis: {"field": field, "type": "nominal", "sort": order, "scale": {"domain": order},
               "title": field}
        for axis, field in (("x", "predicted"), ("y", "true"))
    }  # fmt: skip
    sides["x"]["axis"] = {"orient": "top", "labelAngle": -45 if size > 200 else 0}
    percent, count = (
        {"field": field, "type": "quantitative", "format": form}
        for field, form in (("percent", ".1f"), ("count", ","))
    )
    dark = {"test": "datum.percent > 55", "value": "var(--on)"}
    text = {
        "text": percent | {"format": ".0f"},
        "color": {"condition": dark, "value": "var(--ink)"},
    }
    chart = {
        "width": size,
        "height": size,
        "encoding": {**sides,
                     "tooltip": [{"field": "true"}, {"field": "predicted"}, count, percent]},
        "layer": [
            {"mark": {"type": "rect", "color": "var(--c0)"},
             "encoding": {"opacity": _opacity("percent", 100)}},
            {"mark": {"type": "text", "fontSize": 11}, "encoding": text},
        ],
    }  # fmt: skip
    return Picture(chart, rows, {f: f for f in ("true", "predicted", "count", "percent")})


def scatters(
    rows: Sequence[Row], classes: Sequence[str], *, ordered: bool = False, size: int = 210
) -> Picture:
    """Maps of points side by side, both axes in one unit that is not shown.

    Args:
        rows: "map" (its title), "x", "y", "class", and "name", or "letter", which is drawn in
            place of a dot.
        classes: their names, in the order of the legend; "unknown" is pale.
        ordered: whether classes are steps of one scale.
        size: of a map's side, in pixels.
    """
    hues = steps(len(classes)) if ordered else CLASSES
    colours = dict(zip(classes, itertools.cycle(hues), strict=False)) | {"unknown": "var(--kx)"}
    pick, shown = legend_switch("class", faint=0.06)
    titles, key = distinct(rows, "map"), "letter" if has(rows, "letter") else "name"
    places = [row for title in titles for row in _square([r for r in rows if r["map"] == title])]
    axis = {"type": "quantitative", "axis": None, "scale": {"domain": [-0.56, 0.56]}}
    encoding: Spec = {
        "x": {"field": "x", **axis},
        "y": {"field": "y", **axis},
        "color": colour("class", [*classes, "unknown"], colours, {"columns": 5}),
        "opacity": shown,
        "tooltip": [{"field": key}, {"field": "class"}],
    }
    mark: Spec = {"type": "circle"}
    mark["size"] = max(9, min(40, 12000 * len(titles) // max(len(rows), 1)))
    if key == "letter":
        mark = {"type": "text", "fontSize": 15, "fontWeight": 600}
        encoding["text"] = {"field": "letter"}
    one = {"width": size, "height": size, "params": [pick], "mark": mark, "encoding": encoding}
    listed: dict[str, dict[str, Any]] = {}  # a row for each point, with its places in all maps
    for row in rows:
        place = {f"{row['map']}, {axis}": row[axis] for axis in ("x", "y")}
        listed.setdefault(row[key], {"": row[key], "class": row["class"]}).update(place)
    points = list(listed.values())
    chart = _facets(titles, 3 if len(titles) % 3 == 0 else 2, one)
    return Picture(chart, places, {f: f for f in (points[0] if points else ())}, points)


def _thinned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means of neighbours where a curve has more points than can be seen."""
    found = []
    for name in distinct(rows, "series"):
        mine = [row for row in rows if row["series"] == name]
        size = math.ceil(len(mine) / MOST_POINTS)
        for group in (mine[i : i + size] for i in range(0, len(mine), size)):
            means = {axis: sum(row[axis] for row in group) / len(group) for axis in ("x", "y")}
            found.append({**group[0], **means} if size > 1 else group[0])
    return found


def _lines(references: Mapping[str, float]) -> list[Spec]:
    """Horizontal lines with their names."""
    rows = [{"name": f"{name} {number(y)}", "y": y} for name, y in references.items()]
    up = {"field": "y", "type": "quantitative"}
    text = {"type": "text", "color": "var(--soft)", "align": "right", "dy": -6, "fontSize": 11}
    layers: list[Spec] = [
        {"mark": {"type": "rule", "color": "var(--soft)", "strokeDash": [4, 4]},
         "encoding": {"y": up}},
        {"mark": text, "encoding": {"y": up, "text": {"field": "name"}, "x": {"value": "width"}}},
    ]  # fmt: skip
    return [{"data": {"values": rows}, **layer} for layer in layers if rows]


def _facets(titles: Sequence[str], columns: int, one: Spec) -> Spec:
    facet = {"field": "map", "type": "nominal", "sort": list(titles)}
    return {"facet": facet, "columns": columns, "spec": one}


def _switch(name: str, words: str, options: list[str]) -> Spec:
    return {"name": name, "value": options[0],
            "bind": {"input": "radio", "name": words, "options": options}}  # fmt: skip


def _opacity(field: str, most: float) -> Spec:
    """From pale to full colour."""
    scale = {"domain": [0, most], "range": [0.05, 1], "clamp": True}
    return {"field": field, "type": "quantitative", "scale": scale, "legend": None}


def _ordinal(cells: Sequence[Row], field: str, title: str) -> Spec:
    """An axis with at most 16 labels."""
    places = sorted({cell[field] for cell in cells})
    every = math.ceil(len(places) / 16) or 1
    axis = {"values": places[::every], "labelAngle": 0, "ticks": False}
    return {"field": field, "type": "ordinal", "title": title, "axis": axis}


def _square(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Points moved and scaled alike in x and y, so that a square does not stretch them."""
    sides = {axis: [row[axis] for row in rows] for axis in ("x", "y")}
    span = max(max(side) - min(side) for side in sides.values()) or 1.0
    middle = {axis: (max(side) + min(side)) / 2 for axis, side in sides.items()}
    return [
        {**row, **{axis: round((row[axis] - middle[axis]) / span, 4) for axis in sides}}
        for row in rows
    ]
