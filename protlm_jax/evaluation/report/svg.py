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
        error: standard errors, as many as `y`: curves get a dot and a whisker at every point.
        chosen: number of the point that gets a ring.
        dashed: how a curve is drawn.
    """

    label: str
    y: Sequence[float | None]
    x: Sequence[float] = ()
    colour: str = ""
    error: Sequence[float | None] = ()
    chosen: int | None = None
    dashed: bool = False


def number(value: object, digits: int = 3) -> str:
    """A short decimal; a dash for what is no finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}" if abs(value) < 1e4 else f"{value:,.0f}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    if not high - low > 1e-9 * abs(low):  # equal, or as good as equal in double precision
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
    layers: int | None = None,
) -> str:
    """Curves, with dashed horizontal lines for named reference values.

    Curves of more than 240 points are drawn as means of neighbouring points. `layers` is the
    number of blocks where x counts them: it puts the relative depth above the plot.
    """
    curves = [_thinned(_finite(s)) for s in series]
    values = [y for c in curves for _, y in c] + [y for _, y in references]
    values += [e for s in series for _, low, high in _whiskers(s) for e in (low, high)]
    places = [x for c in curves for x, _ in c]
    if not places:
        return ""
    top = TOP if layers is None else 34
    marks = ticks(min(places), max(places), 9 if layers else 6)
    if layers is not None:
        marks = [mark for mark in marks if mark == int(mark)]
    frame = Frame(marks, ticks(min(values), max(values)), height, top)
    # The curve ends at the right edge: no empty stretch up to the next round number.
    frame.x_low, frame.x_high = min(places), max(places) if max(places) > min(places) else 1.0
    parts = [frame.axes(x_label, y_label), frame.depths(layers)]
    for label, y in references:
        at = frame.y(y)
        parts.append(
            f'<path class="reference" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="note" text-anchor="end" x="{WIDTH - RIGHT}" y="{at - 4:.1f}">'
            f"{escape(label)} {number(y)}</text>"
        )
    for index, (each, curve) in enumerate(zip(series, curves, strict=True)):
        parts.append(_curve(frame, each, curve, each.colour or colour_of(index)))
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
    values = [y for s in series for _, y in _finite(s)]
    if not values:
        return ""
    frame = Frame([], ticks(min(0.0, *values), max(0.0, *values)), height)
    slot = (WIDTH - LEFT - RIGHT) / len(categories)
    thick = min(0.76 * slot / len(series), 30.0)
    parts = [frame.axes(x_label, y_label)]
    for i, category in enumerate(categories):
        centre = LEFT + (i + 0.5) * slot
        if i % max(1, math.ceil(len(categories) / 16)) == 0:
            parts.append(text_at(centre, height - BOTTOM + 14, escape(category)))
        for j, each in enumerate(series):
            y = each.y[i]
            if y is None or not math.isfinite(y):
                continue
            x = centre + (j - len(series) / 2) * thick
            top, foot = sorted((frame.y(y), frame.y(0.0)))
            parts.append(
                f'<rect x="{x:.1f}" y="{top:.1f}" width="{max(thick - 1, 0.5):.1f}" '
                f'height="{foot - top:.1f}" style="fill:{each.colour or colour_of(j)}">'
                f"<title>{escape(each.label)} {escape(category)}: {number(y)}</title></rect>"
            )
    parts.append(f'<path class="axis" d="M{LEFT} {frame.y(0.0):.1f}H{WIDTH - RIGHT}"/>')
    return figure("".join(parts), height, y_label, series if len(series) > 1 else ())


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
        parts.append(text_at(at(mark), height - BOTTOM + 14, number(mark, 4)))
    parts.append(text_at((left + WIDTH - RIGHT) / 2, height - 5, escape(x_label), "label"))
    for i, (label, value, below, above) in enumerate(rows):
        hue = colour_of(int(i > 0))
        y = TOP + (i + 0.5) * row_height
        parts.append(
            f'<text class="name" text-anchor="end" x="{left - 14}" y="{y + 4:.1f}">'
            f'{escape(label)}</text><path class="whisker" style="stroke:{hue}" '
            f'd="M{at(below):.1f} {y:.1f}H{at(above):.1f}"/>'
            f'<circle cx="{at(value):.1f}" cy="{y:.1f}" r="4.5" style="fill:{hue}">'
            f"<title>{number(value, 5)} ({number(below, 5)} to {number(above, 5)})</title></circle>"
        )
    return figure("".join(parts), height, x_label, ())


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
            parts.append(text_at(left - 10, y + cell / 2 + 4, str(r)))
            parts.append(text_at(left + (r + 0.5) * cell, TOP + size * cell + 14, str(r)))
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
                parts.append(text_at(x + cell / 2, y + cell / 2 + 4, text, f"value {ink}"))
    parts.append(text_at(WIDTH / 2, height - 4, escape(column_label), "label"))
    parts.append(turned_at(left - 30, TOP + size * cell / 2, row_label))
    return figure("".join(parts), height, f"{row_label} by {column_label}", ())


class Frame:
    """The plot area: data to page coordinates, grid and axis text."""

    def __init__(
        self, x_ticks: list[float], y_ticks: list[float], height: int, top: int = TOP
    ) -> None:
        self.x_ticks, self.y_ticks, self.height, self.top = x_ticks, y_ticks, height, top
        self.x_low, self.x_high = (x_ticks[0], x_ticks[-1]) if x_ticks else (0.0, 1.0)

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        room = self.height - self.top - BOTTOM
        return self.height - BOTTOM - (value - low) / (high - low) * room

    def axes(self, x_label: str, y_label: str) -> str:
        parts = []
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(text_at(LEFT - 6, y + 4, number(tick, 4), "tick end"))
        for tick in self.x_ticks:
            if self.x_low <= tick <= self.x_high:
                parts.append(text_at(self.x(tick), self.height - BOTTOM + 14, number(tick, 5)))
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(text_at(middle, self.height - 5, escape(x_label), "label"))
        parts.append(turned_at(11, (self.height - BOTTOM + self.top) / 2, y_label))
        return "".join(parts)

    def depths(self, layers: int | None) -> str:
        """An axis above the plot: x as a fraction of so many layers; nothing for None."""
        if not layers:
            return ""
        parts = [text_at((LEFT + WIDTH - RIGHT) / 2, 10, "relative depth")]
        for share in (0, 0.25, 0.5, 0.75, 1):
            if self.x_low <= share * layers <= self.x_high:
                at = self.x(share * layers)
                parts.append(f'<path class="axis" d="M{at:.1f} {self.top - 4}v4"/>')
                parts.append(text_at(at, self.top - 8, number(share)))
        return "".join(parts)


def _curve(frame: Frame, series: Series, points: Sequence[tuple[float, float]], stroke: str) -> str:
    """One line; with its dots, whiskers and ring where the series has errors."""
    if not points:
        return ""
    path = "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in points)
    dashes = ";stroke-dasharray:5 4" if series.dashed else ""
    parts = [
        f'<path class="curve" style="stroke:{stroke}{dashes}" d="M{path}">'
        f"<title>{escape(series.label)}</title></path>"
    ]
    for (x, y), (_, low, high) in zip(points, _whiskers(series), strict=False):
        place = f'cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}"'
        if series.chosen is not None and x == (series.x or range(len(series.y)))[series.chosen]:
            parts.append(f'<circle class="ring" style="stroke:{stroke}" {place} r="7.5"/>')
        parts.append(
            f'<path class="error" style="stroke:{stroke}" '
            f'd="M{frame.x(x):.1f} {frame.y(low):.1f}V{frame.y(high):.1f}"/>'
            f'<circle style="fill:{stroke}" {place} r="3.2"><title>{escape(series.label)}, '
            f"{number(x)}: {number(y, 4)} ± {number((high - low) / 2)}</title></circle>"
        )
    return "".join(parts)


def _whiskers(series: Series) -> list[tuple[float, float, float]]:
    """(x, low, high) of the points that have a value; none for a series without errors."""
    if not series.error:
        return []
    errors = [e if e is not None and math.isfinite(e) else 0.0 for e in series.error]
    places = series.x or range(len(series.y))
    return [
        (x, y - e, y + e)
        for x, y, e in zip(places, series.y, errors, strict=True)
        if y is not None and math.isfinite(y)
    ]


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


def text_at(x: float, y: float, text: str, style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{text}</text>'


def turned_at(x: float, y: float, text: str) -> str:
    turn = f'transform="rotate(-90 {x:.1f} {y:.1f})"'
    return f'<text class="label" {turn} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def colour_of(index: int) -> str:
    return f"var(--c{index % 4})"


def figure(body: str, height: int, name: str, legend: Sequence[Series]) -> str:
    keys = "".join(
        f'<span><i style="background:{s.colour or colour_of(i)}"></i>{escape(s.label)}</span>'
        for i, s in enumerate(legend)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name)}">{body}</svg>'
        + (f'<div class="legend">{keys}</div>' if keys else "")
    )
