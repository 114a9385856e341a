"""The page around the sections: its style and script, and the pieces that text is set in.

`page.css` has typography, light and dark, phone width and print; `page.js` lets a pointer ask the
charts (words on marks, legends that hide a series, colours of heat maps). Both are put into the
page, and without the script it says the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

_INTERVAL = re.compile(r"([-+\d.,e]+) (\([-+\d.,e]+ to [-+\d.,e]+\))")
_FOLDER = files("protlm_jax.evaluation.report")
_SCRIPT = (_FOLDER / "page.js").read_text(encoding="ascii")
_STYLE = (_FOLDER / "page.css").read_text(encoding="ascii")
_HUES = [*(f"k{i}" for i in range(10)), *(f"s{i}" for i in range(5)), "kx"]
# Pointing at a class in a legend leaves only that class in the maps beside it.
_STYLE += "".join(
    f".dots.{hue} {{ stroke: var(--{hue}); }} i.{hue} {{ background: var(--{hue}); }} "
    f"svg text.{hue} {{ fill: var(--{hue}); }}\n"
    f".map-group:has(.legend .{hue}:hover, .legend .{hue}:focus) .map :is(.dots, .letter)"
    f":not(.{hue}) {{ opacity: .07; }}\n"
    for hue in _HUES
)


def page(title: str, lead: str, figures: Sequence[tuple[str, str]], sections: str) -> str:
    """The whole document. `sections` is HTML; all else is text and is escaped."""
    cards = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(meaning)}</span></div>"
        for value, meaning in figures
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'
        + (f'<div class="figures">{cards}</div>' if cards else "")
        + sections
        + "<footer>Made by protlm_jax. This page is one file and loads nothing.</footer>"
        f"</main><script>{_SCRIPT}</script></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and its parts (HTML)."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def caption(text: str) -> str:
    return f'<p class="caption">{escape(text)}</p>'


def headline(text: str) -> str:
    """What a section says, in a sentence or two."""
    return f'<p class="headline">{escape(text)}</p>'


def sentences(texts: Sequence[str]) -> str:
    """What numbers say, one point each; nothing for none."""
    points = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="reading">{points}</ul>' if points else ""


def table(
    header: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    text: bool = False,
    kind: str = "",
) -> str:
    """A table; each row is its CSS class and its cells. Cells are text and are escaped.

    What stands after a "±", or an interval in brackets, is set smaller. `text` aligns the cells to
    the left and lets them wrap.
    The kind "views" keeps the first column in sight while a narrow screen scrolls the others, and
    "views wrap" breaks its lines.
    """
    style = ' class="text"' if text else ""
    head = "".join(f"<th{style}>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f'<tr class="{escape(kind)}">'
        + "".join(f"<td{style}>{_cell(cell)}</td>" for cell in cells)
        + "</tr>"
        for kind, cells in rows
    )
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table class="{kind}">{inside}</table></div>'


def grid(kind: str, parts: Sequence[str]) -> str:
    """Charts side by side as far as they find room: "pair", "maps" or "maps six"."""
    return f'<div class="{kind}">{"".join(parts)}</div>'


def titled(title: str, words: str, chart: str) -> str:
    """A chart (HTML) under its title and a few plainer words."""
    above = f"<figcaption><b>{escape(title)}</b> {escape(words)}</figcaption>"
    return f"<figure>{above}{chart}</figure>"


def legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """CSS class of the colour, name and count of each class, above the maps that show it."""
    return "".join(
        [
            '<div class="legend">',
            *(
                f'<span class="{hue}" tabindex="0"><i class="{hue}"></i>{escape(name)} '
                f"<small>{escape(count)}</small></span>"
                for hue, name, count in entries
            ),
            "</div>",
        ]
    )


def folded(title: str, text: str) -> str:
    """Preformatted text behind a line that opens it."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def unfolds(title: str, *parts: str) -> str:
    """Parts (HTML) behind a line that opens them; nothing for no parts."""
    inside = "".join(parts)
    return f"<details><summary>{escape(title)}</summary>{inside}</details>" if inside else ""


def _cell(text: str) -> str:
    if found := _INTERVAL.fullmatch(text):
        return f'{found[1]} <small class="interval">{found[2]}</small>'
    value, sign, error = text.partition(" ± ")
    return escape(value) + (f" <small>± {escape(error)}</small>" if sign else "")
