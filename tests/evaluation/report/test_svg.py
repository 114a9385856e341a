"""Charts are well-formed, place what they are given, and escape text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.evaluation.report import svg

NASTY = '<script>"&'


def parsed(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{chart}</div>")


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_the_range_in_few_round_steps(low: float, spread: float) -> None:
    high = low + spread
    marks = svg.ticks(low, high)
    slack = 1e-6 * (marks[-1] - marks[0])
    assert marks[0] <= low + slack and high - slack <= marks[-1]
    assert 2 <= len(marks) <= 8


def test_ticks_of_a_single_value() -> None:
    assert svg.ticks(3.0, 3.0)[0] < 3.0 < svg.ticks(3.0, 3.0)[-1]


def test_line_chart_leaves_gaps_out_and_escapes() -> None:
    series = [svg.Series(NASTY, [1.0, None, float("nan"), 2.0], [0, 1, 2, 3])]
    chart = svg.line_chart(
        series, x_label=NASTY, y_label=NASTY, references=[(NASTY, 1.5)], legend=True
    )
    root = parsed(chart)
    curve = root.find(".//path[@class='curve']")
    assert curve is not None and curve.get("d", "").count("L") == 1
    assert "<script>" not in chart
    assert root.find(".//path[@class='reference']") is not None


def test_line_chart_puts_higher_values_higher() -> None:
    chart = svg.line_chart([svg.Series("a", [1.0, 3.0], [0, 1])], x_label="x", y_label="y")
    start, end = re.search(r'class="curve"[^>]*d="M([^"]*)"', chart).group(1).split("L")
    (x0, y0), (x1, y1) = (map(float, p.split()) for p in (start, end))
    assert x1 > x0 and y1 < y0
    assert svg.line_chart([svg.Series("a", [None])], x_label="x", y_label="y") == ""
    for x in (0, 1, 5):
        assert parsed(svg.line_chart([svg.Series("one", [2.0], [x])], x_label="x", y_label="y"))


def test_bands_lie_around_their_curve_and_stop_at_gaps() -> None:
    series = svg.Series(
        "a", [1.0, 2.0, None, 3.0, 4.0], [0, 1, 2, 3, 4],
        low=[0.5, 1.5, None, None, 3.5], high=[1.5, 2.5, None, 4.0, 4.5],
    )  # fmt: skip
    chart = parsed(svg.line_chart([series], x_label="x", y_label="y"))
    (band,) = (p for p in chart.iter("path") if p.get("class") == "band")
    assert len(re.findall(r"[\d.]+ [\d.]+", band.get("d", ""))) == 4
    words = [title.text for dot in chart.iter("circle") for title in dot]
    assert words == ["a, x 0: 1 (0.5 to 1.5)", "a, x 1: 2 (1.5 to 2.5)", "a, x 3: 3",
                     "a, x 4: 4 (3.5 to 4.5)"]  # fmt: skip


def test_whole_ticks_are_whole() -> None:
    for high in (1, 2, 5, 33, 48):
        marks = svg.ticks(0, high, whole=True)
        assert all(mark == int(mark) for mark in marks) and marks[-1] >= high


def test_long_curves_are_thinned_to_means() -> None:
    points = svg._thinned([(float(i), float(i % 2)) for i in range(2400)])
    assert len(points) == 240
    assert all(y == pytest.approx(0.5) for _, y in points)


def test_bars_start_at_zero() -> None:
    chart = parsed(
        svg.bar_chart(["0", "1"], [svg.Series("a", [2.0, -1.0])], x_label="x", y_label="y")
    )
    up, down = chart.findall(".//rect")
    assert float(up.get("y")) + float(up.get("height")) == pytest.approx(float(down.get("y")))
    assert float(up.get("height")) == pytest.approx(2 * float(down.get("height")), abs=0.11)


def test_heat_map_scales_to_the_largest_cell() -> None:
    matrix = [[None, 0.5, 1.0], [None, None, 0.0], [None, None, None]]
    chart = parsed(svg.heat_map(matrix, row_label="r", column_label="c"))
    cells = [r for r in chart.findall(".//rect") if r.get("class") == "cell"]
    opacity = [float(c.get("style", "").split(":")[1]) for c in cells]
    assert opacity == pytest.approx([0.525, 1.0, 0.05])
    assert parsed(svg.heat_map([[None]], row_label="r", column_label="c")) is not None


def test_intervals_keep_their_order() -> None:
    chart = parsed(svg.interval_chart([("a", 1.0, 0.9, 1.1), (NASTY, 2.0, 1.8, 2.2)], x_label="x"))
    first, second = (float(c.get("cx")) for c in chart.findall(".//circle"))
    assert first < second
