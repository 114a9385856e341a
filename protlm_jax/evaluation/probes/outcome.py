"""What becomes of one input, the model's layers or a control: trained heads and their answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from protlm_jax.evaluation.embedding import memory
from protlm_jax.evaluation.embedding.spec import Dtype, Vectors
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein
from protlm_jax.evaluation.probes import controls, heads, scores
from protlm_jax.evaluation.probes.features import Source, Store, shares
from protlm_jax.evaluation.probes.predictions import Found, decided
from protlm_jax.evaluation.probes.readers import ModelReader, Reader, TableReader, model_reader
from protlm_jax.evaluation.probes.trained import TrainedHeads
from protlm_jax.evaluation.probes.training import train
from protlm_jax.models.loaded import LoadedModel

Splits = Mapping[str, Sequence[LabelledProtein]]


@dataclass(frozen=True)
class Plan:
    """What is probed, resolved and checked.

    Attributes:
        benchmark: the data set.
        splits: the proteins used: "train", "valid" and the test splits.
        views: of the benchmark, those reported.
        heads: names of heads.
        layers: depths of the model.
        seeds: of the heads.
        window: residues that go through the model at once; None: what it takes.
        compute: dtype in which the model computes.
        budget: bytes of features that may be in memory.
        seed: of all draws.
        progress: draw bars on a terminal.
        say: takes lines of text for people.
    """

    benchmark: Benchmark
    splits: Splits
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
        """What a row is to a head: a residue, or a protein by its mean."""
        by_residue = self.benchmark.level == "residue" or heads.kind(head).pools
        return "residues" if by_residue else "mean"

    def controls(self, head: str) -> tuple[str, ...]:
        """What a head is held against. A constant answer ranks nothing: numbers have no
        majority."""
        named = controls.BY_RESIDUE if self.rows(head) == "residues" else controls.BY_PROTEIN
        classes = any(target.kind == "classes" for target in self.benchmark.targets)
        return tuple(name for name in named if classes or name != "majority")


@dataclass
class Outcome:
    """One input.

    Attributes:
        layers: depths; (None,) where there are none.
        valid: head -> target -> [seeds, inputs] validation scores.
        answers: split -> head -> target -> [seeds, inputs, items], see `predictions.decided`.
        trained: head -> the heads; empty for the majority.
        seconds: head -> spent on training.
        passes: split -> how often its proteins went through the model; empty without a model.
        reader: where features came from; None for the majority.
    """

    layers: tuple[int | None, ...]
    valid: dict[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    answers: dict[str, Found] = field(default_factory=dict)
    trained: dict[str, TrainedHeads] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=dict)
    reader: Reader | None = None

    def best(self, head: str) -> int:
        """Index of the layer with the best validation score, mean over targets and seeds."""
        return int(np.argmax(np.mean([v.mean(axis=0) for v in self.valid[head].values()], axis=0)))


def of_features(kind: str, loaded: LoadedModel, plan: Plan) -> Outcome:
    """Trains the heads that read this input, and lets them answer for the test splits."""
    own = [h for h in plan.heads if kind == "model" or kind in plan.controls(h)]
    vectors = tuple(dict.fromkeys(plan.rows(head) for head in own))
    reader = _reader(kind, loaded, plan, vectors)
    layers = plan.layers if isinstance(reader, ModelReader) else (None,)
    outcome = Outcome(layers, reader=reader)
    training, choosing = _learning_stores(kind, reader, plan)
    targets = plan.benchmark.targets
    for head in own:
        began = time.perf_counter()
        rows, level = plan.rows(head), plan.benchmark.level
        outcome.trained[head] = train(
            head,
            targets,
            Source(training, targets, level, rows),
            Source(choosing, targets, level, rows),
            seeds=plan.seeds,
            progress=plan.progress,
        )
        outcome.valid[head] = outcome.trained[head].valid
        outcome.seconds[head] = time.perf_counter() - began
    outcome.passes = {"train": training.passes, "valid": choosing.passes}
    del training, choosing  # their features make room for those of the tests
    for split in plan.tests:
        store = Store(
            reader, plan.splits[split], plan.budget - plan.budget // 4, plan.budget // 4,
            plan.progress,
        )  # fmt: skip
        outcome.answers[split] = {}
        for way in vectors:
            source = Source(store, targets, plan.benchmark.level, way)
            these = {h: outcome.trained[h] for h in own if plan.rows(h) == way}
            outcome.answers[split] |= decided(source, these)
        outcome.passes[split] = store.passes
    if not isinstance(reader, ModelReader):
        outcome.passes = {}
    return outcome


def of_majority(plan: Plan) -> Outcome:
    """The most frequent training class of each target, whatever the protein."""
    outcome = Outcome((None,))
    level = plan.benchmark.level
    own = [head for head in plan.heads if "majority" in plan.controls(head)]
    for target in plan.benchmark.targets:
        if target.kind != "classes":
            continue
        answer = controls.majority(plan.splits["train"], target.name)
        for split in plan.tests:
            items = _items(plan.splits[split], level)
            constant = np.full((1, 1, items), answer, np.int16)
            for head in own:
                outcome.answers.setdefault(split, {}).setdefault(head, {})[target.name] = constant
        of = scores.asked(plan.splits["valid"], level, target)
        right = np.array([[np.mean(of.truth == answer) if of else np.nan]])
        for head in own:
            outcome.valid[head] = {**outcome.valid.get(head, {}), target.name: right}
    return outcome


def of_control(kind: str, loaded: LoadedModel, plan: Plan) -> Outcome:
    """The outcome of a control by its name."""
    if kind == "majority":
        return of_majority(plan)
    if kind == "random":
        # The control's seed is not the seed of any training run that a user is likely to make.
        loaded = controls.random_control(loaded, plan.seed + 7919)
    return of_features(kind, loaded, plan)


def _reader(kind: str, loaded: LoadedModel, plan: Plan, vectors: tuple[Vectors, ...]) -> Reader:
    if kind not in ("model", "random"):
        return TableReader(kind, vectors)
    residues = [len(p.sequence) for proteins in plan.splits.values() for p in proteins]
    return model_reader(loaded, plan.layers, vectors, residues, plan.window, plan.compute)


def _learning_stores(kind: str, reader: Reader, plan: Plan) -> tuple[Store, Store]:
    """Training and validation features within the budget."""
    stores = [Store(reader, plan.splits[s], 0, 0, plan.progress) for s in ("train", "valid")]
    needed = [store.total_bytes for store in stores]
    *kept, hold = shares(needed[0], needed[1], plan.budget)
    for store, keep in zip(stores, kept, strict=True):
        store.keep, store.hold = keep, hold
    if kind == "model":
        fits = "and stay in memory"
        if sum(kept) < sum(needed):
            fits = (
                f"of which {memory.size(sum(kept))} stay in memory; the model runs again in each "
                "epoch for the rest"
            )
        plan.say(
            f"features of {reader.num_inputs} layer(s) for training and validation take "
            f"{memory.size(sum(needed))} (budget {memory.size(plan.budget)}), {fits}"
        )
    return stores[0], stores[1]


def _items(proteins: Sequence[LabelledProtein], level: str) -> int:
    return sum(len(p.sequence) for p in proteins) if level == "residue" else len(proteins)
