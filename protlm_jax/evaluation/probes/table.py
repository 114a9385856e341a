"""The result of a probe as text for a terminal, and as rows for a CSV file."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protlm_jax.evaluation.statistics import NO_ERROR, written

Result = Mapping[str, Any]
Estimate = Mapping[str, float] | None

_WIDTH = 100
_COLUMNS = (
    "head", "input", "layer", "chosen", "target", "view", "metric", "value", "standard_error",
    "low", "high", "n", "proteins",
)  # fmt: skip


def summary(result: Result) -> str:
    """Every head's scores by test set and input, differences, counts, licence and notes."""
    about = result["benchmark"]
    lines = [f"{about['title']}, read from {result['model']}"]
    lines += [_drawn(split, found) for split, found in about["splits"].items()]
    for head, outcome in result["heads"].items():
        for target in about["targets"]:
            lines += ["", *_scores(result, head, outcome, target)]
    if _without_error(result):
        lines += ["", NO_ERROR]
    if published := _published(result):
        lines += ["", *published]
    cost = result["cost"]
    lines += ["", f"{cost['seconds']:.0f} s"]
    sentences = [result["protocol"], *about["notes"]]
    sentences += [view["note"] for view in about["views"].values() if view["note"]]
    sentences += [f"Licence: {about['licence']}", f"Source: {about['source']}"]
    for sentence in sentences:
        lines += textwrap.wrap(sentence, _WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def scores_csv(result: Result) -> str:
    """One row for each head, input, layer, target, view and metric; and the paired differences."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for head, outcome in result["heads"].items():
        for kind, of in outcome["inputs"].items():
            for view, by_target in of["tests"].items():
                for target, found in by_target.items():
                    measure = result["benchmark"]["targets"][target]["metric"]
                    for cells, score in _of_input(of, view, target, measure):
                        counts = found["n"], found["proteins"]
                        rows.writerow(_row((head, kind, *cells), score, counts))
        for kind, by_view in outcome["model_minus"].items():
            for view, by_target in by_view.items():
                for target, score in by_target.items():
                    measure = result["benchmark"]["targets"][target]["metric"]
                    first = head, f"model minus {kind}", "", True, target, view, measure
                    rows.writerow(_row(first, score, ("", (score or {}).get("proteins", ""))))
    return text.getvalue()


def _of_input(
    of: Mapping[str, Any], view: str, target: str, measure: str
) -> Iterator[tuple[tuple[Any, ...], Estimate]]:
    """Cells from layer to metric, and the score: by layer, and of the chosen one all others."""
    chosen, found = of["best_layer"], of["tests"][view][target]
    for index, layer in enumerate(of["layers"]):
        score = of["by_layer"][view][target][index]
        yield (layer, index == chosen["index"], target, view, measure), score
    names = {"per_protein": f"{measure}, mean of proteins"}
    names |= {name: name for name in ("balanced_accuracy", "mcc", "pearson", "mae")}
    for name, title in names.items():
        if found.get(name) is not None:
            yield (chosen["layer"], True, target, view, title), found[name]


def _row(first: Sequence[Any], score: Estimate, counts: Sequence[Any]) -> list[Any]:
    named = ("value", "standard_error", "low", "high")
    return [
        *first,
        *("" if not score or score[name] is None else score[name] for name in named),
        *counts,
    ]


def _drawn(split: str, found: Mapping[str, Any]) -> str:
    labels = ", ".join(f"{n:,} {target}" for target, n in found["labelled"].items())
    residues = f"{found['residues']:,} residues"
    drawn = f" of {found['of']:,}" if found["of"] > found["proteins"] else ""
    windows = f", {found['in_windows']:,} read in windows" if found["in_windows"] else ""
    return (
        f"  {split}: {found['proteins']:,}{drawn} proteins, {residues}{windows}; labels: {labels}"
    )


def _scores(result: Result, head: str, outcome: Mapping[str, Any], target: str) -> list[str]:
    """One target: test sets as rows, the inputs and the model's lead over each as columns."""
    percent = result["benchmark"]["targets"][target]["metric"] == "accuracy"
    inputs = {
        kind: of
        for kind, of in outcome["inputs"].items()
        if any(target in found for found in of["tests"].values())
    }
    minus = outcome["model_minus"]
    header = ("", "n", "proteins", *inputs, *(f"- {kind}" for kind in inputs if kind in minus))
    rows = []
    for view, of in result["benchmark"]["views"].items():
        if (ours := inputs.get("model", {"tests": {}})["tests"].get(view, {}).get(target)) is None:
            continue
        cells = [of["title"], f"{ours['n']:,}", f"{ours['proteins']:,}"]
        for kind in inputs:
            found = inputs[kind]["tests"][view].get(target)
            cells.append(_cell(found["pooled"] if found else None, percent))
        cells += [
            _cell(minus[kind][view].get(target), percent, "+") for kind in inputs if kind in minus
        ]
        rows.append(tuple(cells))
    layers = ", ".join(
        f"{kind} {inputs[kind]['best_layer']['layer']}"
        for kind in ("model", "random")
        if kind in inputs
    )
    what = "accuracy in percent" if percent else "Spearman's correlation"
    chosen = f"layer (chosen on validation) {layers} of {result['num_layers']}"
    return [f"{target}, {head} head, {what}; {chosen}", *table(header, rows)]


def _without_error(result: Result) -> bool:
    """Whether a score that is shown has no error bar."""
    return any(
        found["pooled"] and found["pooled"]["standard_error"] is None
        for outcome in result["heads"].values()
        for of in outcome["inputs"].values()
        for by_target in of["tests"].values()
        for found in by_target.values()
    )


def _published(result: Result) -> list[str]:
    """The paper's numbers of the views that are shown, or why there are none."""
    rows = [row for row in result["paper"] if row["percent"] is not None]
    reasons = dict.fromkeys(row["source"] for row in result["paper"] if row["percent"] is None)
    lines = [line for reason in reasons for line in textwrap.wrap(reason, _WIDTH)]
    if rows:
        places = list(dict.fromkeys((row["target"], row["view"]) for row in rows))
        found = {(row["model"], row["target"], row["view"]): row["percent"] for row in rows}
        views = result["benchmark"]["views"]
        header = ("", *(f"{target} {views[view]['title']}" for target, view in places))
        models = list(dict.fromkeys(row["model"] for row in rows))
        cells = [
            (model, *(f"{found[key]:g}" if (key := (model, *place)) in found else "-"
                      for place in places))
            for model in models
        ]  # fmt: skip
        sources = "; ".join(dict.fromkeys(row["source"] for row in rows))
        lines += [f"published ({sources})", *table(header, cells)]
        train = result["benchmark"]["splits"]["train"]
        if train["of"] > train["proteins"]:
            lines.append(
                "Published heads learned from all training proteins, those above from few."
            )
    return lines


def _cell(score: Estimate, percent: bool, sign: str = "") -> str:
    scale, digits = (100, 1) if percent else (1, 3)
    return written(score, digits, scale=scale, sign=sign)


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with columns set to the right but for the first."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  " + "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in (header, *rows))
    ]
