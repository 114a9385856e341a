"""One probe from beginning to end: proteins, features, heads, scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding import memory
from protlm_jax.evaluation.embedding.spec import Dtype, Vectors, resolve_layers
from protlm_jax.evaluation.engine import normalised
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein, load, subset
from protlm_jax.evaluation.probes import controls, scores
from protlm_jax.evaluation.probes.answers import Answers, Settings
from protlm_jax.evaluation.probes.assemble import assemble
from protlm_jax.evaluation.probes.features import Source, Store, memory_budget, shares
from protlm_jax.evaluation.probes.readers import Reader, TableReader, model_reader
from protlm_jax.evaluation.probes.trained import TrainedHeads, decided
from protlm_jax.evaluation.probes.training import train
from protlm_jax.models.loaded import LoadedModel

if TYPE_CHECKING:
    import xarray

HEADS = {"residue": ("linear", "cnn"), "protein": ("linear", "fnn", "light_attention")}
DEFAULT_HEADS = {"residue": ("linear", "cnn"), "protein": ("linear", "fnn")}
TRAIN_PROTEINS = 2500
SEEDS = 3
RANDOM = 7919
"""Added to the seed of re-initialised copies: not the seed of a training run that is likely."""


@dataclass(frozen=True)
class Probed:
    """A probe's numbers and what made them.

    Attributes:
        result: see `assemble.assemble`; `results.ProbeResult` reads it.
        heads: head -> the model's trained heads at the layer that validation chose (one input).
        rows: head -> what a row is to it, "residues" or "mean".
        compute: dtype in which the model computed.
    """

    result: xarray.Dataset
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
    began = time.perf_counter()
    if benchmark.level not in HEADS:
        raise ProtlmError(f"{benchmark.title}: no head reads these; see `contacts.run` for pairs")
    names = _chosen("head", heads, HEADS[benchmark.level], DEFAULT_HEADS[benchmark.level])
    shown = _chosen("view", views, tuple(benchmark.views), tuple(benchmark.views))
    splits = _drawn(benchmark, shown, train_proteins, valid_proteins, seed)
    drawn = (protein for proteins in splits.values() for protein in proteins)
    normalised(((p.id, p.sequence) for p in drawn), loaded.policy)  # refused now, if at all
    settings = Settings(
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
    known = tuple(dict.fromkeys(c for head in names for c in settings.controls(head)))
    beside = _chosen("control", controls, known, known)
    answers = {"model": _of_features("model", loaded, settings)}
    answers |= {kind: _of_control(kind, loaded, settings) for kind in beside}
    result = assemble(loaded, settings, answers)
    result.attrs["seconds"] = round(time.perf_counter() - began, 1)
    model = answers["model"]
    best = {head: trained.select(model.best(head)) for head, trained in model.trained.items()}
    return Probed(result, best, {head: settings.rows(head) for head in names}, compute)


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


def _chosen(
    what: str, names: Sequence[str] | None, known: tuple[str, ...], default: tuple[str, ...]
) -> tuple[str, ...]:
    """The names, each once; ProtlmError for one that is not known."""
    if names is None:
        return default
    if wrong := [name for name in names if name not in known]:
        there = ", ".join(known) or "none"
        raise ProtlmError(f"no {what} {wrong[0]!r} for these data; there is {there}")
    return tuple(dict.fromkeys(names))


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


def _of_control(kind: str, loaded: LoadedModel, settings: Settings) -> Answers:
    if kind == "majority":
        return _of_majority(settings)
    if kind == "random":
        loaded = controls.random_control(loaded, settings.seed + RANDOM)
    return _of_features(kind, loaded, settings)


def _of_features(kind: str, loaded: LoadedModel, settings: Settings) -> Answers:
    """Trains the heads that read this input, and lets them answer for the test splits."""
    own = [h for h in settings.heads if kind == "model" or kind in settings.controls(h)]
    vectors = tuple(dict.fromkeys(settings.rows(head) for head in own))
    reader = _reader(kind, loaded, settings, vectors)
    answers = Answers(reader=reader)
    training, choosing = _learning_stores(kind, reader, settings)
    targets, level = settings.benchmark.targets, settings.benchmark.level
    for head in own:
        began = time.perf_counter()
        rows = settings.rows(head)
        answers.trained[head] = train(
            head,
            targets,
            Source(training, targets, level, rows),
            Source(choosing, targets, level, rows),
            seeds=settings.seeds,
            progress=settings.progress,
        )
        answers.valid[head] = answers.trained[head].valid
        answers.seconds[head] = time.perf_counter() - began
        settings.say(f"{kind}: {head} head trained in {answers.seconds[head]:.0f} s")
    passes = {"train": training.passes, "valid": choosing.passes}
    began = time.perf_counter()
    del training, choosing  # their features make room for those of the tests
    for split in settings.tests:
        hold = settings.budget // 4
        store = Store(
            reader, settings.splits[split], settings.budget - hold, hold, settings.progress
        )
        answers.tests[split] = {}
        for way in vectors:
            these = {h: answers.trained[h] for h in own if settings.rows(h) == way}
            answers.tests[split] |= decided(Source(store, targets, level, way), these)
        passes[split] = store.passes
    settings.say(f"{kind}: test sets read in {time.perf_counter() - began:.0f} s")
    if answers.has_layers:
        answers.passes = passes
    return answers


def _of_majority(settings: Settings) -> Answers:
    """The most frequent training class of each target, whatever the protein."""
    answers = Answers()
    level = settings.benchmark.level
    own = [head for head in settings.heads if "majority" in settings.controls(head)]
    for target in settings.benchmark.targets:
        if target.kind != "classes":
            continue
        answer = controls.majority(settings.splits["train"], target.name)
        for split in settings.tests:
            proteins = settings.splits[split]
            by_residue = level == "residue"
            items = sum(len(p.sequence) for p in proteins) if by_residue else len(proteins)
            constant = np.full((1, 1, items), answer, np.int16)
            for head in own:
                answers.tests.setdefault(split, {}).setdefault(head, {})[target.name] = constant
        of = scores.labelled(settings.splits["valid"], level, target)
        right = np.array([[np.mean(of.truth == answer) if of else np.nan]])
        for head in own:
            answers.valid[head] = {**answers.valid.get(head, {}), target.name: right}
    return answers


def _reader(
    kind: str, loaded: LoadedModel, settings: Settings, vectors: tuple[Vectors, ...]
) -> Reader:
    if kind not in ("model", "random"):
        return TableReader(kind, vectors)
    residues = [len(p.sequence) for proteins in settings.splits.values() for p in proteins]
    return model_reader(
        loaded, settings.layers, vectors, residues, settings.window, settings.compute
    )


def _learning_stores(kind: str, reader: Reader, settings: Settings) -> tuple[Store, Store]:
    """Training and validation features within the budget."""
    training, choosing = (
        Store(reader, settings.splits[s], 0, 0, settings.progress) for s in ("train", "valid")
    )
    needed = training.total_bytes, choosing.total_bytes
    training.keep, choosing.keep, hold = shares(*needed, settings.budget)
    training.hold = choosing.hold = hold
    if kind == "model":
        fits, kept = "and stay in memory", training.keep + choosing.keep
        if kept < sum(needed):
            fits = (
                f"of which {memory.size(kept)} stay in memory; the model runs again in each "
                "epoch for the rest"
            )
        settings.say(
            f"features of {reader.num_inputs} layer(s) for training and validation take "
            f"{memory.size(sum(needed))} (budget {memory.size(settings.budget)}), {fits}"
        )
    return training, choosing
