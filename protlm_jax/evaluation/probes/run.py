"""One probe from beginning to end: proteins, features, heads, scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.spec import Dtype, Vectors, resolve_layers
from protlm_jax.evaluation.engine import normalised
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein, load, subset
from protlm_jax.evaluation.probes import results
from protlm_jax.evaluation.probes.features import memory_budget
from protlm_jax.evaluation.probes.outcome import Outcome, Plan, of_control, of_features
from protlm_jax.evaluation.probes.trained import TrainedHeads
from protlm_jax.models.loaded import LoadedModel

HEADS = {"residue": ("linear", "cnn"), "protein": ("linear", "fnn", "light_attention")}
DEFAULT_HEADS = {"residue": ("linear", "cnn"), "protein": ("linear", "fnn")}
TRAIN_PROTEINS = 2500
SEEDS = 3


@dataclass(frozen=True)
class Probed:
    """A probe's numbers and what made them.

    Attributes:
        result: plain JSON: "model", "benchmark", "layers", "num_layers", "window", "seeds", "heads"
            -> head -> "inputs" -> input -> {"layers", "valid", "best_layer", "training", "tests" ->
            view -> target -> `scores.full`, "by_layer" -> view -> target -> estimates} and
            "model_minus" -> control -> view -> target -> estimate, "paper", "protocol", "cost".
        heads: head -> the model's trained heads at the layer that validation chose (one input).
        rows: head -> what a row is to it, "residues" or "mean".
        compute: dtype in which the model computed.
    """

    result: dict[str, Any]
    heads: dict[str, TrainedHeads]
    rows: dict[str, Vectors]
    compute: Dtype


def run(
    loaded: LoadedModel,
    benchmark: Benchmark,
    *,
    heads: Sequence[str] | None = None,
    layers: str | Sequence[int] = "last",
    seeds: int = SEEDS,
    train_proteins: int | None = TRAIN_PROTEINS,
    valid_proteins: int | None = None,
    views: Sequence[str] | None = None,
    controls: Sequence[str] | None = None,
    window: int | None = None,
    compute: Dtype = "float32",
    budget: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> Probed:
    """Trains heads on frozen features, chooses on validation, and scores the tests once.

    Args:
        loaded: the model; it runs once for all layers, and again in each epoch for features that
            do not fit in memory.
        benchmark: the data set, of residues or of proteins.
        heads: of HEADS at the benchmark's level; None: those of DEFAULT_HEADS.
        layers: "last", "all" or numbers, see `wanted.resolve_layers`.
        seeds: how many times each head is trained.
        train_proteins: how many are drawn; None takes all.
        valid_proteins: likewise; None: a tenth of the training proteins, at least 200.
        views: of the benchmark, in the order reported; None takes all.
        controls: beside the model; None: all that the heads have, see `controls`.
        window: residues read at once; see `embed.resolve_window`.
        compute: dtype in which the model computes.
        budget: bytes of features that may be in memory; None: `memory_budget()`.
        seed: of draws of proteins, the random control, heads and the bootstrap.
        say, progress: takes lines of text before it starts; draw progress bars on a terminal.

    Raises:
        ProtlmError: for a head, view, control, layer or window that is not there, data without
            labels, or proteins that the model's policy refuses.
    """
    if benchmark.level not in HEADS:
        raise ProtlmError(f"{benchmark.title}: no head reads these; see `contacts.run` for pairs")
    names = _chosen("head", heads, HEADS[benchmark.level], DEFAULT_HEADS[benchmark.level])
    shown = _chosen("view", views, tuple(benchmark.views), tuple(benchmark.views))
    splits = _drawn(benchmark, shown, train_proteins, valid_proteins, seed)
    drawn = (protein for proteins in splits.values() for protein in proteins)
    normalised(((p.id, p.sequence) for p in drawn), loaded.policy)  # refused now, if at all
    plan = Plan(
        benchmark=benchmark,
        splits=splits,
        views=shown,
        heads=names,
        layers=resolve_layers(loaded, layers),
        seeds=tuple(range(seed, seed + seeds)),
        window=window,
        compute=compute,
        budget=memory_budget() if budget is None else budget,
        seed=seed,
        progress=progress,
        say=say,
    )
    return _carried_out(loaded, plan, controls)


def _carried_out(loaded: LoadedModel, plan: Plan, controls: Sequence[str] | None) -> Probed:
    """What the plan asks of the model and of its controls, all of them where None are named."""
    began = time.perf_counter()
    known = tuple(dict.fromkeys(c for head in plan.heads for c in plan.controls(head)))
    beside = _chosen("control", controls, known, known)
    outcomes = {"model": of_features("model", loaded, plan)}
    outcomes |= {kind: of_control(kind, loaded, plan) for kind in beside}
    result = results.assemble(loaded, plan, outcomes)
    result["cost"]["seconds"] = round(time.perf_counter() - began, 1)
    rows = {head: plan.rows(head) for head in plan.heads}
    return Probed(result, _at_best_layer(outcomes["model"]), rows, plan.compute)


def probe(
    loaded: LoadedModel, benchmark: str, *, data_dir: Path | None = None, **options: Any
) -> Probed:
    """`run` on a benchmark by its name.

    Args:
        loaded: the model.
        benchmark: of `probe_data.NAMES`.
        data_dir: where the files of those lie that do not ship with the package.
        **options: of `run`.

    Raises:
        ProtlmError: as `run` and `probe_data.load`.
    """
    return run(loaded, load(benchmark, data_dir), **options)


def _at_best_layer(outcome: Outcome) -> dict[str, TrainedHeads]:
    return {head: trained.select(outcome.best(head)) for head, trained in outcome.trained.items()}


def _drawn(
    benchmark: Benchmark, views: Sequence[str], train: int | None, valid: int | None, seed: int
) -> dict[str, list[LabelledProtein]]:
    """The proteins of training, validation and the tests that are reported."""
    if valid is None and train is not None:
        valid = max(200, train // 10)
    splits = {
        "train": subset(benchmark.splits["train"](), train, seed),
        "valid": subset(benchmark.splits["valid"](), valid, seed),
    }
    for view in views:
        split = benchmark.views[view].split
        splits.setdefault(split, benchmark.splits[split]())
    for split, proteins in splits.items():
        if not proteins:
            raise ProtlmError(f"{benchmark.title}: there is no protein in the split {split!r}")
    return splits


def _chosen(
    what: str, asked: Sequence[str] | None, known: tuple[str, ...], default: tuple[str, ...]
) -> tuple[str, ...]:
    """What is asked for, each once.

    Raises:
        ProtlmError: for one that is not there.
    """
    if asked is None:
        return default
    if wrong := [name for name in asked if name not in known]:
        there = ", ".join(known) or "none"
        raise ProtlmError(f"no {what} {wrong[0]!r} for these data; there is {there}")
    return tuple(dict.fromkeys(asked))
