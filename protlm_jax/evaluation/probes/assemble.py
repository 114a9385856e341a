"""Scores what heads answer, and assembles the dataset of a probe."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import xarray

from protlm_jax.data.rows import window_counts
from protlm_jax.evaluation.probes import scores
from protlm_jax.evaluation.probes.answers import Answers, Settings
from protlm_jax.evaluation.probes.readers import ModelReader, compiled_shapes
from protlm_jax.evaluation.probes.results import ESTIMATE, METRICS, numbers
from protlm_jax.evaluation.statistics import Bootstrapped
from protlm_jax.models.loaded import LoadedModel

_PLACE = ("head", "input", "view", "target")
_WORDS = {
    "linear": "linear: one matrix (classes: logistic regression; numbers: ridge)",
    "cnn": "cnn: the ProtTrans head for residues, two convolutions of width 7",
    "fnn": "fnn: the ProtTrans head for proteins, 32 hidden units on the mean over residues",
    "light_attention": "light_attention: Stärk et al. 2021",
}


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
                        at["difference"][place] = numbers(scores.estimated(ours.minus(theirs)))
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
    loaded: LoadedModel, settings: Settings, answers: Mapping[str, Answers]
) -> dict[str, Any]:
    """The attributes of the dataset; the benchmark as JSON."""
    benchmark, reader = settings.benchmark, answers["model"].reader
    assert isinstance(reader, ModelReader)
    limit = reader.embedder.limit
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
