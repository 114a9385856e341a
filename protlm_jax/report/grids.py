"""Heat maps, confusion matrices and maps of points: rows of numbers in, a `Picture` out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from protlm_jax.report.picture import (
    CLASSES,
    Picture,
    Row,
    Spec,
    ends,
    finite,
    has,
    hued,
    legend_switch,
    ordered,
    steps,
    tooltip,
)

_LOG = "1 - log(max({0}, {1})) / log({1})"


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
    params: list[Spec] = [_switch("scale", "colours ", ["linear", "log"])]
    params += [_switch("which", " of ", ["mean", "largest"])] if both else []
    shade = {
        "calculate": f"scale == 'log' ? {_LOG.format(share, floor)} : {share}", "as": "shade"
    }  # fmt: skip
    chart: Spec = {
        "width": 240 if several else 320,
        "height": 240 if several else 320,
        "transform": [shade],
        "mark": {"type": "rect", "color": "var(--c0)"},
        "encoding": {
            "x": _ordinal(cells, "column", column),
            "y": _ordinal(cells, "row", row),
            "opacity": _opacity("shade", 1),
            "tooltip": tooltip({"row": row, "column": column}, "value", "value", cells),
        },
    }
    if several:
        chart = {
            "facet": {"field": "map", "type": "nominal", "sort": list(maps)},
            "columns": 2,
            "spec": chart,
            "resolve": {"scale": {"x": "independent", "y": "independent"}},
        }
    table = {**({"map": ""} if several else {}), "row": row, "column": column, "value": "value"}
    more = {"largest": "largest"} if both else {}
    return Picture({**chart, "params": params}, cells, table | ends(cells) | more)


def confusion(counts: Sequence[Sequence[float]], classes: Sequence[str]) -> Picture:
    """Percentages of each row: true class by predicted class; counts for a pointer."""
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
    dark = {"test": "datum.percent > 55", "value": "var(--on)"}
    percent = {"field": "percent", "type": "quantitative", "format": ".0f"}
    chart = {
        "width": size,
        "height": size,
        "encoding": {
            **sides,
            "tooltip": [
                {"field": "true"}, {"field": "predicted"},
                {"field": "count", "type": "quantitative", "format": ","},
                {"field": "percent", "type": "quantitative", "format": ".1f"},
            ],
        },
        "layer": [
            {"mark": {"type": "rect", "color": "var(--c0)"},
             "encoding": {"opacity": _opacity("percent", 100)}},
            {"mark": {"type": "text", "fontSize": 11},
             "encoding": {"text": percent,
                          "color": {"condition": dark, "value": "var(--ink)"}}},
        ],
    }  # fmt: skip
    return Picture(chart, rows, {field: field for field in ("true", "predicted", "count",
                                                            "percent")})  # fmt: skip


def scatters(
    rows: Sequence[Row], classes: Sequence[str], *, ordered_classes: bool = False, size: int = 210
) -> Picture:
    """Maps of points side by side, both axes in one unit that is not shown.

    Args:
        rows: "map" (its title), "x", "y", "class", and "name", or "letter", which is drawn in
            place of a dot.
        classes: their names, in the order of the legend; "unknown" is pale.
        ordered_classes: whether they are steps of one scale.
        size: of a map's side, in pixels.
    """
    hues = steps(len(classes)) if ordered_classes else CLASSES
    colours = [*(hues[i % len(hues)] for i in range(len(classes))), "var(--kx)"]
    pick, shown = legend_switch("class", faint=0.06)
    letters, titles = has(rows, "letter"), ordered(rows, "map")
    places = [row for title in titles for row in _square([r for r in rows if r["map"] == title])]
    axis = {"type": "quantitative", "axis": None, "scale": {"domain": [-0.56, 0.56]}}
    about = [{"field": f} for f in ("letter", "name", "class") if has(rows, f)]
    dots = {"type": "circle", "size": max(9, min(40, 12000 * len(titles) // max(len(rows), 1)))}
    encoding: Spec = {
        "x": {"field": "x", **axis},
        "y": {"field": "y", **axis},
        "color": hued("class", [*classes, "unknown"], colours, {"columns": 5}),
        "opacity": shown,
        "tooltip": about,
    }
    if letters:
        encoding["text"] = {"field": "letter"}
    chart = {
        "facet": {"field": "map", "type": "nominal", "sort": titles},
        "columns": 3 if len(titles) % 3 == 0 else 2,
        "spec": {
            "width": size,
            "height": size,
            "params": [pick],
            "mark": {"type": "text", "fontSize": 15, "fontWeight": 600} if letters else dots,
            "encoding": encoding,
        },
    }
    by_point: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = row["letter" if letters else "name"]
        place = {f"{row['map']}, {axis}": row[axis] for axis in ("x", "y")}
        by_point.setdefault(key, {"": key, "class": row["class"]}).update(place)
    listed = list(by_point.values())
    return Picture(chart, places, {f: f for f in (listed[0] if listed else ())}, listed)


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
    xs, ys = [row["x"] for row in rows], [row["y"] for row in rows]
    span = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return [
        {**row, "x": round((row["x"] - middle[0]) / span, 4),
         "y": round((row["y"] - middle[1]) / span, 4)}
        for row in rows
    ]  # fmt: skip
