"""The schema of labelled proteins: targets, proteins in splits, and views on which to score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

UNKNOWN = -1
"""The class of a missing label. A missing number is nan."""

Kind = Literal["classes", "number"]
Level = Literal["residue", "protein", "pair"]


@dataclass(frozen=True)
class Target:
    """What is predicted: classes (scored by accuracy) or a number (by Spearman's correlation).

    `classes` are names in the order of the labels' codes; `letters`, one for each class, write a
    protein's classes as a string.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...] = ()
    letters: str = ""


@dataclass(frozen=True)
class LabelledProtein:
    """A protein and its labels; `id` is unique within a split, `sequence` is normalised.

    Attributes:
        labels: target -> classes (int8 or int16, `UNKNOWN`) or numbers (float32, nan): [residues]
            at residue level, [] at protein level; at pair level the pairs [pairs, 2], i < j from 0.
        marks: name -> [residues] or [] bool, what a view counts.
        notes: other annotation, {"kingdom": "Metazoa"}.
    """

    id: str
    sequence: str
    labels: Mapping[str, np.ndarray]
    marks: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """A test set as it is scored: of a split, what `mark` selects ("" selects all labels)."""

    split: str
    title: str
    mark: str = ""
    note: str = ""


@dataclass(frozen=True)
class PaperRow:
    """A published number of the same protocol: accuracy in percent, or 100 x Spearman.

    `percent` is nan where `source` says why the number is not comparable.
    """

    model: str
    view: str
    target: str
    percent: float
    source: str


@dataclass(frozen=True)
class Benchmark:
    """A data set of labelled proteins.

    Attributes:
        name, title: for the command line, and for people.
        level: what carries a label: each residue, the protein, or pairs of residues.
        splits: "train", "valid" and the test splits; each is read when first called, then kept.
        views: what is reported, in order of printing.
        licence, source, notes: printed below every table.
    """

    name: str
    title: str
    level: Level
    targets: tuple[Target, ...]
    splits: Mapping[str, Callable[[], list[LabelledProtein]]]
    views: Mapping[str, View]
    licence: str
    source: str
    notes: tuple[str, ...]
    paper: tuple[PaperRow, ...] = ()


def known(target: Target, labels: np.ndarray) -> np.ndarray:
    """Bool, of the labels' shape: where a label is known."""
    return ~np.isnan(labels) if target.kind == "number" else labels != UNKNOWN


def subset(
    proteins: Sequence[LabelledProtein], count: int | None, seed: int
) -> list[LabelledProtein]:
    """`count` proteins drawn without replacement, in their old order; all if None or too many.

    The first n of a draw of m > n are not the draw of n: compare runs of one count only.
    """
    if count is None or count >= len(proteins):
        return list(proteins)
    chosen = np.random.default_rng(seed).choice(len(proteins), size=count, replace=False)
    return [proteins[i] for i in np.sort(chosen)]


def counts(benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """Split -> {"proteins", "residues", "labelled": {target: labels or pairs}}, of all splits."""

    def labels(protein: LabelledProtein, target: Target) -> int:
        values = protein.labels[target.name]
        return len(values) if benchmark.level == "pair" else int(known(target, values).sum())

    return {
        name: {
            "proteins": len(proteins := read()),
            "residues": sum(len(p.sequence) for p in proteins),
            "labelled": {t.name: sum(labels(p, t) for p in proteins) for t in benchmark.targets},
        }
        for name, read in benchmark.splits.items()
    }
