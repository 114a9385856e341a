"""The section on a probe: claims, then what they rest on.

Pictures show the head with the best validation score; the other heads are folded away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from protlm_jax.evaluation.depth.claims import Claim
from protlm_jax.evaluation.probes.results import ProbeResult
from protlm_jax.evaluation.probes.results import table as scores
from protlm_jax.report import page
from protlm_jax.report.charts import confusion, curves, intervals
from protlm_jax.report.page import Piece, name
from protlm_jax.report.picture import Picture, number

if TYPE_CHECKING:
    import xarray

_HUES = {"model": "c0", "random": "c1", "one_hot": "c2", "composition": "c2", "blosum62": "c3",
         "majority": "soft"}  # fmt: skip
_COLOURS = {name(kind): f"var(--{hue})" for kind, hue in _HUES.items()}


def probe(result: ProbeResult) -> Piece:
    """All heads of one benchmark."""
    about, parts = result.benchmark, []
    gaps = [gap for target in about["targets"] for gap in _gaps(result, target)]
    for target in about["targets"]:
        preferred = preferred_head(result, target)
        parts += _target(result, preferred, target)
        parts += [
            page.unfolds(f"{name(target)} with the {name(head)}",
                    *_numbers(result, head, target))
            for head in result.heads if head != preferred
        ]  # fmt: skip
    notes = [*about["notes"], *(v["note"] for v in about["views"].values() if v["note"])]
    labelled = [
        f"{name(split)} {counts['proteins']:,} proteins "
        f"({', '.join(f'{n:,} {name(target)}' for target, n in counts['labelled'].items())})"
        for split, counts in about["splits"].items()
    ]
    return page.section(
        about["title"],
        page.claims(gaps),
        *parts,
        _published(result),
        page.caption(f"Labels: {'; '.join(labelled)}."),
        page.unfolds("Notes on the data", *map(page.caption, notes)),
        page.unfolds("Every score", _every_score(result.data)),
        page.unfolds("Training of the heads", _training(result)),
        page.unfolds("Licences and sources", page.caption(about["licence"]),
                page.caption(f"Cite: {about['source']}")),
        page.folded("How it was measured", _how(result)),
    )  # fmt: skip


def first_numbers(result: ProbeResult) -> list[tuple[str, str]]:
    """Each head's difference from random weights, on the first target and test set, with words."""
    target = next(iter(result.benchmark["targets"]))
    unit = f"{name(target)} points" if result.is_classes(target) else f"{name(target)}, Spearman"
    found = []
    for head in (head for head in result.heads if "random" in result.inputs(head)):
        for view in result.views(head, target)[:1]:
            if gap := result.minus(head, "random", view, target):
                value = result.written(gap, target, "+").partition(" ")[0]
                words = f"{unit} over random weights, {name(head)}, {_title(result, view)}"
                found.append((value, words))
    return found


def preferred_head(result: ProbeResult, target: str) -> str:
    """The head with the highest mean validation score, at the layer chosen there."""

    def on_validation(head: str) -> float:
        layer = result.layer(head, "model")
        scores = result.array("valid", head=head, input="model", layer=layer, target=target)
        known = scores[np.isfinite(scores)]
        return float(known.mean()) if known.size else -math.inf

    return max(result.heads, key=on_validation)


def _gaps(result: ProbeResult, target: str) -> Iterator[Claim]:
    """On each test set, the preferred head's paired difference from the strongest control."""
    head = preferred_head(result, target)
    unit = ", points" if result.is_classes(target) else ""
    for view in result.views(head, target):
        found = {
            control: gap
            for control in result.inputs(head)[1:]
            if (gap := result.minus(head, control, view, target))
        }
        if found:
            control = min(found, key=lambda key: float(found[key]["value"]))
            words = (
                f"{name(target)}, {name(head)}, {_title(result, view)}: this model minus "
                f"{name(control)}, the strongest control{unit}"
            )
            yield page.difference(words, found[control], _scale(result, target))


def _target(result: ProbeResult, head: str, target: str) -> list[Piece]:
    """Pictures and tables of one target with one head."""
    views, title = result.views(head, target), name(target)
    parts = [
        page.heading(f"{title}, {name(head)}"),
        page.picture(_dots(result, head, views, target)),
        *_numbers(result, head, target),
    ]
    charts = [page.picture(_layers(result, head, v, target), _title(result, v)) for v in views]
    if result.data.sizes["layer"] > 1 and charts:
        parts += [
            page.heading(f"{title} by layer"),
            charts[0],
            page.caption(
                "Each layer through a head of its own, ± one standard error over proteins; layer 0 "
                "is before the first block. Rings mark the layers that validation chose, which "
                "alone count above; the others describe. Dashed: inputs without layers."
            ),
            page.unfolds("By layer on the other test sets", *charts[1:]),
        ]
    mistakes = _mistakes(result, head, views, target)
    if mistakes:
        parts += [
            page.heading(f"{title}, what is mistaken for what"),
            mistakes[0],
            page.caption("Percent of each row: true class by predicted class."),
            page.unfolds("The control and the other test sets", *mistakes[1:]),
        ]
    return parts


def _numbers(result: ProbeResult, head: str, target: str) -> list[Piece]:
    """The scores as a table, and the differences of the model from its controls."""
    views, kinds = result.views(head, target), result.inputs(head, target)
    unit = f"{result.benchmark['level']}s"
    rows = [
        (_title(result, v), *(_cell(result, head, kind, v, target) for kind in kinds),
         *(f"{n:,}" for n in dict.fromkeys(result.counts(v, target))))
        for v in views
    ]  # fmt: skip
    gaps = [
        (_title(result, v), *(result.written(result.minus(head, kind, v, target), target, "+")
                              for kind in kinds[1:]))
        for v in views
    ]  # fmt: skip
    chosen = ", ".join(
        f"{result.layer(head, kind)} ({name(kind)})" for kind in kinds if result.has_layers(kind)
    )
    measure = "Percent right" if result.is_classes(target) else "Rank correlation"
    columns = dict.fromkeys((unit, "proteins"))
    return [
        page.table(("test set", *map(name, kinds), *columns), rows, kind="views"),
        page.caption(f"{measure} of all labelled {unit} of a set, ± one standard error over "
                     f"proteins; from layer {chosen} of {result.data.attrs['num_layers']}."),
        page.table(("this model minus", *map(name, kinds[1:])), gaps, kind="views"),
        page.caption("Differences are paired: both on the same proteins, in the same draws."),
    ]  # fmt: skip


def _dots(result: ProbeResult, head: str, views: Sequence[str], target: str) -> Picture:
    """A row for each test set, a dot with one standard error to each side for each input."""
    kinds = result.inputs(head, target)
    rows = [
        {
            "label": f"{_title(result, v)}, {result.counts(v, target)[1]:,} proteins",
            "series": name(kind),
            **page.around(found, _scale(result, target)),
        }
        for kind in kinds
        for v in views
        if (found := result.score(head, kind, v, target))
    ]
    return intervals(rows, x=_measure(result, target), colours=_COLOURS)


def _layers(result: ProbeResult, head: str, view: str, target: str) -> Picture:
    """Score by layer on one test set; inputs without layers as level lines."""
    layers = result.data["layer"].values.tolist()
    kinds = [k for k in result.inputs(head) if result.score(head, k, view, target)]
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        points = result.by_layer(head, kind, view, target)
        flat, chosen = len(points) == 1, result.layer(head, kind)
        if flat:
            score = points[0][1]
            level = score and {**score, "standard_error": None}
            points = [(layer, level) for layer in (min(layers), max(layers))]
        for layer, found in points:
            if found:
                near = page.around(found, _scale(result, target))
                rows.append({
                    "series": name(kind), "x": layer, "y": near.pop("value"), **near,
                    "dashed": flat, "chosen": not flat and layer == chosen,
                })  # fmt: skip
    y = _measure(result, target)
    return curves(rows, x="layer", y=y, whole=True, whiskers=True, colours=_COLOURS)


def _mistakes(result: ProbeResult, head: str, views: Sequence[str], target: str) -> list[Piece]:
    """Confusion matrices of the model and its copy on each test set."""
    classes = result.benchmark["targets"][target]["classes"]
    drawn = []
    for view in views if classes and "confusion" in result.data else ():
        for kind in filter(result.has_layers, result.inputs(head, target)):
            counts = result.array("confusion", head=head, input=kind, view=view, target=target)
            counts = counts[: len(classes), : len(classes)]
            if np.isfinite(counts).all():
                n = f"{result.counts(view, target)[0]:,} {result.benchmark['level']}s"
                label = f"{name(kind)}: {_title(result, view)}, {n}"
                drawn.append(page.picture(confusion(counts.tolist(), classes), label))
    return drawn


def _published(result: ProbeResult) -> Piece:
    """The paper's numbers of the same protocol, below ours."""
    parts: list[Piece] = []
    sources: dict[str, None] = {}
    paper = result.benchmark["paper"]
    for target in result.benchmark["targets"]:
        known = [row for row in paper if row["target"] == target and row["percent"] is not None]
        of_paper = [head for head in ("cnn", "fnn") if head in result.heads]
        head = of_paper[0] if of_paper else preferred_head(result, target)
        views = [v for v in result.views(head, target) if v in {row["view"] for row in known}]
        if not views:
            continue
        numbers = {(row["model"], row["view"]): row["percent"] for row in known}
        ours = f"{name('model')}, {name(head)}"
        lines = [(ours, *(_cell(result, head, "model", v, target) for v in views))]
        for peer in dict.fromkeys(row["model"] for row in known):
            lines.append((peer, *(number(numbers.get((peer, view))) for view in views)))
        sources |= dict.fromkeys(row["source"] for row in known)
        header = ("", *(_title(result, v) for v in views))
        parts += [page.heading(f"{name(target)} beside the literature"),
                  page.table(header, lines, kind="views", strong=(ours,))]  # fmt: skip
    missing = dict.fromkeys(row["source"] for row in paper if row["percent"] is None)
    trained = result.benchmark["splits"]["train"]["proteins"]
    words = [
        f"Published: {'; '.join(sources)}. Theirs were trained on all training proteins, the head "
        f"of this model on {trained:,}: the rows are alike where head and number are."
    ] * bool(sources)
    return Piece("").join([*parts, *map(page.caption, (*words, *missing))])


def _every_score(data: xarray.Dataset) -> Piece:
    """The rows of scores.csv at the layers that validation chose."""
    made = scores(data)
    keep = made.columns.index("chosen")
    rows = [list(map(name, row)) for row in made.cells() if row[keep] == "True"]
    columns = list(map(name, made.columns))
    for row in (columns, *rows):
        del row[keep]
    return page.table(columns, rows, kind="views")


def _how(result: ProbeResult) -> str:
    """The protocol, seconds, compilations, and passes through the model by input and split."""
    attrs, data = result.data.attrs, result.data
    passes = [
        f"{name(kind)}, {name(split)} {number(float(n), 4)}"
        for kind in data["input"].values.tolist() if result.has_layers(kind)
        for split, n in zip(data["split"].values.tolist(), result.array("passes", input=kind),
                            strict=True)
    ]  # fmt: skip
    cost = f"Cost: {number(attrs['seconds'], 4)} s, {attrs['compilations']} compilations; passes "
    return f"{attrs['protocol']}\n{cost}{'; '.join(passes)}."


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
    return page.table(header, rows, kind="views")


def _title(result: ProbeResult, view: str) -> str:
    return str(result.benchmark["views"][view]["title"])


def _cell(result: ProbeResult, head: str, kind: str, view: str, target: str) -> str:
    return result.written(result.score(head, kind, view, target), target)


def _range(values: np.ndarray, scale: float, digits: int = 3) -> str:
    known = scale * values[np.isfinite(values)]
    if not known.size:
        return "-"
    low, high = (number(float(v), digits) for v in (known.min(), known.max()))
    return low if low == high else f"{low} to {high}"


def _scale(result: ProbeResult, target: str) -> float:
    return 100.0 if result.is_classes(target) else 1.0


def _measure(result: ProbeResult, target: str) -> str:
    if not result.is_classes(target):
        return f"{name(target)}, Spearman's correlation"
    return f"{name(target)}, percent of {result.benchmark['level']}s right"
