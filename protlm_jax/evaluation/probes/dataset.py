"""Scores the predictions of all inputs, and makes the dataset of a probe."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import xarray

from protlm_jax.data.rows import window_counts
from protlm_jax.evaluation.probes import scores
from protlm_jax.evaluation.probes.features import ModelReader
from protlm_jax.evaluation.probes.fit import FittedHeads, Settings
from protlm_jax.evaluation.probes.results import ESTIMATE, METRICS, numbers
from protlm_jax.evaluation.statistics import Bootstrapped
from protlm_jax.models.loaded import LoadedModel

_PLACE = ("head", "input", "view", "target")
_LEARNED = ("head", "input", "layer")
_VARIABLES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "score": ((*_PLACE, "metric", "estimate"), {"long_name": "score on the test sets"}),
    "by_layer": ((*_LEARNED, "view", "target", "estimate"), {"long_name": "score by layer"}),
    "difference": ((*_PLACE, "estimate"), {"long_name": "the model's score minus input's"}),
    "by_seed": ((*_PLACE, "seed"), {"long_name": "score of each seed"}),
    "confusion": ((*_PLACE, "true", "predicted"), {"units": "labels"}),
    "valid": ((*_LEARNED, "target", "seed"), {"long_name": "score on validation proteins"}),
    "valid_loss": ((*_LEARNED, "target", "seed"), {"long_name": "loss on validation proteins"}),
    "penalty": ((*_LEARNED, "target"), {"long_name": "L2 penalty of linear heads"}),
    "epochs": ((*_LEARNED, "seed"), {"units": "epochs"}),
    "best_epoch": ((*_LEARNED, "seed"), {"units": "epochs"}),
    "seconds": (("head", "input"), {"units": "s"}),
    "passes": (("input", "split"), {"units": "passes of the model"}),
    "chosen": (("head", "input"), {}),
    "n": (("view", "target"), {}),
    "proteins": (("view", "target"), {}),
}
_EMPTY = {"chosen": -1, "n": 0, "proteins": 0}  # of integers; NaN of others
_WORDS = {
    "linear": "linear: one matrix (classes: logistic regression; numbers: ridge)",
    "cnn": "cnn: the ProtTrans head for residues, two convolutions of width 7",
    "fnn": "fnn: the ProtTrans head for proteins, 32 hidden units on the mean over residues",
    "light_attention": "light_attention: Stärk et al. 2021",
}


def assemble(
    loaded: LoadedModel, settings: Settings, fitted: Mapping[str, FittedHeads]
) -> xarray.Dataset:
    """Scores all inputs ("model" and controls) on all views; NaN where there is no score.

    `score` is of the layer `chosen` on validation (its index; -1: the head has no such input), with
    the metrics of METRICS ("pooled" is accuracy or Spearman's correlation over all labels);
    `by_layer`, `by_seed`, `valid` and `difference` (the model minus a control, paired over
    proteins) are pooled scores; inputs without layers have the first one. `confusion` has counts,
    mean over seeds. `n` and `proteins` count labels, and proteins that have any.
    """
    data = _empty(loaded, settings, fitted)
    arrays = {str(name): variable.values for name, variable in data.data_vars.items()}
    views, targets = enumerate(settings.views), enumerate(settings.benchmark.targets)
    labelled: dict[tuple[int, int], scores.Labelled] = {}
    for (v, name), (t, target) in itertools.product(views, targets):
        view = settings.benchmark.views[name]
        proteins, level = settings.splits[view.split], settings.benchmark.level
        if (of := scores.labelled(proteins, level, target, view.mark)) is not None:
            labelled[v, t] = of
            arrays["n"][v, t], arrays["proteins"][v, t] = len(of.truth), of.proteins
    for h, head in enumerate(settings.heads):
        best: dict[tuple[int, int], Bootstrapped | None] = {}
        for i, of_input in enumerate(fitted.values()):
            if head not in of_input.valid:
                continue
            at = {n: a[h, i] for n, a in arrays.items() if data[n].dims[:2] == _PLACE[:2]}
            drawn = _score(at, head, settings, of_input, labelled)
            best = best or drawn  # of the model, which comes first
            for place, theirs in drawn.items() if i else ():
                if (ours := best[place]) is not None and theirs is not None:
                    at["difference"][place] = numbers(scores.estimated(ours.minus(theirs)))
            arrays["chosen"][h, i] = of_input.best(head)
            arrays["seconds"][h, i] = of_input.seconds.get(head, np.nan)
    for i, of_input in enumerate(fitted.values()):
        arrays["passes"][i] = [of_input.passes.get(split, np.nan) for split in settings.splits]
    return data if data.sizes["true"] else data.drop_vars("confusion")


def _empty(
    loaded: LoadedModel, settings: Settings, fitted: Mapping[str, FittedHeads]
) -> xarray.Dataset:
    coords: dict[str, Any] = {
        "head": list(settings.heads),
        "input": list(fitted),
        "layer": list(settings.layers),
        "view": list(settings.views),
        "target": [target.name for target in settings.benchmark.targets],
        "seed": list(settings.seeds),
        "metric": list(METRICS),
        "estimate": list(ESTIMATE),
        "split": list(settings.splits),
    }
    size = {name: len(values) for name, values in coords.items()}
    classes = [len(target.classes) for target in settings.benchmark.targets]
    size["true"] = max((n for n in classes if n <= scores.MOST_IN_A_TABLE), default=0)
    size["predicted"] = size["true"]
    variables = {
        name: (dims, np.full([size[d] for d in dims], _EMPTY.get(name, np.nan)), attrs)
        for name, (dims, attrs) in _VARIABLES.items()
    }
    return xarray.Dataset(variables, coords, _about(loaded, settings, fitted))


def _score(
    arrays: dict[str, np.ndarray],
    head: str,
    settings: Settings,
    fitted: FittedHeads,
    labelled: Mapping[tuple[int, int], scores.Labelled],
) -> dict[tuple[int, int], Bootstrapped | None]:
    """Fills the arrays of one head and input; the bootstrap of the chosen layer's scores."""
    benchmark, best = settings.benchmark, fitted.best(head)
    if (trained := fitted.trained.get(head)) is not None:
        for name, values in (("epochs", trained.epochs), ("best_epoch", trained.best_epoch)):
            arrays[name][: values.shape[1], : len(values)] = values.T
    drawn: dict[tuple[int, int], Bootstrapped | None] = {}
    for t, target in enumerate(benchmark.targets):
        if (valid := fitted.valid[head].get(target.name)) is not None:
            arrays["valid"][: valid.shape[1], t, : len(valid)] = valid.T
        if trained is not None:
            loss, penalty = trained.losses[target.name], trained.penalties.get(target.name)
            arrays["valid_loss"][: loss.shape[1], t, : len(loss)] = loss.T
            arrays["penalty"][: loss.shape[1], t] = np.nan if penalty is None else penalty[0]
    for (v, t), of in labelled.items():
        target, view = benchmark.targets[t], benchmark.views[settings.views[v]]
        if (found := fitted.tests[view.split][head].get(target.name)) is None:
            continue
        for layer in range(found.shape[1]):
            one = scores.primary(found[:, layer], of, target, settings.seed)
            arrays["by_layer"][layer, v, t] = numbers(scores.estimated(one))
            if layer == best:
                drawn[v, t] = one
        full = scores.full(found[:, best], of, target, benchmark.level, settings.seed)
        arrays["score"][v, t] = [numbers(full.get(metric)) for metric in METRICS]
        arrays["by_seed"][v, t, : len(full["by_seed"])] = full["by_seed"]
        if counts := full.get("confusion"):
            arrays["confusion"][v, t, : len(counts), : len(counts)] = counts
    return drawn


def _about(
    loaded: LoadedModel, settings: Settings, fitted: Mapping[str, FittedHeads]
) -> dict[str, Any]:
    """The attributes of the dataset; the benchmark as JSON."""
    benchmark = settings.benchmark
    readers = [one.reader for one in fitted.values() if isinstance(one.reader, ModelReader)]
    limit = readers[0].embedder.limit  # of the model, which comes first
    about: dict[str, Any] = {
        "name": benchmark.name,
        "title": benchmark.title,
        "level": benchmark.level,
        "targets": {t.name: {"kind": t.kind, "classes": t.classes} for t in benchmark.targets},
        "licence": benchmark.licence,
        "source": benchmark.source,
        "notes": benchmark.notes,
        "splits": {split: _counts(settings, split, limit) for split in settings.splits},
        "views": {view: asdict(benchmark.views[view]) for view in settings.views},
        # JSON has no nan: None marks a number that cannot stand beside ours.
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
        "protocol": _protocol(settings, about["splits"]),
        "compilations": len(set().union(*(r.embedder.engine.used for r in readers))),
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


def _protocol(settings: Settings, splits: Mapping[str, Mapping[str, int]]) -> str:
    """What was done, in sentences to print below the numbers."""

    def drawn(split: str) -> str:
        used, there = splits[split]["proteins"], splits[split]["of"]
        return f"{used:,}" if used == there else f"{used:,} of {there:,}"

    heads = "; ".join(_WORDS[head] for head in settings.heads)
    return (
        f"Frozen features, computed in {settings.compute}, of {drawn('train')} training proteins, "
        f"standardised on them. Heads: {heads}. The loss on {drawn('valid')} validation proteins "
        f"alone chooses each head's penalty or epoch and the layer; the scores by layer are a "
        f"description. Pooled: over all labelled {settings.benchmark.level}s. Mean of "
        f"{len(settings.seeds)} seed(s) (linear heads have one optimum); standard errors and 95 % "
        "intervals by bootstrap over proteins, differences paired. random: the same architecture "
        "with fresh parameters; one_hot, composition and blosum62: the same head on residues "
        "without context; majority: the most frequent training class."
    )
