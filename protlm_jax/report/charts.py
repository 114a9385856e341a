"""Curves, dots with intervals, and bars: rows of numbers in, a `Picture` out.

Rows are mappings, one for each mark, with the fields that a docstring names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from protlm_jax.report.picture import (
    PALETTE,
    Picture,
    Row,
    Spec,
    ends,
    finite,
    has,
    hued,
    legend_switch,
    number,
    ordered,
    tooltip,
)

MOST_POINTS = 240  # of a curve; more are averaged in groups
MOST_DOTS = 60  # a curve of more points has no dots
_FREE = {"zero": False}
_DASHES = {
    "field": "dashed", "type": "nominal", "legend": None,
    "scale": {"domain": [False, True], "range": [[1, 0], [5, 4]]},
}  # fmt: skip


def curves(
    rows: Sequence[Row],
    *,
    x: str,
    y: str,
    references: Mapping[str, float] | None = None,
    whole: bool = False,
    colours: Sequence[str] = (),
    height: int = 230,
) -> Picture:
    """Lines over x with bands, and dots that answer to a pointer.

    Args:
        rows: "series", "x", "y"; optionally "low" and "high" (a band), "error" (half a whisker,
            in place of a band), "dashed" and "chosen" (true or false), "place" (what x is called).
        x, y: titles of the axes.
        references: horizontal lines by name.
        whole: x has no ticks between whole numbers.
        colours: of the series, in their order.
    """
    points = _thinned(finite(rows, "x", "y"))
    whiskers = has(points, "error")
    if whiskers:
        points = [_with_ends(row) for row in points]
    series = ordered(points, "series")
    pick, shown = legend_switch()
    place = "place" if has(points, "place") else "x"
    up: Spec = {"field": "y", "type": "quantitative", "title": y, "scale": _FREE}
    line: Spec = {"y": up, "detail": {"field": "series"}}
    layers: list[Spec] = []
    if has(points, "low"):
        mark: Spec = {"type": "rule"} if whiskers else {"type": "area", "fillOpacity": 0.15}
        layers.append({"mark": mark, "encoding": {"y": up | {"field": "low"},
                                                  "y2": {"field": "high"}}})  # fmt: skip
    if has(points, "dashed"):
        line["strokeDash"] = _DASHES
    layers.append({"mark": {"type": "line", "strokeWidth": 1.6}, "encoding": line})
    few = [name for name in series if sum(p["series"] == name for p in points) <= MOST_DOTS]
    if few:
        dots: Spec = {"type": "circle", "size": 45 if whiskers else 26}
        only: list[Spec] = [{"filter": {"field": "series", "oneOf": few}}]
        layers.append({"mark": dots, "transform": only, "encoding": {"y": up}})
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
        "color": hued("series", series, colours, {} if 1 < len(series) <= 14 else None),
        "opacity": shown,
        "tooltip": tooltip({"series": "", place: x}, "y", y, points),
    }  # fmt: skip
    lines: Spec = {"layer": layers, "encoding": shared}
    chart = {"width": "container", "height": height, "layer": [lines, *_lines(references or {})]}
    return Picture(chart, points, {"series": "series", place: x, "y": y} | ends(points))


def trends(rows: Sequence[Row], *, x: str, y: str) -> Picture:
    """Dots with intervals, and lines through the means at each x, of dashed dots another.

    Args:
        rows: "series", "x", "y", "low", "high", "dashed", and "place", what a dot is called.
        x, y: titles of the axes.
    """
    points = finite(rows, "x", "y")
    series = ordered(points, "series")
    pick, shown = legend_switch()
    up: Spec = {"field": "y", "type": "quantitative", "title": y}
    colour = hued("series", series, (), {})
    hollow = {"condition": {"test": "datum.dashed", "value": 0}, "value": 1}
    layers: list[Spec] = [
        {"mark": {"type": "line", "strokeWidth": 1.6},
         "encoding": {"y": up | {"aggregate": "mean"}, "strokeDash": _DASHES}},
        {"mark": "rule", "encoding": {"y": up | {"field": "low"}, "y2": {"field": "high"}}},
        {"mark": {"type": "point", "size": 50},
         "encoding": {"y": up, "fill": colour, "fillOpacity": hollow,
                      "tooltip": tooltip({"place": "model", "series": ""}, "y", "value", points)}},
    ]  # fmt: skip
    across = {
        "field": "x", "type": "quantitative", "title": x,
        "scale": {"zero": False, "nice": False, "padding": 12},
        "axis": {"grid": False, "values": sorted({row["x"] for row in points})},
    }  # fmt: skip
    chart = {
        "width": "container",
        "height": 240,
        "layer": [{**layers[0], "params": [pick]}, *layers[1:]],
        "encoding": {"x": across, "color": colour, "opacity": shown},
    }
    table = {"place": "model", "x": x, "series": "", "y": "value", **ends(points)}
    return Picture(chart, points, table)


def intervals(rows: Sequence[Row], *, x: str, colours: Sequence[str] = ()) -> Picture:
    """A dot with its interval for each system, one below the other.

    Args:
        rows: "label", "value", "low", "high" (None draws no line); optionally "series": then the
            dots of a label stand below each other in the colours of their series.
        x: title of the axis.
        colours: of the series.
    """
    points = finite(rows, "value")
    labels, grouped = ordered(points, "label"), has(points, "series")
    names = ordered(points, "series") if grouped else labels
    pick, shown = legend_switch()
    hues = list(colours) or (PALETTE if grouped else ["var(--c0)", *["var(--c1)"] * len(labels)])
    encoding: Spec = {
        "y": {"field": "label", "type": "nominal", "sort": labels, "title": None,
              "axis": {"ticks": False, "grid": grouped}},
        "color": hued("series" if grouped else "label", names, hues,
                      {} if grouped and len(names) > 1 else None),
        "tooltip": tooltip({"label": "", **({"series": ""} if grouped else {})}, "value", x,
                           points),
    }  # fmt: skip
    if grouped:
        encoding |= {"yOffset": {"field": "series", "sort": names}, "opacity": shown}
    across: Spec = {"field": "value", "type": "quantitative", "title": x, "scale": _FREE}
    line: Spec = {"type": "rule", "strokeWidth": 2.2, "strokeCap": "round"}
    step = max(34, 10 * len(names)) if grouped else 30
    chart = {
        "width": "container",
        "height": step * len(labels),
        "layer": [
            {"mark": line, "encoding": {"x": across | {"field": "low"}, "x2": {"field": "high"}},
             "params": [pick] if grouped else []},
            {"mark": {"type": "circle", "size": 70}, "encoding": {"x": across}},
        ],
        "encoding": encoding,
    }  # fmt: skip
    table = {"label": "", **({"series": "series"} if grouped else {}), "value": x}
    return Picture(chart, points, table | ends(points))


def bars(rows: Sequence[Row], *, x: str, y: str, height: int = 190) -> Picture:
    """Bars that start at 0.

    Args:
        rows: "label" and "value".
        x, y: titles of the axes.
    """
    found = finite(rows, "value")
    across = {"field": "label", "type": "nominal", "sort": ordered(found, "label"), "title": x,
              "axis": {"labelAngle": 0}}  # fmt: skip
    chart = {
        "width": "container",
        "height": height,
        "mark": {"type": "bar", "color": "var(--c0)"},
        "encoding": {
            "x": across,
            "y": {"field": "value", "type": "quantitative", "title": y},
            "tooltip": tooltip({"label": x}, "value", y, found),
        },
    }
    return Picture(chart, found, {"label": x, "value": y})


def _with_ends(row: dict[str, Any]) -> dict[str, Any]:
    error = row.get("error")
    if error is None:
        return row
    return {**row, "low": row["y"] - error, "high": row["y"] + error}


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means of neighbours where a curve has more points than can be seen."""
    by_series: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_series.setdefault(row["series"], []).append(row)
    found = []
    for mine in by_series.values():
        size = math.ceil(len(mine) / MOST_POINTS)
        for group in (mine[i : i + size] for i in range(0, len(mine), size)):
            means = {axis: sum(row[axis] for row in group) / len(group) for axis in ("x", "y")}
            found.append({**group[0], **means} if size > 1 else group[0])
    return found


def _lines(references: Mapping[str, float]) -> list[Spec]:
    """Horizontal lines with their names."""
    if not references:
        return []
    rows = [{"name": f"{name} {number(y)}", "y": y} for name, y in references.items()]
    up = {"field": "y", "type": "quantitative"}
    words = {"type": "text", "color": "var(--soft)", "align": "right", "dy": -6, "fontSize": 11}
    return [
        {"data": {"values": rows}, "encoding": {"y": up},
         "mark": {"type": "rule", "color": "var(--soft)", "strokeDash": [4, 4]}},
        {"data": {"values": rows}, "mark": words,
         "encoding": {"y": up, "text": {"field": "name"}, "x": {"value": "width"}}},
    ]  # fmt: skip
