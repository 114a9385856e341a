"""Charts as inline SVG: text in, text out, no library.

All text given here is escaped. What a mark stands for is its `<title>`, which a browser shows, and
which the page's script shows at once; marks of a series carry its number as `data-s`, by which the
script hides them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from protlm_jax.evaluation.report.frame import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    colour_of,
    number,
    text_at,
    ticks,
    turned_at,
)

_MOST_POINTS = 240
_MOST_DOTS = 100  # more points than this are a line without marks of their own
Matrix = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Series:
    """Points of one curve, or heights of one colour of bars (then `x` is not read).

    Attributes:
        label: for the legend.
        y: values; None or a non-finite number leaves a gap.
        x: positions, as many as `y`.
        colour: any CSS colour; by default the page's next one.
        error: standard errors, as many as `y`: curves get a dot and a whisker at every point.
        chosen: number of the point that gets a ring.
        dashed: how a curve is drawn.
        low, high: ends of intervals, as many as `y`: curves get a band, bars a whisker.
        names: what each point is called, as many as `y`; by default the axis and its x.
    """

    label: str
    y: Sequence[float | None]
    x: Sequence[float] = ()
    colour: str = ""
    error: Sequence[float | None] = ()
    chosen: int | None = None
    dashed: bool = False
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    names: Sequence[str] = ()

    def ends(self, index: int) -> tuple[float, float] | None:
        """The interval of a point whose value is finite; None where there is none."""
        y = self.y[index]
        if self.error and y is not None:
            error = self.error[index]
            known = error is not None and math.isfinite(error)
            return (y - error, y + error) if known else None  # type: ignore[operator]
        low, high = (x[index] if x else None for x in (self.low, self.high))
        if low is None or high is None or not math.isfinite(low + high):
            return None
        return low, high

    def words(self, index: int, place: str) -> str:
        """What a point says: its value, and the interval or the standard error."""
        name = self.names[index] if self.names else place
        text = f"{self.label}, {name}: {number(self.y[index], 4)}"
        ends = self.ends(index)
        if ends is None:
            return text
        if self.error:
            return f"{text} ± {number((ends[1] - ends[0]) / 2)}"
        return f"{text} ({number(ends[0])} to {number(ends[1])})"


def scaled_errors(
    estimates: Sequence[Mapping[str, Any] | None], scale: float
) -> list[float | None]:
    """The standard errors of estimates, for `Series.error`; None where there is none."""
    errors = [None if e is None else e["standard_error"] for e in estimates]
    return [None if error is None else scale * error for error in errors]


@dataclass(frozen=True)
class _Point:
    index: int
    x: float
    y: float


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    references: Sequence[tuple[str, float]] = (),
    height: int = 250,
    legend: bool = True,
    layers: int | None = None,
    whole: bool = False,
) -> str:
    """Curves, with dashed horizontal lines for named reference values.

    Curves of more than 240 points are drawn as means of neighbouring points. `layers` is the
    number of blocks where x counts them: it puts the relative depth above the plot. `whole`: x has
    no ticks between whole numbers.
    """
    curves = [_points(s) for s in series]
    values = [p.y for c in curves for p in c] + [y for _, y in references]
    values += [e for s, c in zip(series, curves, strict=True) for p in c
               for e in s.ends(p.index) or ()]  # fmt: skip
    places = [p.x for c in curves for p in c]
    if not places:
        return ""
    top = TOP if layers is None else 34
    whole = whole or layers is not None
    marks = ticks(min(places), max(places), 9 if layers else 6, whole)
    frame = Frame(marks, ticks(min(values), max(values)), height, top)
    # The curve ends at the right edge: no empty stretch up to the next round number.
    frame.x_low = min(places)
    frame.x_high = max(places) if max(places) > frame.x_low else frame.x_low + 1.0
    parts = [frame.axes(x_label, y_label), frame.depths(layers)]
    for label, y in references:
        at = frame.y(y)
        parts.append(
            f'<path class="reference" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="note" text-anchor="end" x="{WIDTH - RIGHT}" y="{at - 4:.1f}">'
            f"{escape(label)} {number(y)}</text>"
        )
    for index, (each, curve) in enumerate(zip(series, curves, strict=True)):
        drawn = _curve(frame, each, curve, each.colour or colour_of(index), x_label)
        parts.append(f'<g data-s="{index}">{drawn}</g>')
    named = series if legend and len(series) > 1 else ()
    return figure("".join(parts), height, y_label, named)


def bar_chart(
    categories: Sequence[str],
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    height: int = 210,
) -> str:
    """Groups of bars, one group a category, one colour a series; bars start at 0."""
    points = [_points(s) for s in series]
    values = [p.y for each in points for p in each]
    values += [e for s, each in zip(series, points, strict=True) for p in each
               for e in s.ends(p.index) or ()]  # fmt: skip
    if not values:
        return ""
    frame = Frame([], ticks(min(0.0, *values), max(0.0, *values)), height)
    slot = (WIDTH - LEFT - RIGHT) / len(categories)
    thick = min(0.76 * slot / len(series), 30.0)
    parts = [frame.axes(x_label, y_label)]
    for i in range(0, len(categories), max(1, math.ceil(len(categories) / 16))):
        place = LEFT + (i + 0.5) * slot
        parts.append(text_at(place, height - BOTTOM + 14, escape(categories[i])))
    for j, (each, mine) in enumerate(zip(series, points, strict=True)):
        hue = each.colour or colour_of(j)
        for point in mine:
            centre = LEFT + (point.index + 0.5) * slot
            x = centre + (j - len(series) / 2) * thick
            top, foot = sorted((frame.y(point.y), frame.y(0.0)))
            words = each.words(point.index, f"{x_label} {categories[point.index]}")
            parts.append(
                f'<rect data-s="{j}" x="{x:.1f}" y="{top:.1f}" width="{max(thick - 1, 0.5):.1f}" '
                f'height="{foot - top:.1f}" style="fill:{hue}">'
                f"<title>{escape(words)}</title></rect>"
            )
            if ends := each.ends(point.index):
                low, high = (frame.y(end) for end in ends)
                parts.append(
                    f'<path class="error" data-s="{j}" style="stroke:var(--ink)" '
                    f'd="M{x + thick / 2 - 0.5:.1f} {low:.1f}V{high:.1f}"/>'
                )
    parts.append(f'<path class="axis" d="M{LEFT} {frame.y(0.0):.1f}H{WIDTH - RIGHT}"/>')
    return figure("".join(parts), height, y_label, series if len(series) > 1 else ())


def interval_chart(
    rows: Sequence[tuple[str, float, float | None, float | None]], *, x_label: str
) -> str:
    """One row a system (label, value, low, high): a dot, and a line over the interval if any."""
    left, row_height = 165, 32
    height = TOP + BOTTOM + row_height * len(rows)
    values = [x for row in rows for x in row[1:] if x is not None]
    marks = ticks(min(values), max(values), 5)

    def at(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (WIDTH - RIGHT - 10 - left)

    parts = []
    for mark in marks:
        parts.append(f'<path class="grid" d="M{at(mark):.1f} {TOP}V{height - BOTTOM}"/>')
        parts.append(text_at(at(mark), height - BOTTOM + 14, number(mark, 4)))
    parts.append(text_at((left + WIDTH - RIGHT) / 2, height - 5, escape(x_label), "label"))
    for i, (label, value, below, above) in enumerate(rows):
        hue = colour_of(int(i > 0))
        y = TOP + (i + 0.5) * row_height
        whisker, words = "", number(value, 5)
        if below is not None and above is not None:
            words += f" ({number(below, 5)} to {number(above, 5)})"
            whisker = (
                f'<path class="whisker" style="stroke:{hue}" '
                f'd="M{at(below):.1f} {y:.1f}H{at(above):.1f}"/>'
            )
        parts.append(
            f'<text class="name" text-anchor="end" x="{left - 14}" y="{y + 4:.1f}">'
            f"{escape(label)}</text>{whisker}"
            f'<circle class="dot" cx="{at(value):.1f}" cy="{y:.1f}" r="4.5" style="fill:{hue}">'
            f"<title>{words}</title></circle>"
        )
    return figure("".join(parts), height, x_label, ())


def heat_map(
    matrix: Matrix,
    *,
    row_label: str,
    column_label: str,
    low: Matrix = (),
    high: Matrix = (),
    largest: Matrix = (),
    most: float | None = None,
) -> str:
    """A square of cells from pale (0) to full colour; None stays empty.

    Args:
        matrix: rows of values, not negative.
        row_label, column_label: what rows and columns count from 0.
        low, high: ends of intervals, said on hover.
        largest: other values of the cells, which the page's script can show in their place.
        most: the value of full colour; by default the largest one.
    """
    size = len(matrix)
    cell = min(46.0, (WIDTH - LEFT - RIGHT) / max(size, 1))
    most = most or largest_of(matrix) or 1.0
    height, parts = int(TOP + BOTTOM + cell * size), []
    left = (WIDTH - cell * size) / 2
    for r in range(0, size, max(1, math.ceil(size / 16))):
        parts.append(text_at(left - 6, TOP + (r + 0.5) * cell + 4, str(r), "end"))
        parts.append(text_at(left + (r + 0.5) * cell, TOP + size * cell + 14, str(r)))
    for r, row in enumerate(matrix):
        for c, value in enumerate(row):
            if value is None or not math.isfinite(value):
                continue
            x, y = left + c * cell, TOP + r * cell
            share = max(value, 0.0) / most
            words = f"{row_label} {r}, {column_label} {c}\n{number(value)}"
            data = f' data-mean="{number(value, 4)}"'
            if low and high and low[r][c] is not None:
                words += f" ({number(low[r][c])} to {number(high[r][c])})"
            if largest:
                words += f"\nlargest {number(largest[r][c])}"
                data += f' data-largest="{number(largest[r][c], 4)}"'
            parts.append(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" '
                f'height="{cell - 1:.1f}"{data} style="fill-opacity:{0.05 + 0.95 * share:.3f}">'
                f"<title>{escape(words)}</title></rect>"
            )
            if cell >= 34:
                ink = "on" if share > 0.55 else "off"
                shown = number(value, 2)
                parts.append(text_at(x + cell / 2, y + cell / 2 + 4, shown, f"value {ink}"))
    parts.append(text_at(WIDTH / 2, height - 4, escape(column_label), "label"))
    parts.append(turned_at(left - 33, TOP + size * cell / 2, row_label))
    return figure("".join(parts), height, f"{row_label} by {column_label}", ())


def largest_of(matrix: Matrix) -> float:
    """The largest finite value; 0 where there is none."""
    finite = [v for row in matrix for v in row if v is not None and math.isfinite(v)]
    return max(finite, default=0.0)


def _curve(frame: Frame, series: Series, points: list[_Point], stroke: str, x_label: str) -> str:
    """One line with its band; dots and whiskers where there are errors, else dots on hover."""
    if not points:
        return ""
    drawn = _thinned([(p.x, p.y) for p in points])
    path = "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in drawn)
    dashes = ";stroke-dasharray:5 4" if series.dashed else ""
    parts = [
        _band(frame, series, points, stroke),
        f'<path class="curve" style="stroke:{stroke}{dashes}" d="M{path}">'
        f"<title>{escape(series.label)}</title></path>",
    ]
    if len(points) > _MOST_DOTS:
        return "".join(parts)
    for point in points:
        place = f'cx="{frame.x(point.x):.1f}" cy="{frame.y(point.y):.1f}"'
        if series.chosen == point.index:
            parts.append(f'<circle class="ring" style="stroke:{stroke}" {place} r="7.5"/>')
        if series.error and (ends := series.ends(point.index)):
            low, high = (frame.y(end) for end in ends)
            parts.append(
                f'<path class="error" style="stroke:{stroke}" '
                f'd="M{frame.x(point.x):.1f} {low:.1f}V{high:.1f}"/>'
            )
        seen = 'r="3.2"' if series.error else 'r="4" opacity="0"'
        words = series.words(point.index, f"{x_label} {number(point.x)}")
        parts.append(
            f'<circle class="dot" style="fill:{stroke}" {place} {seen}>'
            f"<title>{escape(words)}</title></circle>"
        )
    return "".join(parts)


def _band(frame: Frame, series: Series, points: list[_Point], fill: str) -> str:
    """The area between the ends of the intervals, in one piece for each run of them."""
    if series.error:
        return ""
    runs: list[list[tuple[float, float, float]]] = [[]]
    for point in points:
        if ends := series.ends(point.index):
            runs[-1].append((frame.x(point.x), frame.y(ends[0]), frame.y(ends[1])))
        elif runs[-1]:
            runs.append([])
    parts = []
    for run in runs:
        if len(run) > 1:
            there = [f"{x:.1f} {low:.1f}" for x, low, _ in run]
            back = [f"{x:.1f} {high:.1f}" for x, _, high in reversed(run)]
            parts.append(
                f'<path class="band" style="fill:{fill};fill-opacity:.15;stroke:none" '
                f'd="M{"L".join(there + back)}Z"/>'
            )
    return "".join(parts)


def _points(series: Series) -> list[_Point]:
    places = series.x or range(len(series.y))
    pairs = enumerate(zip(places, series.y, strict=True))
    return [_Point(i, x, y) for i, (x, y) in pairs if y is not None and math.isfinite(y)]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def figure(body: str, height: int, name: str, legend: Sequence[Series]) -> str:
    """An SVG in the page's width, and the legend below it."""
    keys = "".join(
        f"<span>{_swatch(s, s.colour or colour_of(i))}{escape(s.label)}</span>"
        for i, s in enumerate(legend)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name)}">{body}</svg>'
        + (f'<div class="legend">{keys}</div>' if keys else "")
    )


def _swatch(series: Series, colour: str) -> str:
    if series.dashed:
        return f'<i class="dashed" style="border-color:{colour}"></i>'
    return f'<i style="background:{colour}"></i>'
