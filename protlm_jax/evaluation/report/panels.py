"""Charts that set things side by side: dots with intervals, confusion matrices, maps of points.

Inline SVG as in `svg`, and the same rule: all text given here is escaped. Classes of points are
the page's `--k0` to `--k9` (unordered, safe for colour-blind eyes) or `--s0` to `--s4` (ordered).
"""

from __future__ import annotations

import cmath
import itertools
from collections.abc import Sequence
from html import escape

from protlm_jax.evaluation.report.frame import (
    BOTTOM,
    RIGHT,
    TOP,
    WIDTH,
    colour_of,
    number,
    text_at,
    ticks,
)
from protlm_jax.evaluation.report.svg import Series, figure

_MAP = 400  # side of a map in its own units


def dot_chart(rows: Sequence[tuple[str, str]], series: Sequence[Series], *, x_label: str) -> str:
    """A row for each test set, a dot for each system, a whisker of one standard error each way.

    Args:
        rows: (label, smaller words below it).
        series: `y` and `error` have one number a row; None leaves the dot out.
        x_label: what the numbers are.
    """
    found = [
        (value - (error or 0.0), value + (error or 0.0))
        for each in series
        for value, error in zip(each.y, each.error, strict=True)
        if value is not None
    ]
    if not found:
        return ""
    left, line = 132, 9
    row_height = max(34, line * len(series) + 14)
    height = TOP + BOTTOM + row_height * len(rows)
    marks = ticks(min(low for low, _ in found), max(high for _, high in found))

    def at(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (WIDTH - RIGHT - left)

    parts = []
    for mark in marks:
        parts.append(f'<path class="grid" d="M{at(mark):.1f} {TOP}V{height - BOTTOM}"/>')
        parts.append(text_at(at(mark), height - BOTTOM + 14, number(mark, 4)))
    parts.append(text_at((left + WIDTH - RIGHT) / 2, height - 5, escape(x_label), "label"))
    for i, (label, below) in enumerate(rows):
        middle = TOP + (i + 0.5) * row_height
        if i:
            parts.append(f'<path class="grid" d="M0 {middle - row_height / 2:.1f}H{WIDTH}"/>')
        parts.append(text_at(left - 14, middle - 1, escape(label), "name"))
        parts.append(text_at(left - 14, middle + 13, escape(below), "small end"))
        for j, each in enumerate(series):
            value, error = each.y[i], each.error[i] or 0.0
            if value is None:
                continue
            y, hue = middle + (j - (len(series) - 1) / 2) * line, each.colour or colour_of(j)
            parts.append(
                f'<path class="whisker" data-s="{j}" style="stroke:{hue}" '
                f'd="M{at(value - error):.1f} {y:.1f}H{at(value + error):.1f}"/>'
                f'<circle class="dot" data-s="{j}" cx="{at(value):.1f}" cy="{y:.1f}" '
                f'r="{4.2 if j == 0 else 3.4}" style="fill:{hue}">'
                f"<title>{escape(label)}, {escape(each.label)}: "
                f"{number(value, 4)} ± {number(error, 2)}</title></circle>"
            )
    return figure("".join(parts), height, x_label, series if len(series) > 1 else ())


def confusion(counts: Sequence[Sequence[float]], classes: Sequence[str]) -> str:
    """A square of percentages of each row: what is there, by what was read; counts on hover."""
    size, longest = len(classes), max(map(len, classes))
    left = 14 + 6.0 * longest
    cell = 58.0 if size <= 4 else 44.0 if size <= 8 else 34.0
    slanted = cell < 6.6 * longest
    head = 16 + (0.74 * left if slanted else 0.0)
    width = left + cell * size + (0.74 * left if slanted else 6.0)
    parts = []
    for r, (row, truth) in enumerate(zip(counts, classes, strict=True)):
        total, y = sum(row), head + r * cell
        parts.append(text_at(left - 7, y + cell / 2 + 4, escape(truth), "end"))
        parts.append(_column_name(left + (r + 0.5) * cell, head - 5, truth, slanted))
        for c, count in enumerate(row):
            x, share = left + c * cell, count / total if total else 0.0
            words = f"{truth} read as {classes[c]}: {count:,.0f} of {total:,.0f}"
            place = f'x="{x:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" height="{cell - 1:.1f}"'
            opacity = 0.05 + 0.95 * share
            parts.append(
                f'<rect class="cell" {place} style="fill-opacity:{opacity:.3f}">'
                f"<title>{escape(words)} ({100 * share:.1f} %)</title></rect>"
            )
            if total:
                ink = "value on" if share > 0.55 else "value off"
                parts.append(text_at(x + cell / 2, y + cell / 2 + 4, f"{100 * share:.0f}", ink))
    return (
        f'<svg class="tight" style="max-width:{1.25 * width:.0f}px" '
        f'viewBox="0 0 {width:.0f} {head + cell * size + 4:.0f}" role="img" '
        f'aria-label="confusion matrix, percent of each row">{"".join(parts)}</svg>'
    )


def scatter(
    points: Sequence[Sequence[float]],
    groups: Sequence[int],
    classes: Sequence[str],
    *,
    ordered: bool = False,
    letters: str = "",
) -> str:
    """A map: one dot (or letter) a point, both axes in the same unit, which is not shown.

    Args:
        points: [n, 2].
        groups: [n] class of each; -1 is drawn pale, below the others.
        classes: their names; the commoner ones are drawn first, below the rarer.
        ordered: whether the classes are steps of one scale.
        letters: [n] drawn instead of dots; those that would cover each other are moved apart.
    """
    places = _apart(_fitted(points, 30)) if letters else _fitted(points, 18)
    members: dict[int, list[tuple[float, float, str]]] = {}
    for (x, y), group, letter in zip(places, groups, letters or " " * len(places), strict=True):
        members.setdefault(group, []).append((x, y, letter))
    order = sorted(members, key=lambda group: (group >= 0, -len(members[group]), group))
    width = 13 if len(places) < 150 else 10 if len(places) < 700 else 7
    parts = [f'<rect class="frame" x="1" y="1" width="{_MAP - 2}" height="{_MAP - 2}" rx="8"/>']
    for group in order:
        name = classes[group] if group >= 0 else "unknown"
        hue, found = class_name(group, len(classes), ordered), members[group]
        if letters:
            parts += [
                f'<text class="letter {hue}" x="{x:.0f}" y="{y + 10:.0f}">{escape(letter)}'
                f"<title>{escape(letter)}: {escape(name)}</title></text>"
                for x, y, letter in found
            ]
            continue
        path = "".join(f"M{x:.0f} {y:.0f}h0" for x, y, _ in found)
        parts.append(
            f'<path class="dots {hue}" stroke-width="{width}" d="{path}">'
            f"<title>{escape(name)}</title></path>"
        )
    return f'<svg class="map" viewBox="0 0 {_MAP} {_MAP}" role="img">{"".join(parts)}</svg>'


def class_name(group: int, classes: int, ordered: bool) -> str:
    """The CSS class that colours a group of points: kx if unknown, k0 to k9, or s0 to s4."""
    if group < 0:
        return "kx"
    if ordered:
        return f"s{round(4 * group / max(1, classes - 1))}"
    return f"k{group % 10}"


def _fitted(points: Sequence[Sequence[float]], edge: int) -> list[tuple[float, float]]:
    """Centred in the square, as large as it takes without stretching; y upwards."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    span = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    scale = (_MAP - 2 * edge) / span
    middle_x, middle_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return [
        (_MAP / 2 + (x - middle_x) * scale, _MAP / 2 - (y - middle_y) * scale)
        for x, y in zip(xs, ys, strict=True)
    ]


def _apart(places: list[tuple[float, float]], least: float = 25.0) -> list[tuple[float, float]]:
    """Pushes points away from each other until each pair is so far apart, or nearly."""
    moved = [complex(x, y) for x, y in places]
    for _ in range(200):
        for i, j in itertools.combinations(range(len(moved)), 2):
            between = moved[j] - moved[i] or cmath.rect(0.1, i + j)
            if (short := least - abs(between)) > 0:
                step = between / abs(between) * short / 2
                moved[i], moved[j] = moved[i] - step, moved[j] + step
    return [(place.real, place.imag) for place in moved]


def _column_name(x: float, y: float, name: str, slanted: bool) -> str:
    if not slanted:
        return text_at(x, y, escape(name))
    turn = f'transform="rotate(-45 {x:.1f} {y:.1f})"'
    return f'<text class="start" {turn} x="{x:.1f}" y="{y:.1f}">{escape(name)}</text>'
