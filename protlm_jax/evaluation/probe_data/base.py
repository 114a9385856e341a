"""What a probe data set is: labelled proteins in splits, and test sets as they are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

UNKNOWN = -1
"""Class of what has no label. A number without a value is nan."""

Kind = Literal["classes", "number"]
Level = Literal["residue", "protein", "pair"]


@dataclass(frozen=True)
class Target:
    """What is to be read from a protein or from each of its residues.

    Attributes:
        name: as it stands in tables, "q3".
        kind: "classes" (scored by accuracy) or "number" (scored by Spearman's correlation).
        classes: their names, spelled for people, in the order of the labels' numbers.
        letters: one for each class, where a protein's classes are written as a string.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...] = ()
    letters: str = ""


@dataclass(frozen=True)
class LabelledProtein:
    """A protein and what is known of it.

    Attributes:
        id: its name, unique within a split.
        sequence: normalised residues (rare ones as X).
        labels: target -> classes, int8 or int16, `UNKNOWN` where there is none; or numbers,
            float32, nan where there is none. [residues] at residue level, [] at protein level. At
            pair level the pairs themselves: [pairs, 2] integers counted from 0, i < j.
        marks: name -> [residues] or [] bool, what a view counts.
        notes: what else is known, {"kingdom": "Metazoa"}.
    """

    id: str
    sequence: str
    labels: Mapping[str, np.ndarray]
    marks: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """A test set as it is scored: the residues or proteins of a split where a mark is True.

    Attributes:
        split: whose proteins; views of one split share embeddings and predictions.
        title: for people.
        mark: of `LabelledProtein.marks`; "" counts every label.
        note: a sentence to print below the numbers.
    """

    split: str
    title: str
    mark: str = ""
    note: str = ""


@dataclass(frozen=True)
class PaperRow:
    """A published number of the same protocol, or why there is none.

    Attributes:
        model, view, target: whose number on what.
        percent: the number as published (accuracy in percent, or 100 x Spearman); nan if `source`
            says why it cannot stand beside ours.
        source: paper and table.
    """

    model: str
    view: str
    target: str
    percent: float
    source: str


@dataclass(frozen=True)
class Benchmark:
    """One probe data set.

    Attributes:
        name: as the command line takes it.
        title: for people.
        level: what carries a label: each residue, the protein, or pairs of residues.
        targets: read together by one head.
        splits: "train", "valid" and the test splits; each is read when first called, then kept.
        views: what is reported, in order of printing.
        licence: of the data.
        source: papers and data sets to cite.
        notes: sentences printed below every table.
        paper: published numbers.
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
    """Bool, of the labels' shape: where there is one."""
    return ~np.isnan(labels) if target.kind == "number" else labels != UNKNOWN


def scored(protein: LabelledProtein, target: Target, view: View) -> np.ndarray:
    """Bool, of the labels' shape: what a view counts of a protein."""
    there = known(target, protein.labels[target.name])
    return there & protein.marks[view.mark] if view.mark else there


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
    """Split -> {"proteins", "residues", "labelled": {target: labels}}; reads every split.

    At pair level a target's labels are its pairs.
    """
    return {
        name: {
            "proteins": len(proteins := read()),
            "residues": sum(len(p.sequence) for p in proteins),
            "labelled": {t.name: sum(_labels(benchmark, p, t) for p in proteins)
                         for t in benchmark.targets},
        }
        for name, read in benchmark.splits.items()
    }  # fmt: skip


def _labels(benchmark: Benchmark, protein: LabelledProtein, target: Target) -> int:
    labels = protein.labels[target.name]
    return len(labels) if benchmark.level == "pair" else int(known(target, labels).sum())
