"""The result of a probe as one dataset, and as text and tables."""

from __future__ import annotations

import itertools
import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from protlm_jax.evaluation.embedding.plan import window_counts
from protlm_jax.evaluation.probes import scores
from protlm_jax.evaluation.statistics import NO_ERROR, Bootstrapped, written
from protlm_jax.evaluation.tables import Table

if TYPE_CHECKING:
    from protlm_jax.evaluation.probes.run import Answers, Settings
    from protlm_jax.models.loaded import LoadedModel

METRICS = ("pooled", "per_protein", "balanced_accuracy", "mcc", "pearson", "mae")
ESTIMATE = ("value", "standard_error", "low", "high")
_WIDTH = 100
_PLACE = ("head", "input", "view", "target")
_WORDS = {
    "linear": "linear: one matrix (classes: logistic regression; numbers: ridge)",
    "cnn": "cnn: the ProtTrans head for residues, two convolutions of width 7",
    "fnn": "fnn: the ProtTrans head for proteins, 32 hidden units on the mean over residues",
    "light_attention": "light_attention: Stärk et al. 2021",
}

Estimate = Mapping[str, Any] | None


def assemble(
    loaded: LoadedModel, settings: Settings, answers: Mapping[str, Answers]
) -> xarray.Dataset:
    """Scores all inputs on all views.

    Returns:
        Along head, input ("model" and controls), layer, view (test set), target, seed, metric
        (METRICS; "pooled" is accuracy or Spearman's correlation over all labels) and estimate
        (value, standard error, ends of the 95 % interval); NaN where there is none:

        score      (head, input, view, target, metric, estimate), of the chosen layer
        by_layer   (head, input, layer, view, target, estimate), pooled; inputs without layers
                   stand at the first
        difference (head, input, view, target, estimate), the model's pooled score minus the
                   control's, paired over proteins
        by_seed    (head, input, view, target, seed), pooled
        confusion  (head, input, view, target, true, predicted), counts, mean over seeds
        valid      (head, input, layer, target, seed), pooled, of the validation proteins
        chosen     (head, input), index of the layer chosen on them; -1: no such input
        epochs, best_epoch (head, input, layer, seed); seconds (head, input), of training
        n, proteins (view, target), labels and proteins that have any
        passes     (input, split), how often the proteins went through the model

        `ProbeResult` reads it; the attributes hold the model, the benchmark and the protocol.
    """
    benchmark = settings.benchmark
    coords: dict[str, Any] = {
        "head": list(settings.heads),
        "input": list(answers),
        "layer": list(settings.layers),
        "view": list(settings.views),
        "target": [target.name for target in benchmark.targets],
        "seed": list(settings.seeds),
        "metric": list(METRICS),
        "estimate": list(ESTIMATE),
        "split": list(settings.splits),
    }
    size = {name: len(values) for name, values in coords.items()}
    few = [len(t.classes) for t in benchmark.targets if len(t.classes) <= scores.MOST_IN_A_TABLE]
    size["true"] = size["predicted"] = max(few, default=0)

    def empty(*dims: str, **attrs: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        return dims, np.full([size[d] for d in dims], np.nan), attrs

    learned = ("head", "input", "layer")
    data = xarray.Dataset(
        {
            "score": empty(*_PLACE, "metric", "estimate", long_name="score on the test sets"),
            "by_layer": empty(*learned, "view", "target", "estimate", long_name="score by layer"),
            "difference": empty(*_PLACE, "estimate", long_name="the model's score minus input's"),
            "by_seed": empty(*_PLACE, "seed", long_name="score of each seed"),
            "confusion": empty(*_PLACE, "true", "predicted", units="labels"),
            "valid": empty(*learned, "target", "seed", long_name="score on validation proteins"),
            "epochs": empty(*learned, "seed", units="epochs"),
            "best_epoch": empty(*learned, "seed", units="epochs"),
            "seconds": empty("head", "input", units="s"),
            "passes": empty("input", "split", units="passes of the model"),
            "chosen": (("head", "input"), np.full((size["head"], size["input"]), -1)),
            "n": (("view", "target"), np.zeros((size["view"], size["target"]), int)),
            "proteins": (("view", "target"), np.zeros((size["view"], size["target"]), int)),
        },
        coords,
        _about(loaded, settings, answers),
    )
    arrays = {str(name): variable.values for name, variable in data.data_vars.items()}
    labelled: dict[tuple[int, int], scores.Labelled] = {}
    for v, view in enumerate(benchmark.views[name] for name in settings.views):
        for t, target in enumerate(benchmark.targets):
            of = scores.labelled(settings.splits[view.split], benchmark.level, target, view.mark)
            if of is not None:
                labelled[v, t] = of
                arrays["n"][v, t], arrays["proteins"][v, t] = len(of.truth), of.proteins
    for h, head in enumerate(settings.heads):
        best: dict[tuple[int, int], Bootstrapped | None] = {}
        for i, of_input in enumerate(answers.values()):
            if head in of_input.valid:
                at = {n: a[h, i] for n, a in arrays.items() if data[n].dims[:2] == _PLACE[:2]}
                drawn = _score(at, head, settings, of_input, labelled)
                best = best or drawn  # of the model, which comes first
                for place, theirs in drawn.items() if i else ():
                    if (ours := best[place]) is not None and theirs is not None:
                        at["difference"][place] = _numbers(scores.estimated(ours.minus(theirs)))
                arrays["chosen"][h, i] = of_input.best(head)
                arrays["seconds"][h, i] = of_input.seconds.get(head, np.nan)
    for i, of_input in enumerate(answers.values()):
        arrays["passes"][i] = [of_input.passes.get(split, np.nan) for split in settings.splits]
    return data if size["true"] else data.drop_vars("confusion")


def _score(
    arrays: dict[str, np.ndarray],
    head: str,
    settings: Settings,
    answers: Answers,
    labelled: Mapping[tuple[int, int], scores.Labelled],
) -> dict[tuple[int, int], Bootstrapped | None]:
    """Fills the arrays of one head and input; the bootstrap of the chosen layer's scores."""
    benchmark, best = settings.benchmark, answers.best(head)
    if (trained := answers.trained.get(head)) is not None:
        for name, values in (("epochs", trained.epochs), ("best_epoch", trained.best_epoch)):
            arrays[name][: values.shape[1], : len(values)] = values.T
    drawn: dict[tuple[int, int], Bootstrapped | None] = {}
    for t, target in enumerate(benchmark.targets):
        if (valid := answers.valid[head].get(target.name)) is not None:
            arrays["valid"][: valid.shape[1], t, : len(valid)] = valid.T
    for (v, t), of in labelled.items():
        target, view = benchmark.targets[t], benchmark.views[settings.views[v]]
        if (found := answers.tests[view.split][head].get(target.name)) is None:
            continue
        for layer in range(found.shape[1]):
            one = scores.primary(found[:, layer], of, target, settings.seed)
            arrays["by_layer"][layer, v, t] = _numbers(scores.estimated(one))
            if layer == best:
                drawn[v, t] = one
        full = scores.full(found[:, best], of, target, benchmark.level, settings.seed)
        arrays["score"][v, t] = [_numbers(full.get(metric)) for metric in METRICS]
        arrays["by_seed"][v, t, : len(full["by_seed"])] = full["by_seed"]
        if counts := full.get("confusion"):
            arrays["confusion"][v, t, : len(counts), : len(counts)] = counts
    return drawn


def _numbers(estimate: Estimate) -> list[float]:
    """An estimate along the dimension "estimate"."""
    found = [estimate[name] if estimate else None for name in ESTIMATE]
    return [math.nan if value is None else float(value) for value in found]


def _about(
    loaded: LoadedModel, settings: Settings, answers: Mapping[str, Answers]
) -> dict[str, Any]:
    """The attributes of the dataset; the benchmark as JSON."""
    from protlm_jax.evaluation.probes.readers import ModelReader, compiled_shapes

    benchmark, reader = settings.benchmark, answers["model"].reader
    assert isinstance(reader, ModelReader)
    limit = reader.engine.limit
    about = {
        "name": benchmark.name,
        "title": benchmark.title,
        "level": benchmark.level,
        "targets": {t.name: {"kind": t.kind, "classes": t.classes} for t in benchmark.targets},
        "licence": benchmark.licence,
        "source": benchmark.source,
        "notes": benchmark.notes,
        "splits": {split: _counts(settings, split, limit) for split in settings.splits},
        "views": {view: asdict(benchmark.views[view]) for view in settings.views},
        # JSON has no nan: None says that a number cannot stand beside ours.
        "paper": [
            {**asdict(row), "percent": None if math.isnan(row.percent) else row.percent}
            for row in benchmark.paper
            if row.view in settings.views
        ],
    }
    return {
        "title": f"{benchmark.title}, read from {loaded.name}",
        "source": benchmark.source,
        "model": loaded.name,
        "num_layers": loaded.config.num_layers,
        "window": limit or 0,
        "benchmark": json.dumps(about),
        "protocol": _protocol(settings),
        "compilations": compiled_shapes([a.reader for a in answers.values() if a.reader]),
    }


def _counts(settings: Settings, split: str, limit: int | None) -> dict[str, Any]:
    proteins, level = settings.splits[split], settings.benchmark.level
    lengths = np.array([len(p.sequence) for p in proteins], np.int64)
    of = {t.name: scores.labelled(proteins, level, t) for t in settings.benchmark.targets}
    return {
        "proteins": len(proteins),
        "of": len(settings.benchmark.splits[split]()),
        "residues": int(lengths.sum()),
        "labelled": {name: len(found.truth) if found else 0 for name, found in of.items()},
        "in_windows": int((window_counts(lengths, limit) > 1).sum()),
    }


def _protocol(settings: Settings) -> str:
    """What was done, in sentences to print below the numbers."""
    train, valid = (_drawn(settings, split) for split in ("train", "valid"))
    heads = "; ".join(_WORDS[head] for head in settings.heads)
    return (
        f"Frozen features, computed in {settings.compute}, of {train} training proteins, "
        f"standardised on them. Heads: {heads}. {valid} validation proteins alone choose each "
        f"head's epoch and the layer; the scores by layer are a description, not a choice. "
        f"Pooled: over all labelled {settings.benchmark.level}s. Mean of "
        f"{len(settings.seeds)} seed(s) (linear heads have one optimum); standard errors and 95 % "
        "intervals by bootstrap over proteins, differences paired. random: the same architecture "
        "with fresh parameters; one_hot, composition and blosum62: the same head on residues "
        "without context; majority: the most frequent training class."
    )


def _drawn(settings: Settings, split: str) -> str:
    """Such as 2,500 of 9,712, or 9,712 where all are used."""
    used, there = len(settings.splits[split]), len(settings.benchmark.splits[split]())
    return f"{used:,}" if used == there else f"{used:,} of {there:,}"


@dataclass(frozen=True)
class ProbeResult:
    """Reads the dataset of `assemble` by names: estimates as dicts, None where there is none."""

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

    def score(
        self, head: str, kind: str, view: str, target: str, metric: str = "pooled"
    ) -> Estimate:
        return self._estimate("score", view, target, head=head, input=kind, metric=metric)

    def minus(self, head: str, control: str, view: str, target: str) -> Estimate:
        """The model's score minus the control's."""
        return self._estimate("difference", view, target, head=head, input=control)

    def by_layer(self, head: str, kind: str, view: str, target: str) -> list[tuple[Any, Estimate]]:
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

    def written(self, estimate: Estimate, target: str, sign: str = "") -> str:
        """A score with its standard error: percent of classes read right, or a correlation."""
        scale, digits = (100, 1) if self.is_classes(target) else (1, 3)
        return written(estimate, digits, scale=scale, sign=sign)

    def array(self, name: str, **labels: Any) -> np.ndarray:
        """A variable at these labels of its dimensions."""
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

    def _estimate(self, name: str, view: str, target: str, **labels: Any) -> Estimate:
        found = self.array(name, view=view, target=target, **labels).tolist()
        if math.isnan(found[0]):
            return None
        numbers = (None if math.isnan(number) else number for number in found)
        return dict(zip(ESTIMATE, numbers, strict=True)) | {
            "proteins": self.counts(view, target)[1]
        }


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
    """The scores by layer, and of the chosen layer all others."""
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
    for metric in METRICS[1:]:
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
    for head in result.heads:
        for target in about["targets"]:
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
    """One target: test sets as rows, the inputs and the model's lead over each as columns."""
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
    if rows:
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
            lines.append(
                "Published heads learned from all training proteins, those above from few."
            )
    return lines
