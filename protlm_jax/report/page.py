"""The page around the sections, and what sections are made of (templates/blocks.html)."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from protlm_jax.evaluation.depth.claims import Claim
from protlm_jax.evaluation.depth.claims import table as claims_table
from protlm_jax.report.picture import CONFIG, STYLE

_INTERVAL = re.compile(r"([-+\d.,e]+) (\([-+\d.,e]+ to [-+\d.,e]+\))")
_NAMES = {
    "model": "this model", "random": "random initialisation", "one_hot": "one-hot residues",
    "blosum62": "BLOSUM62 rows", "training_frequencies": "training frequencies",
    "own_composition": "own composition", "composition": "amino-acid composition",
    "own_composition_best_smoothing": "smoothed composition", "majority": "commonest class",
    "linear": "linear head", "cnn": "CNN head", "fnn": "FNN head",
    "light_attention": "Light Attention head", "q3": "Q3", "q8": "Q8", "gb1": "GB1", "mcc": "MCC",
    "mae": "MAE", "r2": "R²", "cb513": "CB513", "ts115": "TS115", "casp12": "CASP12",
    "new364": "NEW364",
}  # fmt: skip


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
table: Callable[..., Piece] = _BLOCKS.table
picture: Callable[..., Piece] = _BLOCKS.picture
unfolds: Callable[..., Piece] = _BLOCKS.unfolds
folded: Callable[[str, str], Piece] = _BLOCKS.folded


def document(
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


def name(key: str) -> str:
    """A key of results for readers."""
    return _NAMES.get(key, key.replace("_", " "))


def claims(rows: Sequence[Claim], control: Sequence[Claim] = ()) -> Piece:
    """The table of claims, beside those of a control; nothing for none."""
    if not rows:
        return Piece("")
    made = claims_table(rows, control)
    words = "A verdict is undecided where the 95 % interval includes the threshold."
    return table(made.columns, made.cells(), kind="views wrap") + caption(words)


def difference(words: str, estimate: Mapping[str, Any], scale: float = 1.0) -> Claim:
    """The claim that a paired difference is above or below 0."""
    value, low, high = (
        None if estimate[key] is None else scale * estimate[key] for key in ("value", "low", "high")
    )
    verdict = "undecided"
    if low is not None and high is not None and not low <= 0 <= high:
        verdict = "higher" if low > 0 else "lower"
    return Claim("", words, value or 0.0, low, high, 0.0, verdict)


def around(estimate: Mapping[str, Any], scale: float = 1.0) -> dict[str, float | None]:
    """An estimate as "value", with one standard error to each side as "low" and "high"."""
    value, error = scale * estimate["value"], estimate["standard_error"]
    if error is None:
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": value - scale * error, "high": value + scale * error}
