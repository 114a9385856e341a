"""A chart as a file of its own, or in a notebook: what the page around it gives elsewhere, inside.

standalone(heat_map(rows, row_label="skipped", column_label="affected"))
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from protlm_jax.evaluation.report.svg import Series, colour_of
from protlm_jax.storage.files import write_atomically

# The page's colours and sizes for what charts draw; scoped, because a notebook is a page too.
_STYLE = """
.chart { --paper: #fdfcfa; --ink: #1f2328; --soft: #667078; --line: #e4e1db; --on: #fff;
  --c0: #1f6f8b; --c1: #c2703d; --c2: #5f8a4e; --c3: #8c6bb1; }
.chart text { fill: var(--soft); font: 11.5px ui-sans-serif, system-ui, sans-serif;
  text-anchor: middle; }
.chart text.end, .chart text.note, .chart text.name { text-anchor: end; }
.chart text.start { text-anchor: start; }
.chart text.name, .chart text.title { fill: var(--ink); }
.chart text.title { font-size: 13px; font-weight: 600; }
.chart text.value { font-size: 10.5px; }
.chart text.on { fill: var(--on); }
.chart text.off { fill: var(--ink); }
.chart .grid { stroke: var(--line); fill: none; }
.chart .axis { stroke: var(--soft); fill: none; }
.chart .reference { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
.chart .curve { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.chart .whisker { stroke-width: 2.5; stroke-linecap: round; }
.chart .error { stroke-width: 1.3; }
.chart .ring { fill: none; stroke-width: 1.6; }
.chart .cell { fill: var(--c0); }
.chart .empty { fill: none; }
"""
_ABOVE, _LINE, _EDGE = 26, 18, 12


@dataclass(frozen=True)
class Figure:
    """An SVG document; a notebook whose cell ends in one shows it."""

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            ProtlmError: when it cannot be written.
        """
        write_atomically(Path(path), self.svg + "\n")


def standalone(chart: str, legend: Sequence[Series] = (), title: str = "") -> Figure:
    """A chart with its own style, its legend and a title, on paper of its own.

    Args:
        chart: what a function of `svg` returned.
        legend: the series whose colours are explained below it, in the order of the chart.
        title: stands above it.

    Raises:
        ValueError: the text holds no chart, as where there was nothing to draw.
    """
    found = re.search(r'<svg viewBox="0 0 (\d+) (\d+)"[^>]*>(.*?)</svg>', chart, re.DOTALL)
    if found is None:
        raise ValueError("there is no chart in this text: was there a finite number to draw?")
    width, height, body = int(found[1]), int(found[2]), found[3]
    above = _ABOVE if title else _EDGE
    whole = above + height + _LINE * len(legend) + _EDGE
    parts = [f'<rect width="{width}" height="{whole}" style="fill:var(--paper)"/>']
    if title:
        parts.append(f'<text class="title" x="{width / 2}" y="17">{escape(title)}</text>')
    parts.append(f'<g transform="translate(0 {above})">{body}</g>')
    for index, series in enumerate(legend):
        y = above + height + _LINE * (index + 0.5)
        colour = series.colour or colour_of(index)
        dashes = ";stroke-dasharray:5 4" if series.dashed else ""
        parts.append(
            f'<path d="M60 {y}h22" style="stroke:{colour};stroke-width:3;fill:none{dashes}"/>'
            f'<text class="start" x="90" y="{y + 4}">{escape(series.label)}</text>'
        )
    return Figure(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {whole}" '
        f'width="{width}" height="{whole}" role="img" aria-label="{escape(title or "chart")}">'
        f"<style>{_STYLE}</style>{''.join(parts)}</svg>"
    )
