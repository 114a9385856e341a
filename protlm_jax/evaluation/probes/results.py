"""The result of a probe as a plain dict: what was measured, on what, with which errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from protlm_jax.data.rows import window_counts
from protlm_jax.evaluation.probe_data import PaperRow
from protlm_jax.evaluation.probes import scores
from protlm_jax.evaluation.probes.outcome import Outcome, Plan
from protlm_jax.evaluation.probes.readers import ModelReader, compiled_shapes
from protlm_jax.evaluation.probes.scores import Asked, estimated
from protlm_jax.evaluation.statistics import Bootstrapped
from protlm_jax.models.loaded import LoadedModel

_DIGITS = 6


def assemble(loaded: LoadedModel, plan: Plan, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Scores all inputs on all views: the dict that `run.run` returns, but for its seconds."""
    model = outcomes["model"]
    assert isinstance(model.reader, ModelReader)
    limit = model.reader.embedder.limit
    targets = {
        t.name: {
            "kind": t.kind,
            "classes": list(t.classes),
            "metric": "accuracy" if t.kind == "classes" else "spearman",
        }
        for t in plan.benchmark.targets
    }
    about = plan.benchmark
    return {
        "model": loaded.name,
        "benchmark": {
            "name": about.name,
            "title": about.title,
            "level": about.level,
            "targets": targets,
            "licence": about.licence,
            "source": about.source,
            "notes": list(about.notes),
            "splits": {split: _counts(plan, split, limit) for split in plan.splits},
            "views": {view: asdict(about.views[view]) for view in plan.views},
        },
        "layers": list(plan.layers),
        "num_layers": loaded.config.num_layers,
        "window": limit,
        "seeds": list(plan.seeds),
        "heads": {head: _of_head(head, plan, outcomes) for head in plan.heads},
        "paper": [_paper(row) for row in about.paper if row.view in plan.views],
        "protocol": protocol(plan),
        "cost": {
            "forward_passes": {
                kind: {split: round(n, 3) for split, n in outcome.passes.items()}
                for kind, outcome in outcomes.items()
                if outcome.passes
            },
            "compilations": compiled_shapes([o.reader for o in outcomes.values() if o.reader]),
        },
    }


def _of_head(head: str, plan: Plan, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Every input's scores, and the model's lead over each control on the same draws."""
    inputs: dict[str, Any] = {}
    best: dict[str, dict[tuple[str, str], Bootstrapped | None]] = {}
    asked = _asked(plan)
    for kind, outcome in outcomes.items():
        if head not in outcome.valid:
            continue
        inputs[kind], best[kind] = _of_input(head, plan, outcome, asked)
    minus: dict[str, Any] = {}
    for kind in inputs:
        if kind == "model":
            continue
        minus[kind] = {view: {} for view in plan.views}
        for (view, target), ours in best["model"].items():
            theirs = best[kind].get((view, target))
            if ours is not None and theirs is not None:
                minus[kind][view][target] = estimated(ours.minus(theirs))
    return {"inputs": inputs, "model_minus": minus}


def _of_input(
    head: str, plan: Plan, outcome: Outcome, asked: Mapping[tuple[str, str], Asked]
) -> tuple[dict[str, Any], dict[tuple[str, str], Bootstrapped | None]]:
    """Scores at the layer that validation chose, by layer, and the bootstrap of the former."""
    best = outcome.best(head)
    tests: dict[str, Any] = {view: {} for view in plan.views}
    by_layer: dict[str, Any] = {view: {} for view in plan.views}
    drawn: dict[tuple[str, str], Bootstrapped | None] = {}
    for (view, name), of in asked.items():
        target = next(t for t in plan.benchmark.targets if t.name == name)
        found = outcome.answers[plan.benchmark.views[view].split][head].get(name)
        if found is None:
            continue
        curve = [
            scores.primary(found[:, layer], of, target, plan.seed)
            for layer in range(found.shape[1])
        ]
        drawn[view, name] = curve[best]
        by_layer[view][name] = [estimated(one) for one in curve]
        tests[view][name] = scores.full(found[:, best], of, target, plan.benchmark.level, plan.seed)
    made: dict[str, Any] = {
        "layers": list(outcome.layers),
        "valid": {t: _rounded(v.T) for t, v in outcome.valid[head].items()},
        "best_layer": {"index": best, "layer": outcome.layers[best]},
    }
    if (trained := outcome.trained.get(head)) is not None:
        made["training"] = {
            "epochs": trained.epochs.T.tolist(),
            "best_epoch": trained.best_epoch.T.tolist(),
            "seconds": round(outcome.seconds[head], 2),
        }
    return {**made, "tests": tests, "by_layer": by_layer}, drawn


def _asked(plan: Plan) -> dict[tuple[str, str], Asked]:
    """(view, target) -> what is counted; without the targets of which a view has no label."""
    found = {}
    for view in plan.views:
        about = plan.benchmark.views[view]
        for target in plan.benchmark.targets:
            of = scores.asked(plan.splits[about.split], plan.benchmark.level, target, about.mark)
            if of is not None:
                found[view, target.name] = of
    return found


def _counts(plan: Plan, split: str, limit: int | None) -> dict[str, Any]:
    proteins, level = plan.splits[split], plan.benchmark.level
    lengths = np.array([len(p.sequence) for p in proteins], np.int64)
    of = {t.name: scores.asked(proteins, level, t) for t in plan.benchmark.targets}
    return {
        "proteins": len(proteins),
        "of": len(plan.benchmark.splits[split]()),
        "residues": int(lengths.sum()),
        "labelled": {name: len(found.truth) if found else 0 for name, found in of.items()},
        "in_windows": int((window_counts(lengths, limit) > 1).sum()),
    }


def _paper(row: PaperRow) -> dict[str, Any]:
    """JSON has no nan: a number that cannot stand beside ours is None."""
    return {**asdict(row), "percent": None if math.isnan(row.percent) else row.percent}


def _rounded(values: np.ndarray) -> list[Any]:
    """Nested lists; nan becomes None."""
    flat = [None if math.isnan(v) else round(float(v), _DIGITS) for v in values.ravel()]
    width = values.shape[1]
    return [flat[i : i + width] for i in range(0, len(flat), width)]


def protocol(plan: Plan) -> str:
    """What was done, in sentences to print below the numbers."""
    train, valid = (_drawn(plan, split) for split in ("train", "valid"))
    words = {
        "linear": "linear: one matrix (classes: logistic regression; numbers: ridge)",
        "cnn": "cnn: the ProtTrans head for residues, two convolutions of width 7",
        "fnn": "fnn: the ProtTrans head for proteins, 32 hidden units on the mean over residues",
        "light_attention": "light_attention: Stärk et al. 2021",
    }
    heads = "; ".join(words[head] for head in plan.heads)
    levels = {"residue": "residues", "protein": "proteins"}
    return (
        f"Frozen features, computed in {plan.compute}, of {train} training proteins, "
        f"standardised on them. Heads: {heads}. {valid} validation proteins alone choose each "
        f"head's epoch and the layer; the scores by layer are a description, not a choice. "
        f"Pooled: over all labelled {levels[plan.benchmark.level]}. Mean of "
        f"{len(plan.seeds)} seed(s) (linear heads have one optimum); standard errors and 95 % "
        "intervals by bootstrap over proteins, differences paired. random: the same architecture "
        "with fresh parameters; one_hot, composition and blosum62: the same head on residues "
        "without context; majority: the most frequent training class."
    )


def _drawn(plan: Plan, split: str) -> str:
    """Such as 2,500 of 9,712, or 9,712 where all are used."""
    used, there = len(plan.splits[split]), len(plan.benchmark.splits[split]())
    return f"{used:,}" if used == there else f"{used:,} of {there:,}"
