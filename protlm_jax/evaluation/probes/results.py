"""The result of a probe: a dataset, read by names, and as text and tables."""

from __future__ import annotations

import itertools
import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from protlm_jax.evaluation.statistics import NO_ERROR, written
from protlm_jax.evaluation.tables import Table

if TYPE_CHECKING:
    import xarray

METRICS = ("pooled", "per_protein", "balanced_accuracy", "mcc", "pearson", "mae", "r2")
ESTIMATE = ("value", "standard_error", "low", "high")
_WIDTH = 100

Score = Mapping[str, Any] | None


def numbers(estimate: Score) -> list[float]:
    """An estimate's dict along the dimension "estimate"; NaN for None."""
    found = [estimate[name] if estimate else None for name in ESTIMATE]
    return [math.nan if value is None else float(value) for value in found]


def from_numbers(found: np.ndarray) -> dict[str, float | None] | None:
    """The reverse of `numbers`."""
    if math.isnan(found[0]):
        return None
    values = (None if math.isnan(number) else number for number in found.tolist())
    return dict(zip(ESTIMATE, values, strict=True))


@dataclass(frozen=True)
class ProbeResult:
    """Reads the dataset of `dataset.assemble`: estimates as dicts, None where there is none."""

    data: xarray.Dataset

    @cached_property
    def benchmark(self) -> dict[str, Any]:
        """name, title, level, targets, licence, source, notes, splits, views, paper."""
        found: dict[str, Any] = json.loads(self.data.attrs["benchmark"])
        return found

    @property
    def heads(self) -> list[str]:
        return [str(head) for head in self.data["head"].values]

    def inputs(self, head: str, target: str = "") -> list[str]:
        """The model and the controls that a head has, or that have scores of a target."""
        there = self.array("chosen", head=head) >= 0
        if target:
            pooled = self.array("score", head=head, target=target, metric="pooled")
            there = np.isfinite(pooled[..., 0]).any(axis=1)
        return [str(kind) for kind in self.data["input"].values[there]]

    def views(self, head: str, target: str) -> list[str]:
        """The test sets that have labels of a target, in the order of the benchmark."""
        views = self.benchmark["views"]
        return [view for view in views if self.score(head, "model", view, target)]

    def score(self, head: str, kind: str, view: str, target: str, metric: str = "pooled") -> Score:
        return self._estimate("score", view, target, head=head, input=kind, metric=metric)

    def minus(self, head: str, control: str, view: str, target: str) -> Score:
        """The model's score minus the control's."""
        return self._estimate("difference", view, target, head=head, input=control)

    def by_layer(self, head: str, kind: str, view: str, target: str) -> list[tuple[Any, Score]]:
        """(layer, score); the layer is None of an input without layers."""
        layers = self.data["layer"].values.tolist()
        found = [
            self._estimate("by_layer", view, target, head=head, input=kind, layer=layer)
            for layer in layers
        ]
        return (
            list(zip(layers, found, strict=True)) if self.has_layers(kind) else [(None, found[0])]
        )

    def counts(self, view: str, target: str) -> tuple[int, int]:
        """Labels, and proteins that have any."""
        n, proteins = (self.array(name, view=view, target=target) for name in ("n", "proteins"))
        return int(n), int(proteins)

    def has_layers(self, kind: str) -> bool:
        return kind in ("model", "random")

    def layer(self, head: str, kind: str) -> int | None:
        """The layer that validation chose."""
        chosen = int(self.array("chosen", head=head, input=kind))
        return int(self.data["layer"].values[chosen]) if self.has_layers(kind) else None

    def is_classes(self, target: str) -> bool:
        return bool(self.benchmark["targets"][target]["kind"] == "classes")

    def written(self, estimate: Score, target: str, sign: str = "") -> str:
        """A score with its standard error: percent of correct classes, or a correlation."""
        scale, digits = (100, 1) if self.is_classes(target) else (1, 3)
        return written(estimate, digits, scale=scale, sign=sign)

    def array(self, name: str, **labels: Any) -> np.ndarray:
        """A variable at these labels of its dimensions; `sel` takes too long for many of them."""
        variable = self.data.variables[name]
        places = (self._places[str(d)][labels[str(d)]] if d in labels else slice(None)
                  for d in variable.dims)  # fmt: skip
        return np.asarray(variable.values[tuple(places)])

    @cached_property
    def _places(self) -> dict[str, dict[Any, int]]:
        return {
            str(name): {label: i for i, label in enumerate(values.values.tolist())}
            for name, values in self.data.coords.items()
        }

    def _estimate(self, name: str, view: str, target: str, **labels: Any) -> Score:
        found = from_numbers(self.array(name, view=view, target=target, **labels))
        return found and found | {"proteins": self.counts(view, target)[1]}


def table(data: xarray.Dataset) -> Table:
    """One row for each head, input, layer, target, view and metric; and the paired differences."""
    result = ProbeResult(data)
    places = list(itertools.product(result.benchmark["views"], result.benchmark["targets"]))
    rows: list[dict[str, Any]] = []
    for head in result.heads:
        kinds = result.inputs(head)
        for kind, (view, target) in itertools.product(kinds, places):
            rows += _rows(result, head, kind, view, target)
        for kind, (view, target) in itertools.product(kinds[1:], places):
            if score := result.minus(head, kind, view, target):
                first = {"head": head, "input": f"model minus {kind}", "chosen": True}
                about = {"target": target, "view": view, "metric": _metric(result, target)}
                rows.append(first | about | dict(score))
    columns = ("head", "input", "layer", "chosen", "target", "view", "metric")
    return Table.of(rows, (*columns, *ESTIMATE, "n", "proteins"))


def _rows(
    result: ProbeResult, head: str, kind: str, view: str, target: str
) -> list[dict[str, Any]]:
    """The scores by layer, and all others of the chosen layer."""
    n, proteins = result.counts(view, target)
    if not n or (kind == "majority" and not result.is_classes(target)):
        return []
    measure, chosen = _metric(result, target), result.layer(head, kind)
    first = {"head": head, "input": kind, "target": target, "view": view, "n": n,
             "proteins": proteins}  # fmt: skip
    rows = [
        {**first, "layer": layer, "chosen": layer == chosen, "metric": measure, **(score or {})}
        for layer, score in result.by_layer(head, kind, view, target)
    ]
    for metric in result.data["metric"].values.tolist()[1:]:  # an older result has fewer
        if score := result.score(head, kind, view, target, metric):
            name = f"{measure}, mean of proteins" if metric == "per_protein" else metric
            rows.append({**first, **score, "layer": chosen, "chosen": True, "metric": name})
    return rows


def _metric(result: ProbeResult, target: str) -> str:
    return "accuracy" if result.is_classes(target) else "spearman"


def summary(data: xarray.Dataset) -> str:
    """Every head's scores by test set and input, differences, counts, licence and notes."""
    result, about = ProbeResult(data), ProbeResult(data).benchmark
    lines = [data.attrs["title"], *(_split(*of) for of in about["splits"].items())]
    for head, target in itertools.product(result.heads, about["targets"]):
        lines += ["", *_scores(result, head, target)]
    pooled = data["score"].sel(metric="pooled")
    value, error = pooled.sel(estimate="value"), pooled.sel(estimate="standard_error")
    if bool((value.notnull() & error.isnull()).any()):
        lines += ["", NO_ERROR]
    if published := _published(result):
        lines += ["", *published]
    lines += ["", f"{data.attrs['seconds']:.0f} s"]
    sentences = [data.attrs["protocol"], *about["notes"]]
    sentences += [view["note"] for view in about["views"].values() if view["note"]]
    sentences += [f"Licence: {about['licence']}", f"Source: {about['source']}"]
    for sentence in sentences:
        lines += textwrap.wrap(sentence, _WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def _split(split: str, found: Mapping[str, Any]) -> str:
    labels = ", ".join(f"{n:,} {target}" for target, n in found["labelled"].items())
    drawn = f" of {found['of']:,}" if found["of"] > found["proteins"] else ""
    windows = f", {found['in_windows']:,} read in windows" if found["in_windows"] else ""
    return (
        f"  {split}: {found['proteins']:,}{drawn} proteins, {found['residues']:,} residues"
        f"{windows}; labels: {labels}"
    )


def _scores(result: ProbeResult, head: str, target: str) -> list[str]:
    """One target: test sets as rows, the inputs and the differences from each as columns."""
    inputs = result.inputs(head, target)
    rows = [
        [
            result.benchmark["views"][view]["title"],
            *(f"{count:,}" for count in result.counts(view, target)),
            *(result.written(result.score(head, kind, view, target), target) for kind in inputs),
            *(result.written(result.minus(head, kind, view, target), target, "+")
              for kind in inputs[1:]),
        ]
        for view in result.views(head, target)
    ]  # fmt: skip
    layers = ", ".join(f"{k} {result.layer(head, k)}" for k in inputs if result.has_layers(k))
    what = "accuracy in percent" if result.is_classes(target) else "Spearman's correlation"
    chosen = f"layer (chosen on validation) {layers} of {result.data.attrs['num_layers']}"
    columns = ("", "n", "proteins", *inputs, *(f"- {kind}" for kind in inputs[1:]))
    return [f"{target}, {head} head, {what}; {chosen}", Table(columns, rows).text()]


def _published(result: ProbeResult) -> list[str]:
    """The paper's numbers of the views that are shown, or why there are none."""
    about = result.benchmark
    rows = [row for row in about["paper"] if row["percent"] is not None]
    reasons = dict.fromkeys(row["source"] for row in about["paper"] if row["percent"] is None)
    lines = [line for reason in reasons for line in textwrap.wrap(reason, _WIDTH)]
    if not rows:
        return lines
    places = list(dict.fromkeys((row["target"], row["view"]) for row in rows))
    found = {(row["model"], row["target"], row["view"]): row["percent"] for row in rows}
    columns = ("", *(f"{target} {about['views'][view]['title']}" for target, view in places))
    cells = [
        [model, *(found.get((model, *place)) for place in places)]
        for model in dict.fromkeys(row["model"] for row in rows)
    ]
    sources = "; ".join(dict.fromkeys(row["source"] for row in rows))
    lines += [f"published ({sources})", Table(columns, cells).text()]
    if about["splits"]["train"]["of"] > about["splits"]["train"]["proteins"]:
        lines.append("Published heads learned from all training proteins, those above from few.")
    return lines
