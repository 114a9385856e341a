"""The page around the sections, and what sections are made of (templates/blocks.html)."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from protlm_jax.report.picture import CONFIG, STYLE

_INTERVAL = re.compile(r"([-+\d.,e]+) (\([-+\d.,e]+ to [-+\d.,e]+\))")


def _interval(text: object) -> tuple[str, str, bool]:
    """A cell's value, its error or interval, and whether it is an interval."""
    if found := _INTERVAL.fullmatch(str(text)):
        return found[1], found[2], True
    value, sign, error = str(text).partition(" ± ")
    return value, sign.lstrip() + error, False


_ENVIRONMENT = Environment(
    loader=PackageLoader("protlm_jax.report"), autoescape=True, undefined=StrictUndefined
)
_ENVIRONMENT.filters["interval"] = _interval
_BLOCKS: Any = _ENVIRONMENT.get_template("blocks.html").module

Piece = Markup
section: Callable[..., Piece] = _BLOCKS.section
heading: Callable[[str], Piece] = _BLOCKS.heading
caption: Callable[[str], Piece] = _BLOCKS.caption
headline: Callable[[str], Piece] = _BLOCKS.headline
sentences: Callable[[Sequence[str]], Piece] = _BLOCKS.sentences
table: Callable[..., Piece] = _BLOCKS.table
picture: Callable[..., Piece] = _BLOCKS.picture
unfolds: Callable[..., Piece] = _BLOCKS.unfolds
folded: Callable[[str, str], Piece] = _BLOCKS.folded


def page(
    title: str, lead: str, figures: Sequence[tuple[str, str]], sections: Sequence[Piece]
) -> str:
    """The whole document; with charts it holds the library that draws them (Vega, 0.9 MB)."""
    inside = Markup("").join(sections)
    return _ENVIRONMENT.get_template("page.html").render(
        title=title,
        lead=lead,
        figures=figures,
        sections=inside,
        style=Markup(STYLE),
        library=Markup(_library() if "data-chart" in inside else ""),
        config=Markup(json.dumps(CONFIG)),
    )


@functools.cache
def _library() -> str:
    import vl_convert

    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return bundle.replace("</script", "<\\/script")
