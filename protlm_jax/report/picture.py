"""A chart and its numbers, and what all charts share.

Charts are written in Vega-Lite (https://vega.github.io/vega-lite), as dictionaries. Colours are
variables of the page's style sheet (`--c0` ... `--c3`, `--k0` ... `--k9`, `--s0` ... `--s4`,
`--ink`, `--soft`, `--line`): one drawing serves light, dark and print.
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
PALETTE = [f"var(--c{i})" for i in range(4)] + [f"var(--k{i})" for i in range(10)]
CLASSES = [f"var(--k{i})" for i in range(10)]

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
    """A chart and the numbers that it draws; a notebook whose cell ends in one shows it.

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
        """The numbers as text, a list for each row."""
        rows = self.listed or self.rows
        return [[written(row.get(field)) for field in self.table] for row in rows]

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
    """A short decimal; a dash for what is no finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}" if abs(value) < 1e4 else f"{value:,.0f}"


def written(value: object) -> str:
    """A cell of a table: text as it is, numbers to four digits."""
    return value if isinstance(value, str) else number(value, 4)


def steps(count: int) -> list[str]:
    """Colours of so many steps of one scale."""
    return [f"var(--s{round(4 * i / max(1, count - 1))})" for i in range(count)]


def has(rows: Sequence[Row], field: str) -> bool:
    """Whether any row has a value there."""
    return any(row.get(field) is not None for row in rows)


def finite(rows: Sequence[Row], *fields: str) -> list[dict[str, Any]]:
    """The rows whose fields are finite numbers; what is not finite elsewhere becomes None."""

    def clean(value: Any) -> Any:
        if hasattr(value, "item"):  # NumPy's
            value = value.item()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    cleaned = [{key: clean(value) for key, value in row.items()} for row in rows]
    return [row for row in cleaned if all(row.get(field) is not None for field in fields)]


def ordered(rows: Sequence[Row], field: str) -> list[Any]:
    """The values of a field, each once, as they come."""
    return list(dict.fromkeys(row[field] for row in rows))


def hued(field: str, names: Sequence[str], colours: Sequence[str], legend: Any = None) -> Spec:
    """The colour channel: one colour a name, in their order."""
    hues = list(colours) or PALETTE
    scale = {"domain": list(names), "range": [hues[i % len(hues)] for i in range(len(names))]}
    return {"field": field, "type": "nominal", "scale": scale, "legend": legend}


def legend_switch(field: str = "series", faint: float = 0.08) -> tuple[Spec, Spec]:
    """A click on a name in the legend shows it alone: the parameter, and the opacity channel."""
    pick = {"name": "pick", "select": {"type": "point", "fields": [field]}, "bind": "legend"}
    return pick, {"condition": {"param": "pick", "value": 1}, "value": faint}


def tooltip(about: Mapping[str, str], value: str, title: str, rows: Sequence[Row]) -> list[Spec]:
    """What a pointer is told: what the mark is, its value, and what goes with it."""
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
