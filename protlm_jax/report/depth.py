"""The depth part of the report: what a model's layers do, in words, in numbers and in charts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protlm_jax.report.depth_charts import CONTROL, estimate, noise_panels, panels
from protlm_jax.report.page import (
    Piece,
    caption,
    folded,
    heading,
    section,
    sentences,
    table,
    unfolds,
)
from protlm_jax.report.picture import number
from protlm_jax.report.sections import name

Results = Mapping[str, Any]

WHAT = "What each layer does"
_HEADLINES = {
    "loss": "loss, nats",
    "accuracy": "share of residues that are right",
    "depth_score": "depth score, by the effect on later layers",
    "answer_depth_score": "depth score, by the effect on the answer",
    "small_share": "share of layers that cost less than 0.05 nats",
    "half_depth": "share of the depth for half of the answer",
    "exit_depth": "share of the depth for 95 % of the answer",
    "late_contribution": "mean contribution in the second half",
}
_NOTE = (
    "In brackets and as bands: 95 % intervals, from a bootstrap over proteins. "
    "They say how far other proteins could change a number, and nothing of other trainings. Layers "
    "count from 0."
)


def depth(
    result: Results, control: Results | None = None, title: str = WHAT, fold: bool = False
) -> Piece:
    """All stacks of a model, one after the other.

    Args:
        result: of `evaluation.depth.plain.plain`.
        control: the same of its re-initialised copy.
        title: of the section.
        fold: put the charts behind a line that opens them.
    """
    proteins = result["proteins"]
    parts = [caption(f"Measured on {proteins:,} proteins; {result['positions']}. {_NOTE}")]
    for stack, measured in result["stacks"].items():
        if len(result["stacks"]) > 1:
            parts.append(heading(f"The {name(stack)}"))
        twin = (control or {}).get("stacks", {}).get(stack)
        said = [*measured["reading"], *result.get("beside_control", {}).get(stack, ())]
        parts += [sentences(said), _numbers(measured, twin)]
        charts = panels(measured, twin)
        if noise := result.get("noise"):
            charts += by_noise(noise["stacks"][stack])
        parts += [unfolds(f"Charts of {title}", *charts)] if fold else charts
        parts.append(_undefined(measured["undefined"]))
    return section(title, *parts, folded("How it was measured", _method(result)))


def _numbers(measured: Results, control: Results | None) -> Piece:
    """Headlines, the control's beside."""
    theirs = (control or {}).get("headlines", {})
    rows = [
        (_HEADLINES.get(key, name(key)), estimate(x),
         *([estimate(theirs.get(key, {}))] if control else []))
        for key, x in measured["headlines"].items()
    ]  # fmt: skip
    header = ("", "this model", *([CONTROL] if control else []))
    return table(header, rows, kind="views wrap") if rows else Piece("")


def by_noise(measured: Results) -> list[Piece]:
    """What depends on how much of a protein is hidden."""
    levels = measured["levels"]
    keys = [key for key in _HEADLINES if any(key in row for row in levels)]
    rows = [(number(row["noise"]), *(estimate(row.get(key, {})) for key in keys)) for row in levels]
    header = ("hidden", *(_HEADLINES[key] for key in keys))
    return [
        heading("With more or fewer residues hidden"),
        sentences(measured["reading"]),
        table(header, rows, kind="views") if keys else Piece(""),
        caption(
            "Embeddings that are scaled by the share that is hidden (ESM-2, DPLM) change sizes "
            "relative to the stream by that alone."
        ),
        *noise_panels(measured),
    ]


def _undefined(reasons: Mapping[str, str]) -> Piece:
    if not reasons:
        return Piece("")
    rows = [(name(metric), reason) for metric, reason in reasons.items()]
    return heading("Not defined here") + table(("measurement", "why"), rows, kind="text")


def _method(result: Results) -> str:
    cost = ", ".join(f"{name(key)} {value:.4g}" for key, value in result["cost"].items())
    return (
        f"model: {result['model']}\npositions: {result['positions']}\ncost: {cost}\n"
        "Formulas, sources and traps: docs/depth.md. Every number, with other measures of the same "
        "changes:\ndepth.csv, and arrays with a sum for each protein, beside this page."
    )


def leads(study: Results) -> list[tuple[str, str]]:
    """The first numbers of a single model, with words; nothing for several."""
    trained = [x for x in study["models"].values() if not x["control_of"]]
    if len(trained) > 1:
        return []
    found = next(iter(trained[0]["stacks"].values()))["headlines"]
    return [
        (number(found[key]["value"]), _HEADLINES[key])
        for key in ("loss", "depth_score", "small_share", "exit_depth")
        if key in found
    ]
