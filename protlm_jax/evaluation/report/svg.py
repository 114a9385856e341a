"""Charts as inline SVG: text in, text out, no library and no script.

Colours are CSS variables of the page (`--c0` ... `--c3`, `--ink`, `--line`), so that one drawing
serves light and dark. All text given here is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 480
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 12, 38
_MOST_POINTS = 240


@dataclass(frozen=True)
class Series:
    """Points of one curve, or heights of one colour of bars (then `x` is not read).

    Attributes:
        label: for the legend.
        y: values; None or a non-finite number leaves a gap.
        x: positions, as many as `y`.
        colour: any CSS colour; by default the page's next one.
    """

    label: str
    y: Sequence[float | None]
    x: Sequence[float] = ()
    colour: str = ""


def number(value: object, digits: int = 3) -> str:
    """A short decimal; a dash for what is no finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}" if abs(value) < 1e4 else f"{value:,.0f}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    if not high > low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, high + spread
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    references: Sequence[tuple[str, float]] = (),
    height: int = 250,
    legend: bool = True,
) -> str:
    """Curves, with dashed horizontal lines for named reference values.

    Curves of more than 240 points are drawn as means of neighbouring points.
    """
    curves = [_thinned(_finite(s)) for s in series]
    values = [y for c in curves for _, y in c] + [y for _, y in references]
    places = [x for c in curves for x, _ in c]
    if not places:
        return ""
    frame = _Frame(ticks(min(places), max(places)), ticks(min(values), max(values)), height)
    # The curve ends at the right edge: no empty stretch up to the next round number.
    frame.x_low, frame.x_high = min(places), max(places) if max(places) > min(places) else 1.0
    parts = [frame.axes(x_label, y_label)]
    for label, y in references:
        at = frame.y(y)
        parts.append(
            f'<path class="reference" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="note" text-anchor="end" x="{WIDTH - RIGHT}" y="{at - 4:.1f}">'
            f"{escape(label)} {number(y)}</text>"
        )
    for index, (each, curve) in enumerate(zip(series, curves, strict=True)):
        path = "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in curve)
        if path:
            colour = each.colour or _colour(index)
            parts.append(
                f'<path class="curve" style="stroke:{colour}" d="M{path}">'
                f"<title>{escape(each.label)}</title></path>"
            )
    named = series if legend and len(series) > 1 else ()
    return _figure("".join(parts), height, y_label, named)


def bar_chart(
    categories: Sequence[str],
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    height: int = 210,
) -> str:
    """Groups of bars, one group a category, one colour a series; bars start at 0."""
    values = [y for s in series for _, y in _finite(s)]
    if not values:
        return ""
    frame = _Frame([], ticks(min(0.0, *values), max(0.0, *values)), height)
    slot = (WIDTH - LEFT - RIGHT) / len(categories)
    thick = min(0.76 * slot / len(series), 30.0)
    parts = [frame.axes(x_label, y_label)]
    for i, category in enumerate(categories):
        centre = LEFT + (i + 0.5) * slot
        if i % max(1, math.ceil(len(categories) / 16)) == 0:
            parts.append(_text(centre, height - BOTTOM + 14, escape(category)))
        for j, each in enumerate(series):
            y = each.y[i]
            if y is None or not math.isfinite(y):
                continue
            x = centre + (j - len(series) / 2) * thick
            top, foot = sorted((frame.y(y), frame.y(0.0)))
            parts.append(
                f'<rect x="{x:.1f}" y="{top:.1f}" width="{max(thick - 1, 0.5):.1f}" '
                f'height="{foot - top:.1f}" style="fill:{each.colour or _colour(j)}">'
                f"<title>{escape(each.label)} {escape(category)}: {number(y)}</title></rect>"
            )
    parts.append(f'<path class="axis" d="M{LEFT} {frame.y(0.0):.1f}H{WIDTH - RIGHT}"/>')
    return _figure("".join(parts), height, y_label, series if len(series) > 1 else ())


def interval_chart(rows: Sequence[tuple[str, float, float, float]], *, x_label: str) -> str:
    """One row a system (label, value, low, high): a dot, and a line over its interval."""
    left, row_height = 165, 32
    height = TOP + BOTTOM + row_height * len(rows)
    low, high = min(r[2] for r in rows), max(r[3] for r in rows)
    marks = ticks(low, high, 5)

    def at(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (WIDTH - RIGHT - 10 - left)

    parts = []
    for mark in marks:
        parts.append(f'<path class="grid" d="M{at(mark):.1f} {TOP}V{height - BOTTOM}"/>')
        parts.append(_text(at(mark), height - BOTTOM + 14, number(mark, 4)))
    parts.append(_text((left + WIDTH - RIGHT) / 2, height - 5, escape(x_label), "label"))
    for i, (label, value, below, above) in enumerate(rows):
        y = TOP + (i + 0.5) * row_height
        parts.append(
            f'<text class="name" text-anchor="end" x="{left - 14}" y="{y + 4:.1f}">'
            f'{escape(label)}</text><path class="whisker" style="stroke:{_colour(int(i > 0))}" '
            f'd="M{at(below):.1f} {y:.1f}H{at(above):.1f}"/>'
            f'<circle cx="{at(value):.1f}" cy="{y:.1f}" r="4.5" style="fill:{_colour(int(i > 0))}">'
            f"<title>{number(value, 5)} ({number(below, 5)} to {number(above, 5)})</title></circle>"
        )
    return _figure("".join(parts), height, x_label, ())


def heat_map(matrix: Sequence[Sequence[float | None]], *, row_label: str, column_label: str) -> str:
    """A square of cells from pale (0) to full colour (the largest value); None stays empty."""
    size = len(matrix)
    cell = min(46.0, (WIDTH - LEFT - RIGHT) / max(size, 1))
    values = [v for row in matrix for v in row if v is not None and math.isfinite(v)]
    most = max(values, default=0.0) or 1.0
    height, parts = int(TOP + BOTTOM + cell * size), []
    left = (WIDTH - cell * size) / 2
    for r, row in enumerate(matrix):
        y = TOP + r * cell
        if r % max(1, math.ceil(size / 16)) == 0:
            parts.append(_text(left - 10, y + cell / 2 + 4, str(r)))
            parts.append(_text(left + (r + 0.5) * cell, TOP + size * cell + 14, str(r)))
        for c, value in enumerate(row):
            x = left + c * cell
            place = f'x="{x:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" height="{cell - 1:.1f}"'
            if value is None or not math.isfinite(value):
                parts.append(f'<rect class="empty" {place}/>')
                continue
            share = max(value, 0.0) / most
            parts.append(
                f'<rect class="cell" {place} style="fill-opacity:{0.05 + 0.95 * share:.3f}">'
                f"<title>skip {r}, read {c}: {number(value)}</title></rect>"
            )
            if cell >= 30:
                ink = "on" if share > 0.55 else "off"
                text = number(value, 2)
                parts.append(_text(x + cell / 2, y + cell / 2 + 4, text, f"value {ink}"))
    parts.append(_text(WIDTH / 2, height - 4, escape(column_label), "label"))
    parts.append(_turned(left - 30, TOP + size * cell / 2, row_label))
    return _figure("".join(parts), height, f"{row_label} by {column_label}", ())


class _Frame:
    """The plot area: data to page coordinates, grid and axis text."""

    def __init__(self, x_ticks: list[float], y_ticks: list[float], height: int) -> None:
        self.x_ticks, self.y_ticks, self.height = x_ticks, y_ticks, height
        self.x_low, self.x_high = (x_ticks[0], x_ticks[-1]) if x_ticks else (0.0, 1.0)

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str) -> str:
        parts = []
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(_text(LEFT - 6, y + 4, number(tick, 4), "tick end"))
        for tick in self.x_ticks:
            if self.x_low <= tick <= self.x_high:
                parts.append(_text(self.x(tick), self.height - BOTTOM + 14, number(tick, 5)))
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(_text(middle, self.height - 5, escape(x_label), "label"))
        parts.append(_turned(11, (self.height - BOTTOM + TOP) / 2, y_label))
        return "".join(parts)


def _finite(series: Series) -> list[tuple[float, float]]:
    places = series.x or range(len(series.y))
    pairs = zip(places, series.y, strict=True)
    return [(x, y) for x, y in pairs if y is not None and math.isfinite(y)]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _text(x: float, y: float, text: str, style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{text}</text>'


def _turned(x: float, y: float, text: str) -> str:
    turn = f'transform="rotate(-90 {x:.1f} {y:.1f})"'
    return f'<text class="label" {turn} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _colour(index: int) -> str:
    return f"var(--c{index % 4})"


def _figure(body: str, height: int, name: str, legend: Sequence[Series]) -> str:
    keys = "".join(
        f'<span><i style="background:{s.colour or _colour(i)}"></i>{escape(s.label)}</span>'
        for i, s in enumerate(legend)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name)}">{body}</svg>'
        + (f'<div class="legend">{keys}</div>' if keys else "")
    )
