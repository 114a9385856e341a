"""The probe part of the report: one sentence, then what it rests on.

Reads the plain dict of a probe (see `evaluation.probes.run`); pictures show the head that does best
on validation, and everything else is there to be unfolded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from protlm_jax.evaluation.report.frame import number
from protlm_jax.evaluation.report.page import (
    caption,
    folded,
    grid,
    heading,
    headline,
    section,
    table,
    titled,
    unfolds,
)
from protlm_jax.evaluation.report.panels import confusion, dot_chart
from protlm_jax.evaluation.report.sections import name
from protlm_jax.evaluation.report.svg import Series, line_chart, scaled_errors
from protlm_jax.evaluation.report.verdict import (
    headline as verdict,
)
from protlm_jax.evaluation.report.verdict import (
    is_classes,
    preferred_head,
    title,
    views_of,
    written,
)

Results = Mapping[str, Any]

_HUES = {"model": "--c0", "random": "--c1", "one_hot": "--c2", "blosum62": "--c3"}
_HUES |= {"composition": "--c2", "majority": "--soft"}


def probe(result: Results) -> str:
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


def _target(result: Results, head: str, target: str) -> list[str]:
    """Pictures and tables of one target with one head."""
    parts = [
        heading(f"{upper(name(target))}, {name(head)}"),
        *_numbers(result, head, target, dots=True),
    ]
    charts = [
        titled(title(result, view), "", _layers(result, head, view, target))
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
            unfolds("By layer on the other test sets", grid("pair", charts[1:]))
            if charts[1:]
            else "",
        ]
    return parts + _mistakes(result, head, target)


def _numbers(result: Results, head: str, target: str, dots: bool = False) -> list[str]:
    """The scores as a picture and a table, and what the model is above its controls."""
    views, inputs = views_of(result, head, target), result["heads"][head]["inputs"]
    kinds = [kind for kind in inputs if _scored(inputs[kind], views, target)]
    rows = [
        ("", (title(result, view),
              *(written(_pooled(inputs[kind], view, target), result, target) for kind in kinds),
              *_sizes(inputs["model"]["tests"][view][target])))
        for view in views
    ]  # fmt: skip
    minus = result["heads"][head]["model_minus"]
    against = [kind for kind in kinds if kind in minus]
    gaps = [
        ("", (title(result, view),
              *(written((minus[kind].get(view) or {}).get(target), result, target, signed=True)
                for kind in against)))
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
        _dots(result, inputs, kinds, views, target) if dots else "",
        table(("test set", *map(name, kinds), *columns), rows, kind="views"),
        caption(f"{measure} of all labelled {unit} of a set, ± one standard error over proteins; "
                f"from layer {chosen} of {result['num_layers']}."),
        table(("this model minus", *map(name, against)), gaps, kind="views"),
        caption("Differences are paired: both on the same proteins, in the same draws."),
    ]  # fmt: skip


def _dots(
    result: Results, inputs: Results, kinds: Sequence[str], views: Sequence[str], target: str
) -> str:
    scale = _scale(result, target)
    series = []
    for kind in kinds:
        found = [_pooled(inputs[kind], view, target) for view in views]
        series.append(
            Series(
                name(kind),
                [scale * e["value"] if e else None for e in found],
                colour=_hue(kind),
                error=scaled_errors(found, scale),
            )
        )
    model = inputs["model"]["tests"]
    rows = [(title(result, v), f"{model[v][target]['proteins']:,} proteins") for v in views]
    return dot_chart(rows, series, x_label=_measure(result, target))


def _layers(result: Results, head: str, view: str, target: str) -> str:
    """Score by layer on one test set; inputs without layers as level lines."""
    inputs, scale = result["heads"][head]["inputs"], _scale(result, target)
    curves = []
    for kind, outcome in inputs.items():
        found = (outcome.get("by_layer") or {}).get(view, {}).get(target) or []
        if len(found) > 1:
            chosen = outcome["best_layer"]["index"]
            curves.append(
                Series(
                    name(kind),
                    [scale * e["value"] if e else None for e in found],
                    outcome["layers"],
                    _hue(kind),
                    scaled_errors(found, scale),
                    chosen,
                )
            )
        elif level := _pooled(outcome, view, target):
            ends = [min(result["layers"]), max(result["layers"])]
            flat = [scale * level["value"]] * 2
            curves.append(Series(name(kind), flat, ends, _hue(kind), dashed=True))
    return line_chart(
        curves, x_label="layer", y_label=_measure(result, target), layers=result["num_layers"]
    )


def _mistakes(result: Results, head: str, target: str) -> list[str]:
    """The confusion matrix of the first test set, the control's and the other sets' folded."""
    classes = result["benchmark"]["targets"][target]["classes"]
    inputs = result["heads"][head]["inputs"]
    drawn = []
    for view in views_of(result, head, target):
        for kind in ("model", "random"):
            scored = (inputs.get(kind) or {}).get("tests", {}).get(view, {}).get(target) or {}
            if counts := scored.get("confusion"):
                words = f"{title(result, view)}, {scored['n']:,} {result['benchmark']['level']}s"
                drawn.append(titled(name(kind).capitalize(), words, confusion(counts, classes)))
    if not drawn:
        return []
    return [
        heading(f"{upper(name(target))}, what is mistaken for what"),
        drawn[0],
        caption("Percent of each row: what is there, by column: what is read. Counts on hover."),
        unfolds("The control and the other test sets", grid("pair", drawn[1:]))
        if drawn[1:]
        else "",
    ]


def _published(result: Results) -> str:
    """The paper's numbers of the same protocol, below ours."""
    parts: list[str] = []
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
        lines = [
            ("strong", (f"{name('model')}, {name(head)}",
                        *(written(_pooled(model, v, target), result, target) for v in views)))
        ]  # fmt: skip
        for peer in dict.fromkeys(row["model"] for row in ours):
            cells = [number(numbers.get((peer, view))) for view in views]
            lines.append(("", (peer, *cells)))
        sources |= dict.fromkeys(row["source"] for row in ours)
        parts += [heading(f"{upper(name(target))} beside the literature")]
        parts.append(table(("", *(title(result, v) for v in views)), lines, kind="views"))
    missing = dict.fromkeys(
        row["source"] for row in result.get("paper") or () if not _finite(row.get("percent"))
    )
    trained = result["benchmark"]["splits"]["train"]["proteins"]
    words = [
        f"Published: {'; '.join(sources)}. Theirs were trained on all training proteins, the head "
        f"of this model on {trained:,}: the rows are alike where head and number are."
    ] * bool(sources)
    return "".join(parts) + "".join(caption(text) for text in (*words, *missing))


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


def _protocol(result: Results) -> str:
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


def _every_score(result: Results) -> str:
    rows = []
    for head, outcome in result["heads"].items():
        for kind, found in outcome["inputs"].items():
            for view, by_target in found["tests"].items():
                rows += [
                    ("", (name(head), name(kind), title(result, view), name(target),
                          written(scored["pooled"], result, target),
                          written(scored.get("per_protein"), result, target),
                          _range(scored.get("by_seed"), _scale(result, target)),
                          _more(scored), *_sizes(scored)))
                    for target, scored in by_target.items() if scored
                ]  # fmt: skip
    header = ("head", "input", "test set", "target", "pooled", "mean of proteins", "by seed")
    return table((*header, "also", "n", "proteins"), rows, kind="views")


def _training(result: Results) -> str:
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
                ("", (name(head), name(kind), number(best.get("layer")), scores or "-",
                      _range(epochs, 1, 0), number(training.get("seconds"))))
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


def _hue(kind: str) -> str:
    return f"var({_HUES.get(kind, '--soft')})"


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
