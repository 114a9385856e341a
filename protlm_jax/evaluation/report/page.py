"""The page around the sections: typography, light and dark, phone width, print."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --paper: #fdfcfa; --ink: #1f2328; --soft: #667078;
  --line: #e4e1db; --card: #f5f3ee; --c0: #1f6f8b; --c1: #c2703d; --c2: #5f8a4e; --c3: #8c6bb1;
  --on: #fff; --k0: #332288; --k1: #cc6677; --k2: #44aa99; --k3: #c9a227; --k4: #882255;
  --k5: #6bb1dd; --k6: #117733; --k7: #aa4499; --k8: #8c8c2a; --k9: #9a9fa3; --kx: #d5d3ce;
  --s0: #2c4a7c; --s1: #3f7f93; --s2: #6fa67c; --s3: #c0a63c; --s4: #d6702f; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181b; --ink: #e4e6e8; --soft: #98a2aa; --line: #2c3237; --card: #1d2125;
    --c0: #5fb3ce; --c1: #e0935f; --c2: #8fbb7c; --c3: #b497d6; --on: #10181c; --k0: #8f86e8;
    --k1: #e58a99; --k2: #53c4b1; --k3: #e6cf6e; --k4: #c4568c; --k5: #99d5f5; --k6: #47a868;
    --k7: #cf7bc0; --k8: #b5b548; --k9: #8a9096; --kx: #3a4147; --s0: #6d93d6; --s1: #5fb0c4;
    --s2: #8fc79b; --s3: #dcc668; --s4: #ee9257; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.6 Charter, "Bitstream Charter", "Iowan Old Style", Cambria, Georgia, serif; }
main { max-width: 46rem; margin: 0 auto; padding: 3.5rem 1.25rem 5rem; }
h1 { font-size: 2.1rem; line-height: 1.15; font-weight: 600; margin: 0 0 .4rem;
  letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; font-weight: 600; margin: 3.6rem 0 .5rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; font-weight: 600; margin: 2rem 0 .2rem; }
p { margin: .5rem 0 1rem; max-width: 40rem; overflow-wrap: anywhere; }
.headline { font-size: 1.12rem; line-height: 1.5; margin: .6rem 0 1.2rem; }
.lead, .caption, footer { color: var(--soft); }
.caption { font-size: .92rem; line-height: 1.5; margin: .2rem 0 1.1rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: .8rem; margin: 1.8rem 0 0; }
.figures div { background: var(--card); border-radius: .5rem; padding: .85rem 1rem; }
.figures b { display: block; font-size: 1.6rem; font-weight: 600; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.figures span { display: block; font-size: .84rem; line-height: 1.35; color: var(--soft); }
svg, .legend, table, .tick, .label, .note, .name, .value, pre, summary {
  font-family: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
svg { display: block; width: 100%; max-width: 38rem; height: auto; margin: .6rem auto 0;
  overflow: visible; }
svg text { fill: var(--soft); font-size: 11.5px; text-anchor: middle; }
svg text.end { text-anchor: end; }
svg text.label { font-size: 11.5px; }
svg text.note { font-size: 11px; text-anchor: end; }
svg text.name { font-size: 12.5px; fill: var(--ink); text-anchor: end; }
svg text.value { font-size: 10.5px; }
svg text.on { fill: var(--on); }
svg text.off { fill: var(--ink); }
.grid { stroke: var(--line); fill: none; }
.axis { stroke: var(--soft); fill: none; }
.reference { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
.curve { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.whisker { stroke-width: 2.5; stroke-linecap: round; }
.error { stroke-width: 1.3; }
.ring { fill: none; stroke-width: 1.6; }
svg text.small { font-size: 10px; }
svg text.start { text-anchor: start; }
.frame { fill: none; stroke: var(--line); stroke-width: 2; }
.dots { fill: none; stroke-linecap: round; stroke-opacity: .8; }
svg text.letter { font-size: 30px !important; font-weight: 600;
  stroke: var(--paper); stroke-width: 3px; paint-order: stroke; }
.cell { fill: var(--c0); }
.empty { fill: none; }
.legend { display: flex; flex-wrap: wrap; justify-content: center; gap: .2rem 1.1rem;
  font-size: .82rem; color: var(--soft); margin: .3rem 0 1rem; }
.pair svg:not(.tight) text { font-size: 14px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr));
  gap: .4rem 1rem; }
.maps { display: grid; align-items: end; gap: .9rem .8rem; grid-template-columns: repeat(2, 1fr); }
.thirds { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); }
figure { margin: 0; }
.maps svg { margin-top: .1rem; }
figcaption { font: .82rem/1.35 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto,
  sans-serif; color: var(--soft); margin: 0; }
figcaption b { font-weight: 500; color: var(--ink); }
.legend span:focus { outline: 1px solid var(--soft); outline-offset: 2px; }
.legend small { font-size: .92em; opacity: .85; font-variant-numeric: tabular-nums; }
.legend i { display: inline-block; width: .75em; height: .75em; border-radius: 2px;
  margin-right: .4em; }
.wide { overflow-x: auto; margin: .6rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .88rem; width: 100%;
  font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 500; color: var(--soft); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td { text-align: right; white-space: nowrap; }
th, td { padding: .38rem .7rem; border-bottom: 1px solid var(--line); }
tr.strong td { font-weight: 600; }
tr.apart td { border-top: 1px solid var(--soft); }
td small { color: var(--soft); font-weight: 400; font-size: .92em; }
table.views th { white-space: normal; vertical-align: bottom; line-height: 1.25; }
table.views th, table.views td { padding: .38rem .4rem; }
table.views td:first-child, table.views th:first-child { position: sticky; left: 0;
  background: var(--paper); }
td.text, th.text { text-align: left; white-space: normal; overflow-wrap: anywhere; }
details { margin: .8rem 0; }
summary { cursor: pointer; font-size: .9rem; color: var(--soft); }
pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .78rem;
  line-height: 1.5; background: var(--card); border-radius: .5rem; padding: 1rem;
  overflow-x: auto; }
footer { margin-top: 4rem; font-size: .88rem; }
@media (min-width: 44rem) { .maps.stack { grid-template-columns: 1fr; }
  .maps.six { grid-auto-flow: column;
  grid-template: repeat(2, auto) / repeat(3, 1fr); } }
@media (max-width: 24rem) { .pair { grid-template-columns: 1fr; } }
@media (max-width: 34rem) { main { padding-top: 2rem; } h1 { font-size: 1.7rem; }
  svg text { font-size: 14px !important; } svg text.small { font-size: 11.5px !important; }
  svg text.name { font-size: 13px !important; }
  svg.tight text { font-size: 11.5px !important; }
  svg text.value { font-size: 11.5px !important; } }
@media print { h2 { break-after: avoid; } svg { break-inside: avoid; } }
"""
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
        "</main></body></html>\n"
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


def table(
    header: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    text: bool = False,
    kind: str = "",
) -> str:
    """A table; each row is its CSS class and its cells. Cells are text and are escaped.

    What stands after a "±" is set smaller. `text` aligns the cells to the left and lets them wrap.
    The kind "views" keeps the first column in sight while a narrow screen scrolls the others.
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
    value, sign, error = text.partition(" ± ")
    return escape(value) + (f" <small>± {escape(error)}</small>" if sign else "")
