"""A chart in Vega-Lite (https://vega.github.io/vega-lite) with its numbers, and shared channels.

Colours are variables of the page's style sheet: one drawing serves light, dark and print.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from protlm_jax.storage.files import write_atomically

Row = Mapping[str, Any]
Spec = dict[str, Any]

STYLE = (files("protlm_jax.report") / "page.css").read_text(encoding="utf-8")
CLASSES = [f"var(--k{i})" for i in range(10)]
PALETTE = [f"var(--c{i})" for i in range(4)] + CLASSES

CONFIG: Spec = {
    "background": "transparent",
    "font": 'ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif',
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)", "titleColor": "var(--soft)", "titleFontWeight": 400,
        "gridColor": "var(--line)", "domain": False, "tickColor": "var(--line)",
        "labelFontSize": 11, "titleFontSize": 11, "labelLimit": 220, "tickCount": 6,
    },
    "legend": {
        "labelColor": "var(--soft)", "orient": "bottom", "labelFontSize": 11, "title": None,
        "labelLimit": 260, "columns": 3,
    },
    "header": {"labelColor": "var(--ink)", "labelFontWeight": 500, "title": None},
    "title": {"color": "var(--ink)", "fontSize": 12, "fontWeight": 500, "anchor": "middle"},
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A chart and the numbers that it draws; notebooks display one as SVG.

    Attributes:
        chart: in Vega-Lite, without its data.
        rows: the numbers, one mapping for each mark.
        table: field -> heading of its column in the table under the picture.
        listed: the rows of that table, where they are not the marks' own.
    """

    chart: Spec
    rows: Sequence[Row]
    table: Mapping[str, str]
    listed: Sequence[Row] = ()

    @property
    def spec(self) -> Spec:
        """The chart with its data."""
        return {"data": {"values": list(self.rows)}, **self.chart}

    def titled(self, title: str) -> Picture:
        """The same under a title, for a file or a notebook."""
        return replace(self, chart={**self.chart, "title": title})

    def json(self) -> Markup:
        """The spec, safe inside a script element."""
        return Markup(json.dumps(self.spec, separators=(",", ":")).replace("<", "\\u003c"))

    def cells(self) -> list[list[str]]:
        """The numbers as text, to four digits, a list for each row."""
        found = [[row.get(field) for field in self.table] for row in self.listed or self.rows]
        return [[v if isinstance(v, str) else number(v, 4) for v in row] for row in found]

    def save(self, path: Path) -> None:
        """Writes an SVG file in the colours of light pages, whole or not at all.

        Raises:
            ProtlmError: it cannot be written.
        """
        write_atomically(path, self._repr_svg_() + "\n")

    def _repr_svg_(self) -> str:
        import vl_convert

        spec = {**self.spec, "config": CONFIG | {"background": "var(--paper)"}}
        if spec.get("width") == "container":
            spec["width"] = 460
        light = dict(re.findall(r"(--\w+): (#\w+)", STYLE.partition("@media")[0]))
        text = re.sub(r"var\((--\w+)\)", lambda found: light[found[1]], json.dumps(spec))
        svg: str = vl_convert.vegalite_to_svg(text)
        return svg


def number(value: object, digits: int = 3) -> str:
    """A short decimal; "-" for everything but a finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}" if abs(value) < 1e4 else f"{value:,.0f}"


def steps(count: int) -> list[str]:
    """Colours of so many steps of one scale."""
    return [f"var(--s{round(4 * i / max(1, count - 1))})" for i in range(count)]


def has(rows: Sequence[Row], field: str) -> bool:
    """Whether any row has a value there."""
    return any(row.get(field) is not None for row in rows)


def finite(rows: Sequence[Row], *fields: str) -> list[dict[str, Any]]:
    """The rows whose fields are finite numbers; other numbers that are not finite become None."""

    def clean(value: Any) -> Any:
        value = value.item() if hasattr(value, "item") else value  # NumPy's
        return None if isinstance(value, float) and not math.isfinite(value) else value

    cleaned = [{key: clean(value) for key, value in row.items()} for row in rows]
    return [row for row in cleaned if all(row.get(field) is not None for field in fields)]


def distinct(rows: Sequence[Row], field: str) -> list[Any]:
    """The values of a field, each once, in order of appearance."""
    return list(dict.fromkeys(row[field] for row in rows))


def colour(
    field: str, values: Sequence[str], colours: Mapping[str, str], legend: Any = None
) -> Spec:
    """The colour channel; values without a colour take those of PALETTE, in order."""
    hues = [colours.get(name, PALETTE[i % len(PALETTE)]) for i, name in enumerate(values)]
    scale = {"domain": list(values), "range": hues}
    return {"field": field, "type": "nominal", "scale": scale, "legend": legend}


def legend_switch(field: str = "series", faint: float = 0.08) -> tuple[Spec, Spec]:
    """A click on a name in the legend shows it alone: the parameter, and the opacity channel."""
    pick = {"name": "pick", "select": {"type": "point", "fields": [field]}, "bind": "legend"}
    return pick, {"condition": {"param": "pick", "value": 1}, "value": faint}


def tooltip(about: Mapping[str, str], value: str, title: str, rows: Sequence[Row]) -> list[Spec]:
    """The fields that a mark shows under the pointer: what it is, its value and its interval."""
    found: list[Spec] = [{"field": field, "title": name or field} for field, name in about.items()]
    found.append({"field": value, "type": "quantitative", "title": title, "format": ".4g"})
    return found + [
        {"field": field, "type": "quantitative", "format": ".3g"}
        for field in ("low", "high", "largest")
        if has(rows, field)
    ]


def ends(rows: Sequence[Row]) -> dict[str, str]:
    """The table's columns of an interval, where there is one."""
    return {"low": "low", "high": "high"} if has(rows, "low") else {}
