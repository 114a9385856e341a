"""The probe part of the report: one sentence, then what it rests on.

Pictures show the head that does best on validation; everything else is folded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from protlm_jax.evaluation.probes.results import METRICS, ProbeResult
from protlm_jax.report.charts import curves, intervals
from protlm_jax.report.grids import confusion
from protlm_jax.report.page import (
    Piece,
    caption,
    folded,
    heading,
    headline,
    picture,
    section,
    table,
    unfolds,
)
from protlm_jax.report.picture import Picture, number
from protlm_jax.report.sections import around, name
from protlm_jax.report.verdict import headline as verdict
from protlm_jax.report.verdict import preferred_head, title

_HUES = {
    "model": "var(--c0)",
    "random": "var(--c1)",
    "one_hot": "var(--c2)",
    "composition": "var(--c2)",
    "blosum62": "var(--c3)",
    "majority": "var(--soft)",
}


def probe(result: ProbeResult) -> Piece:
    """All heads of one benchmark."""
    benchmark, parts = result.benchmark, [headline(verdict(result))]
    for target in benchmark["targets"]:
        preferred = preferred_head(result, target)
        parts += _target(result, preferred, target)
        parts += [
            unfolds(f"{upper(name(target))} with the {name(head)}", *_numbers(result, head, target))
            for head in result.heads
            if head != preferred
        ]
    parts += [_published(result), caption(_counted(result)), _protocol(result)]
    return section(benchmark["title"], *parts)


def _target(result: ProbeResult, head: str, target: str) -> list[Piece]:
    """Pictures and tables of one target with one head."""
    views = result.views(head, target)
    parts = [
        heading(f"{upper(name(target))}, {name(head)}"),
        picture(_dots(result, head, views, target)),
        *_numbers(result, head, target),
    ]
    charts = [picture(_layers(result, head, v, target), title(result, v)) for v in views]
    if result.data.sizes["layer"] > 1 and charts:
        parts += [
            heading(f"{upper(name(target))} by layer"),
            charts[0],
            caption(
                "Each layer through a head of its own, ± one standard error over proteins; layer 0 "
                "is before the first block. Rings mark the layers that validation chose, which "
                "alone count above; the others describe. Dashed: inputs without layers."
            ),
            unfolds("By layer on the other test sets", *charts[1:]),
        ]
    return parts + _mistakes(result, head, views, target)


def _numbers(result: ProbeResult, head: str, target: str) -> list[Piece]:
    """The scores as a table, and what the model is above its controls."""
    views, kinds = result.views(head, target), result.inputs(head, target)
    unit = f"{result.benchmark['level']}s"
    rows = [
        (title(result, v), *(_cell(result, head, kind, v, target) for kind in kinds),
         *_sizes(result, v, target))
        for v in views
    ]  # fmt: skip
    gaps = [
        (title(result, v), *(result.written(result.minus(head, kind, v, target), target, "+")
                             for kind in kinds[1:]))
        for v in views
    ]  # fmt: skip
    chosen = ", ".join(
        f"{result.layer(head, kind)} ({name(kind)})" for kind in kinds if result.has_layers(kind)
    )
    measure = "Percent right" if result.is_classes(target) else "Rank correlation"
    columns = (unit, "proteins") if unit != "proteins" else (unit,)
    return [
        table(("test set", *map(name, kinds), *columns), rows, kind="views"),
        caption(f"{measure} of all labelled {unit} of a set, ± one standard error over proteins; "
                f"from layer {chosen} of {result.data.attrs['num_layers']}."),
        table(("this model minus", *map(name, kinds[1:])), gaps, kind="views"),
        caption("Differences are paired: both on the same proteins, in the same draws."),
    ]  # fmt: skip


def _dots(result: ProbeResult, head: str, views: Sequence[str], target: str) -> Picture:
    """A row for each test set, a dot with one standard error to each side for each input."""
    kinds = result.inputs(head, target)
    rows = [
        {
            "label": f"{title(result, v)}, {result.counts(v, target)[1]:,} proteins",
            "series": name(kind),
            **around(found, _scale(result, target)),
        }
        for kind in kinds
        for v in views
        if (found := result.score(head, kind, v, target))
    ]
    return intervals(rows, x=_measure(result, target), colours=[_HUES[kind] for kind in kinds])


def _layers(result: ProbeResult, head: str, view: str, target: str) -> Picture:
    """Score by layer on one test set; inputs without layers as level lines."""
    scale, layers = _scale(result, target), result.data["layer"].values.tolist()
    rows: list[dict[str, Any]] = []
    kinds = [k for k in result.inputs(head) if result.score(head, k, view, target)]
    for kind in kinds:
        points = result.by_layer(head, kind, view, target)
        flat = len(points) == 1
        if flat:
            points = [(x, points[0][1]) for x in (min(layers), max(layers))]
        for layer, found in points:
            if found:
                error = None if flat else found["standard_error"]
                rows.append({
                    "series": name(kind), "x": layer, "y": scale * found["value"],
                    "error": None if error is None else scale * error,
                    "dashed": flat, "chosen": not flat and layer == result.layer(head, kind),
                })  # fmt: skip
    colours = [_HUES[kind] for kind in kinds]
    return curves(rows, x="layer", y=_measure(result, target), whole=True, colours=colours)


def _mistakes(result: ProbeResult, head: str, views: Sequence[str], target: str) -> list[Piece]:
    """The confusion matrix of the first test set, the control's and the other sets' folded."""
    classes = result.benchmark["targets"][target]["classes"]
    drawn = []
    for view in views if "confusion" in result.data else ():
        for kind in [k for k in result.inputs(head, target) if result.has_layers(k)]:
            counts = result.array("confusion", head=head, input=kind, view=view, target=target)
            counts = counts[: len(classes), : len(classes)]
            if np.isfinite(counts).all():
                n = f"{result.counts(view, target)[0]:,} {result.benchmark['level']}s"
                label = f"{upper(name(kind))}: {title(result, view)}, {n}"
                drawn.append(picture(confusion(counts.tolist(), classes), label))
    if not drawn or not classes:
        return []
    return [
        heading(f"{upper(name(target))}, what is mistaken for what"),
        drawn[0],
        caption("Percent of each row: true class by predicted class."),
        unfolds("The control and the other test sets", *drawn[1:]),
    ]


def _published(result: ProbeResult) -> Piece:
    """The paper's numbers of the same protocol, below ours."""
    parts: list[Piece] = []
    sources: dict[str, None] = {}
    paper = result.benchmark["paper"]
    for target in result.benchmark["targets"]:
        ours = [r for r in paper if r["target"] == target and r["percent"] is not None]
        known = [head for head in ("cnn", "fnn") if head in result.heads]  # the paper's heads
        head = known[0] if known else preferred_head(result, target)
        views = [v for v in result.views(head, target) if v in {row["view"] for row in ours}]
        if not views:
            continue
        numbers = {(row["model"], row["view"]): row["percent"] for row in ours}
        ours_is = f"{name('model')}, {name(head)}"
        lines = [(ours_is, *(_cell(result, head, "model", v, target) for v in views))]
        for peer in dict.fromkeys(row["model"] for row in ours):
            lines.append((peer, *(number(numbers.get((peer, view))) for view in views)))
        sources |= dict.fromkeys(row["source"] for row in ours)
        parts += [heading(f"{upper(name(target))} beside the literature")]
        header = ("", *(title(result, v) for v in views))
        parts.append(table(header, lines, kind="views", strong=(ours_is,)))
    missing = dict.fromkeys(row["source"] for row in paper if row["percent"] is None)
    trained = result.benchmark["splits"]["train"]["proteins"]
    words = [
        f"Published: {'; '.join(sources)}. Theirs were trained on all training proteins, the head "
        f"of this model on {trained:,}: the rows are alike where head and number are."
    ] * bool(sources)
    return Piece("").join([*parts, *map(caption, (*words, *missing))])


def _counted(result: ProbeResult) -> str:
    """How many proteins and labels each split has."""
    words = []
    for split, counts in result.benchmark["splits"].items():
        labels = ", ".join(f"{n:,} {name(target)}" for target, n in counts["labelled"].items())
        words.append(f"{name(split)} {counts['proteins']:,} proteins ({labels})")
    return f"Labels: {'; '.join(words)}."


def _protocol(result: ProbeResult) -> Piece:
    """Everything that a reader may want to check, folded away."""
    about, attrs = result.benchmark, result.data.attrs
    notes = [*about["notes"], *(v["note"] for v in about["views"].values() if v["note"])]
    passes = [
        f"{name(kind)} ({', '.join(f'{name(s)} {number(n, 4)}' for s, n in found.items())})"
        for kind in result.data["input"].values.tolist()
        if result.has_layers(kind)
        for found in (dict(zip(result.data["split"].values.tolist(),
                               result.array("passes", input=kind), strict=True)),)
    ]  # fmt: skip
    cost = f"Cost: {number(attrs['seconds'], 4)} s, {attrs['compilations']} compilations; passes "
    return (
        unfolds("Notes on the data", *map(caption, notes))
        + unfolds("Every score", _every_score(result))
        + unfolds("Training of the heads", _training(result))
        + unfolds("Licences and sources", caption(about["licence"]),
                  caption(f"Cite: {about['source']}"))
        + folded("How it was measured", f"{attrs['protocol']}\n{cost}{'; '.join(passes)}.")
    )  # fmt: skip


def _every_score(result: ProbeResult) -> Piece:
    rows = []
    for head in result.heads:
        for kind in result.inputs(head):
            for view in result.benchmark["views"]:
                for target in result.benchmark["targets"]:
                    place = (head, kind, view, target)
                    if not result.counts(view, target)[0]:
                        continue
                    found = {m: result.score(*place, m) for m in METRICS[2:]}
                    seeds = result.array("by_seed", head=head, input=kind, view=view, target=target)
                    rows.append((
                        name(head), name(kind), title(result, view), name(target),
                        _cell(result, *place), _cell(result, *place, "per_protein"),
                        _range(seeds, _scale(result, target)),
                        ", ".join(f"{name(m)} {number(of['value'])}" for m, of in found.items()
                                  if of),
                        *_sizes(result, view, target),
                    ))  # fmt: skip
    header = ("head", "input", "test set", "target", "pooled", "mean of proteins", "by seed")
    return table((*header, "also", "n", "proteins"), rows, kind="views")


def _training(result: ProbeResult) -> Piece:
    rows = []
    for head in result.heads:
        for kind in result.inputs(head):
            chosen = int(result.array("chosen", head=head, input=kind))
            valid = result.array("valid", head=head, input=kind)[chosen]
            scores = "; ".join(
                f"{name(target)} {_range(values, _scale(result, target))}"
                for target, values in zip(result.benchmark["targets"], valid, strict=True)
                if np.isfinite(values).any()
            )
            epochs = _range(result.array("best_epoch", head=head, input=kind), 1, 4)
            seconds = number(float(result.array("seconds", head=head, input=kind)))
            layer = number(result.layer(head, kind))
            rows.append((name(head), name(kind), layer, scores or "-", epochs, seconds))
    header = ("head", "input", "layer", "validation, by seed", "best epoch, all heads", "seconds")
    return table(header, rows, kind="views")


def upper(text: str) -> str:
    """With a capital first letter; the others as they are."""
    return text[:1].upper() + text[1:]


def _cell(
    result: ProbeResult, head: str, kind: str, view: str, target: str, metric: str = "pooled"
) -> str:
    return result.written(result.score(head, kind, view, target, metric), target)


def _sizes(result: ProbeResult, view: str, target: str) -> tuple[str, ...]:
    n, proteins = result.counts(view, target)
    return (f"{n:,}", f"{proteins:,}") if n != proteins else (f"{n:,}",)


def _range(values: np.ndarray, scale: float, digits: int = 3) -> str:
    known = [scale * float(v) for v in values.ravel() if math.isfinite(v)]
    if not known:
        return "-"
    low, high = (number(v, digits) for v in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"


def _scale(result: ProbeResult, target: str) -> float:
    return 100.0 if result.is_classes(target) else 1.0


def _measure(result: ProbeResult, target: str) -> str:
    if not result.is_classes(target):
        return f"{name(target)}, Spearman's correlation"
    return f"{name(target)}, percent of {result.benchmark['level']}s right"
