"""What is probed, and what the heads on one input answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from protlm_jax.evaluation.embedding.spec import Dtype, Vectors
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein
from protlm_jax.evaluation.probes import controls, heads
from protlm_jax.evaluation.probes.readers import ModelReader, Reader
from protlm_jax.evaluation.probes.trained import Found, TrainedHeads


@dataclass(frozen=True)
class Settings:
    """What is probed, resolved and checked; see the arguments of `run`.

    Attributes:
        splits: the proteins used: "train", "valid" and the test splits.
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
        """What a row is to a head: a residue, or a protein by its mean."""
        by_residue = self.benchmark.level == "residue" or heads.kind(head).pools
        return "residues" if by_residue else "mean"

    def controls(self, head: str) -> tuple[str, ...]:
        """A constant answer ranks nothing: numbers have no majority."""
        named = controls.BY_RESIDUE if self.rows(head) == "residues" else controls.BY_PROTEIN
        classes = any(target.kind == "classes" for target in self.benchmark.targets)
        return tuple(name for name in named if classes or name != "majority")


@dataclass
class Answers:
    """What heads on one input, the model's layers or a control, answer for the test splits.

    Attributes:
        valid: head -> target -> [seeds, inputs] validation scores.
        tests: split -> head -> target -> [seeds, inputs, items], see `trained.decided`.
        trained: head -> the heads; empty for the majority.
        seconds: head -> spent on training.
        passes: split -> how often its proteins went through the model; empty without a model.
        reader: where features came from; None for the majority.
    """

    valid: dict[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    tests: dict[str, Found] = field(default_factory=dict)
    trained: dict[str, TrainedHeads] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=dict)
    reader: Reader | None = None

    @property
    def has_layers(self) -> bool:
        return isinstance(self.reader, ModelReader)

    def best(self, head: str) -> int:
        """Index of the layer with the best validation score, mean over targets and seeds."""
        return int(np.argmax(np.mean([v.mean(axis=0) for v in self.valid[head].values()], axis=0)))
