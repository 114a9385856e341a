"""The probe part of the report: one sentence, then what it rests on.

Reads the plain dict of a probe (see `evaluation.probes.run`); pictures show the head that does best
on validation, and everything else is there to be unfolded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

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
from protlm_jax.report.verdict import (
    headline as verdict,
)
from protlm_jax.report.verdict import (
    is_classes,
    preferred_head,
    title,
    views_of,
    written,
)

Results = Mapping[str, Any]

_HUES = {f"{kind}": f"var(--{hue})" for kind, hue in {
    "model": "c0", "random": "c1", "one_hot": "c2", "blosum62": "c3", "composition": "c2",
    "majority": "soft"}.items()}  # fmt: skip


def probe(result: Results) -> Piece:
    """All heads of one benchmark."""
    benchmark, parts = result["benchmark"], [headline(verdict(result))]
    for target in benchmark["targets"]:
        head = preferred_head(result, target)
        parts += _target(result, head, target)
        others = [other for other in result["heads"] if other != head]
        parts += [
            unfolds(
                f"{upper(name(target))} with the {name(other)}", *_numbers(result, other, target)
            )
            for other in others
        ]
    parts += [_published(result), caption(_counted(benchmark)), _protocol(result)]
    return section(benchmark["title"], *parts)


def _target(result: Results, head: str, target: str) -> list[Piece]:
    """Pictures and tables of one target with one head."""
    parts = [
        heading(f"{upper(name(target))}, {name(head)}"),
        *_numbers(result, head, target, dots=True),
    ]
    charts = [
        picture(_layers(result, head, view, target), title(result, view))
        for view in views_of(result, head, target)
    ]
    if len(result["layers"]) > 1 and charts:
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
    return parts + _mistakes(result, head, target)


def _numbers(result: Results, head: str, target: str, dots: bool = False) -> list[Piece]:
    """The scores as a picture and a table, and what the model is above its controls."""
    views, inputs = views_of(result, head, target), result["heads"][head]["inputs"]
    kinds = [kind for kind in inputs if _scored(inputs[kind], views, target)]
    rows = [
        (title(result, view),
         *(written(_pooled(inputs[kind], view, target), result, target) for kind in kinds),
         *_sizes(inputs["model"]["tests"][view][target]))
        for view in views
    ]  # fmt: skip
    minus = result["heads"][head]["model_minus"]
    against = [kind for kind in kinds if kind in minus]
    gaps = [
        (title(result, view),
         *(written((minus[kind].get(view) or {}).get(target), result, target, signed=True)
           for kind in against))
        for view in views
    ]  # fmt: skip
    unit = f"{result['benchmark']['level']}s"
    chosen = ", ".join(
        f"{inputs[kind]['best_layer']['layer']} ({name(kind)})"
        for kind in ("model", "random")
        if kind in kinds
    )
    measure = "Percent right" if is_classes(result, target) else "Rank correlation"
    columns = (unit, "proteins") if unit != "proteins" else (unit,)
    return [
        *([picture(_dots(result, inputs, kinds, views, target))] if dots else []),
        table(("test set", *map(name, kinds), *columns), rows, kind="views"),
        caption(f"{measure} of all labelled {unit} of a set, ± one standard error over proteins; "
                f"from layer {chosen} of {result['num_layers']}."),
        table(("this model minus", *map(name, against)), gaps, kind="views"),
        caption("Differences are paired: both on the same proteins, in the same draws."),
    ]  # fmt: skip


def _dots(
    result: Results, inputs: Results, kinds: Sequence[str], views: Sequence[str], target: str
) -> Picture:
    """A row for each test set, a dot with one standard error to each side for each input."""
    model, scale = inputs["model"]["tests"], _scale(result, target)
    rows = [
        {
            "label": f"{title(result, view)}, {model[view][target]['proteins']:,} proteins",
            "series": name(kind),
            **around(found, scale),
        }
        for kind in kinds
        for view in views
        if (found := _pooled(inputs[kind], view, target))
    ]
    return intervals(rows, x=_measure(result, target), colours=[_HUES[kind] for kind in kinds])


def _layers(result: Results, head: str, view: str, target: str) -> Picture:
    """Score by layer on one test set; inputs without layers as level lines."""
    inputs, scale = result["heads"][head]["inputs"], _scale(result, target)
    rows: list[dict[str, Any]] = []
    for kind, outcome in inputs.items():
        found = (outcome.get("by_layer") or {}).get(view, {}).get(target) or []
        by_layer = len(found) > 1
        if by_layer:
            points = list(zip(outcome["layers"], found, strict=True))
        else:
            level = _pooled(outcome, view, target)
            points = [(x, level) for x in (min(result["layers"]), max(result["layers"]))]
        chosen = outcome["best_layer"]["layer"] if by_layer else None
        rows += [
            {
                "series": name(kind),
                "x": layer,
                "y": scale * estimate["value"],
                "error": _scaled(estimate["standard_error"], scale) if by_layer else None,
                "dashed": not by_layer,
                "chosen": layer == chosen,
            }
            for layer, estimate in points
            if estimate
        ]
    colours = [_HUES[k] for k in inputs if any(row["series"] == name(k) for row in rows)]
    return curves(rows, x="layer", y=_measure(result, target), whole=True, colours=colours)


def _mistakes(result: Results, head: str, target: str) -> list[Piece]:
    """The confusion matrix of the first test set, the control's and the other sets' folded."""
    inputs = result["heads"][head]["inputs"]
    classes = result["benchmark"]["targets"][target]["classes"]
    drawn = []
    for view in views_of(result, head, target):
        for kind in ("model", "random"):
            scored = (inputs.get(kind) or {}).get("tests", {}).get(view, {}).get(target) or {}
            if counts := scored.get("confusion"):
                n = f"{scored['n']:,} {result['benchmark']['level']}s"
                label = f"{upper(name(kind))}: {title(result, view)}, {n}"
                drawn.append(picture(confusion(counts, classes), label))
    if not drawn:
        return []
    return [
        heading(f"{upper(name(target))}, what is mistaken for what"),
        drawn[0],
        caption("Percent of each row: true class by predicted class."),
        unfolds("The control and the other test sets", *drawn[1:]),
    ]


def _published(result: Results) -> Piece:
    """The paper's numbers of the same protocol, below ours."""
    parts: list[Piece] = []
    sources: dict[str, None] = {}
    rows = [row for row in result.get("paper") or () if _finite(row.get("percent"))]
    for target in result["benchmark"]["targets"]:
        ours = [row for row in rows if row["target"] == target]
        head = _papers_head(result, target)
        views = [v for v in views_of(result, head, target) if v in {row["view"] for row in ours}]
        if not views:
            continue
        numbers = {(row["model"], row["view"]): row["percent"] for row in ours}
        model = result["heads"][head]["inputs"]["model"]
        ours_is = f"{name('model')}, {name(head)}"
        lines = [(ours_is, *(written(_pooled(model, v, target), result, target) for v in views))]
        for peer in dict.fromkeys(row["model"] for row in ours):
            cells = [number(numbers.get((peer, view))) for view in views]
            lines.append((peer, *cells))
        sources |= dict.fromkeys(row["source"] for row in ours)
        parts += [heading(f"{upper(name(target))} beside the literature")]
        header = ("", *(title(result, v) for v in views))
        parts.append(table(header, lines, kind="views", strong=(ours_is,)))
    missing = dict.fromkeys(
        row["source"] for row in result.get("paper") or () if not _finite(row.get("percent"))
    )
    trained = result["benchmark"]["splits"]["train"]["proteins"]
    words = [
        f"Published: {'; '.join(sources)}. Theirs were trained on all training proteins, the head "
        f"of this model on {trained:,}: the rows are alike where head and number are."
    ] * bool(sources)
    return Piece("").join([*parts, *map(caption, (*words, *missing))])


def _papers_head(result: Results, target: str) -> str:
    """The head that the paper used, where it was trained here."""
    known = [head for head in ("cnn", "fnn") if head in result["heads"]]
    return known[0] if known else preferred_head(result, target)


def _counted(benchmark: Results) -> str:
    """How many proteins and labels each split has."""
    words = []
    for split, counts in benchmark["splits"].items():
        labels = ", ".join(f"{n:,} {name(target)}" for target, n in counts["labelled"].items())
        words.append(f"{name(split)} {counts['proteins']:,} proteins ({labels})")
    return f"Labels: {'; '.join(words)}."


def _protocol(result: Results) -> Piece:
    """Everything that a reader may want to check, folded away."""
    benchmark = result["benchmark"]
    views = benchmark.get("views", {})
    notes = [*benchmark["notes"], *(v["note"] for v in views.values() if v.get("note"))]
    text = [result.get("protocol") or "", f"Cost: {_cost(result.get('cost') or {})}"]
    return (
        unfolds("Notes on the data", *map(caption, notes))
        + unfolds("Every score", _every_score(result))
        + unfolds("Training of the heads", _training(result))
        + unfolds("Licences and sources", caption(benchmark["licence"]),
                  caption(f"Cite: {benchmark['source']}"))
        + folded("How it was measured", "\n".join(text))
    )  # fmt: skip


def _every_score(result: Results) -> Piece:
    rows = []
    for head, outcome in result["heads"].items():
        for kind, found in outcome["inputs"].items():
            for view, by_target in found["tests"].items():
                rows += [
                    (name(head), name(kind), title(result, view), name(target),
                     written(scored["pooled"], result, target),
                     written(scored.get("per_protein"), result, target),
                     _range(scored.get("by_seed"), _scale(result, target)),
                     _more(scored), *_sizes(scored))
                    for target, scored in by_target.items() if scored
                ]  # fmt: skip
    header = ("head", "input", "test set", "target", "pooled", "mean of proteins", "by seed")
    return table((*header, "also", "n", "proteins"), rows, kind="views")


def _training(result: Results) -> Piece:
    rows = []
    for head, outcome in result["heads"].items():
        for kind, found in outcome["inputs"].items():
            best, training = found.get("best_layer") or {}, found.get("training") or {}
            valid = {
                target: by_layer[best["index"]]
                for target, by_layer in (found.get("valid") or {}).items()
                if by_layer
            }
            scores = "; ".join(
                f"{name(t)} {_range(values, _scale(result, t))}" for t, values in valid.items()
            )
            epochs = _flat(training.get("best_epoch"))
            rows.append(
                (name(head), name(kind), number(best.get("layer")), scores or "-",
                 _range(epochs, 1, 0), number(training.get("seconds")))
            )  # fmt: skip
    header = ("head", "input", "layer", "validation, by seed", "best epoch, all heads", "seconds")
    return table(header, rows, kind="views")


def upper(text: str) -> str:
    """With a capital first letter; the others as they are."""
    return text[:1].upper() + text[1:]


def _scored(outcome: Results, views: Sequence[str], target: str) -> bool:
    return any(_pooled(outcome, view, target) for view in views)


def _pooled(outcome: Results, view: str, target: str) -> Results | None:
    found: Results = (outcome["tests"].get(view) or {}).get(target) or {}
    return found.get("pooled")


def _sizes(scored: Results) -> tuple[str, ...]:
    counts = f"{scored['n']:,}", f"{scored['proteins']:,}"
    return counts if counts[0] != counts[1] else counts[:1]


def _more(scored: Results) -> str:
    """The other measures, as numbers of their own scale."""
    known = ("balanced_accuracy", "mcc", "pearson", "mae")
    found = [(key, scored[key]) for key in known if scored.get(key)]
    return ", ".join(f"{name(key)} {number(_value(value))}" for key, value in found)


def _value(found: Any) -> Any:
    return found.get("value") if isinstance(found, Mapping) else found


def _range(values: Sequence[float | None] | None, scale: float, digits: int = 3) -> str:
    numbers = [scale * v for v in values or () if v is not None]
    if not numbers:
        return "-"
    low, high = (number(v, digits or 4) for v in (min(numbers), max(numbers)))
    return low if low == high else f"{low} to {high}"


def _flat(values: Any) -> list[float]:
    if isinstance(values, list | tuple):
        return [v for each in values for v in _flat(each)]
    return [] if values is None else [values]


def _cost(cost: Results) -> str:
    """Passes are given by input and split."""
    words = []
    for key, value in cost.items():
        if isinstance(value, Mapping):
            words.append(f"{name(key)} ({_cost(value)})")
        else:
            words.append(f"{name(key)} {number(value, 4)}")
    return ", ".join(words)


def _scale(result: Results, target: str) -> float:
    return 100.0 if is_classes(result, target) else 1.0


def _measure(result: Results, target: str) -> str:
    level = result["benchmark"]["level"]
    percent = f"{name(target)}, percent of {level}s right"
    return percent if is_classes(result, target) else f"{name(target)}, Spearman's correlation"


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _scaled(error: float | None, scale: float) -> float | None:
    return None if error is None else scale * error
