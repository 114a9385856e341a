"""Trains the heads on one input, the model's layers or a control, and predicts the test splits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from protlm_jax.evaluation.embedding import memory
from protlm_jax.evaluation.embedding.spec import Dtype, Vectors
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein
from protlm_jax.evaluation.probes import controls, heads, scores
from protlm_jax.evaluation.probes.controls import TableReader
from protlm_jax.evaluation.probes.features import (
    FeatureSource,
    ModelReader,
    Reader,
    Store,
    model_reader,
    shares,
)
from protlm_jax.evaluation.probes.trained import Found, TrainedHeads, decided
from protlm_jax.evaluation.probes.training import train
from protlm_jax.models.loaded import LoadedModel

# Added to the seed of re-initialised copies: not the seed of a training run that is likely.
RANDOM = 7919


@dataclass(frozen=True)
class Settings:
    """What is probed, resolved and checked; see the arguments of `run.run`.

    `splits` has the proteins that are used: of "train", "valid" and the test splits.
    """

    benchmark: Benchmark
    splits: Mapping[str, Sequence[LabelledProtein]]
    views: tuple[str, ...]
    heads: tuple[str, ...]
    layers: tuple[int, ...]
    seeds: tuple[int, ...]
    window: int | None
    compute: Dtype
    budget: int
    seed: int
    progress: bool
    say: Callable[[str], None]

    @property
    def tests(self) -> tuple[str, ...]:
        """The test splits, each once: views of one share its predictions."""
        return tuple(dict.fromkeys(self.benchmark.views[view].split for view in self.views))

    def rows(self, head: str) -> Vectors:
        """A row of a head's features: a residue, or the mean of a protein."""
        by_residue = self.benchmark.level == "residue" or heads.kind(head).pools
        return "residues" if by_residue else "mean"

    def controls(self, head: str) -> tuple[str, ...]:
        """A constant ranks nothing: numbers have no majority."""
        named = controls.BY_RESIDUE if self.rows(head) == "residues" else controls.BY_PROTEIN
        classes = any(target.kind == "classes" for target in self.benchmark.targets)
        return tuple(name for name in named if classes or name != "majority")


@dataclass
class FittedHeads:
    """The heads on one input and their predictions.

    Attributes:
        reader: of the features; None for the majority, which has no `trained` heads, either.
        valid: head -> target -> [seeds, inputs] validation scores.
        tests: split -> head -> target -> [seeds, inputs, items], see `trained.decided`.
        seconds: head -> spent on training.
        passes: split -> how often its proteins went through the model; empty without a model.
    """

    reader: Reader | None = None
    trained: dict[str, TrainedHeads] = field(default_factory=dict)
    valid: dict[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    tests: dict[str, Found] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=dict)

    def best(self, head: str) -> int:
        """Index of the layer with the lowest validation loss, mean over targets and seeds."""
        if head not in self.trained:
            return 0
        losses = self.trained[head].losses.values()
        return int(np.argmin(np.mean([of_one.mean(axis=0) for of_one in losses], axis=0)))


def fit(kind: str, loaded: LoadedModel, settings: Settings) -> FittedHeads:
    """Trains the heads that read this input ("model" or a control), and predicts the tests."""
    if kind == "majority":
        return _majority(settings)
    if kind == "random":
        loaded = controls.random_control(loaded, settings.seed + RANDOM)
    own = [h for h in settings.heads if kind == "model" or kind in settings.controls(h)]
    vectors = tuple(dict.fromkeys(settings.rows(head) for head in own))
    reader: Reader = TableReader(kind, vectors)
    if kind in ("model", "random"):
        lengths = [len(p.sequence) for proteins in settings.splits.values() for p in proteins]
        reader = model_reader(
            loaded, settings.layers, vectors, lengths, settings.window, settings.compute
        )
    fitted = FittedHeads(reader)
    training, choosing = _learning_stores(kind, reader, settings)
    targets, level = settings.benchmark.targets, settings.benchmark.level
    for head in own:
        began = time.perf_counter()
        sources = (
            FeatureSource(s, targets, level, settings.rows(head)) for s in (training, choosing)
        )
        fitted.trained[head] = train(
            head, targets, *sources, seeds=settings.seeds, progress=settings.progress
        )
        fitted.valid[head] = fitted.trained[head].valid
        fitted.seconds[head] = time.perf_counter() - began
        settings.say(f"{kind}: {head} head trained in {fitted.seconds[head]:.0f} s")
    passes = {"train": training.passes, "valid": choosing.passes}
    began = time.perf_counter()
    del training, choosing  # their features make room for those of the tests
    hold = settings.budget // 4
    for split in settings.tests:
        proteins = settings.splits[split]
        store = Store(reader, proteins, settings.budget - hold, hold, settings.progress)
        fitted.tests[split] = {}
        for rows in vectors:
            these = {h: fitted.trained[h] for h in own if settings.rows(h) == rows}
            fitted.tests[split] |= decided(FeatureSource(store, targets, level, rows), these)
        passes[split] = store.passes
    settings.say(f"{kind}: test sets read in {time.perf_counter() - began:.0f} s")
    if isinstance(reader, ModelReader):
        fitted.passes = passes
    return fitted


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


def _majority(settings: Settings) -> FittedHeads:
    """The most frequent training class of each target, whatever the protein."""
    own = [head for head in settings.heads if "majority" in settings.controls(head)]
    fitted = FittedHeads(
        valid={head: {} for head in own},
        tests={split: {head: {} for head in own} for split in settings.tests},
    )
    level = settings.benchmark.level
    for target in settings.benchmark.targets:
        if target.kind != "classes":
            continue
        answer = controls.majority(settings.splits["train"], target.name)
        of = scores.labelled(settings.splits["valid"], level, target)
        right = np.array([[np.mean(of.truth == answer) if of else np.nan]])
        for head in own:
            fitted.valid[head] = {**fitted.valid[head], target.name: right}
        for split in settings.tests:
            proteins = settings.splits[split]
            residues = sum(len(p.sequence) for p in proteins)
            items = residues if level == "residue" else len(proteins)
            for head in own:
                constant = np.full((1, 1, items), answer, np.int16)
                fitted.tests[split][head][target.name] = constant
    return fitted
