"""The user's own proteins as a benchmark; `user_files` says how their files look."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from protlm_jax.data.sources import explained, open_source
from protlm_jax.data.tables import read_table
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data import parts
from protlm_jax.evaluation.probe_data.base import (
    UNKNOWN,
    Benchmark,
    LabelledProtein,
    Level,
    Target,
    View,
    known,
)
from protlm_jax.evaluation.probe_data.columns import label_column, roles
from protlm_jax.evaluation.probe_data.labels import Column, Labels, labels_of
from protlm_jax.evaluation.probe_data.user_files import (
    UserProtein,
    from_table,
    read_annotated,
    read_pair,
)

UNKNOWN_RESIDUE = "?"


def read(
    path: Path,
    labels: Path | None = None,
    mask: Path | None = None,
    *,
    targets: Sequence[str] = (),
    multilabel: Sequence[str] = (),
    split: Sequence[str] = (),
) -> Benchmark:
    """A benchmark of the user's files, read now.

    Args:
        path: a table or a FASTA file, possibly compressed; told apart by the first character.
        labels: with FASTA, a letter for each residue; None: the headers say TARGET=...
        mask: with `labels`, 1 for each residue that counts.
        targets: columns of labels, as "stability" or "stability:number"; () takes those that
            neither identify, nor divide, nor describe the proteins.
        multilabel: columns whose cells hold several labels, separated by "|" or ";".
        split: the column that divides the proteins, "random", or what its words mean, as
            "train=0,1,2"; see `parts.parse_split`.

    Raises:
        ProtlmError: what is wrong, with file, line and column, and what to do about it.
    """
    asked = parts.parse_split(split)
    notes: list[str] = []
    columns: list[Column] = []
    level: Level = "protein"
    column = asked.column or "SET"
    if not (labels or _is_fasta(path)):
        columns, found, column, notes = _of_table(path, targets, multilabel, asked)
    elif asked.column or (labels and (targets or multilabel)):
        raise ProtlmError(f"{path} is a FASTA file: it has no columns to name")
    elif labels is None:
        found = read_annotated(path)
        columns = [_annotated(path, found, targets, multilabel)]
    else:
        found, level = read_pair(path, labels, mask), "residue"
    if mask and not labels:
        raise ProtlmError("--mask belongs to --labels: give both, or none")
    found, more = parts.divided(labels or path, found, asked, column)
    notes += more + parts.shared(found)
    made = [_residue_classes(found)] if level == "residue" else []
    for one in columns:
        of_column, more = labels_of(one)
        made += of_column
        notes += more
    names = [of.target.name for of in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ProtlmError(f"{path}: two columns hold {twice[0]!r}; rename one of them")
    for of in made:
        notes += _checked(path, of, found)
    return _benchmark(path, level, found, made, notes)


def _of_table(
    path: Path, targets: Sequence[str], multilabel: Sequence[str], asked: parts.SplitRequest
) -> tuple[list[Column], list[UserProtein], str, list[str]]:
    """Columns of labels, proteins, the name of the split's column, and what to say."""
    table = read_table(path)
    several = [label_column(table.columns, name, str(path)).column for name in multilabel]
    if targets:
        targets = [*targets, *(name for name in multilabel if name not in targets)]
    of = roles(table, targets or multilabel, asked.column, not asked.random)
    columns = [
        Column(
            label.name,
            label.kind,
            table.column(label.column),
            [table.place(row, label.column) for row in range(len(table.cells))],
            str(path),
            table.decimal(label.column),
            label.column in several,
        )
        for label in of.labels
    ]
    return columns, from_table(table, of), of.split or "validation", list(of.notes)


def _annotated(
    path: Path, found: list[UserProtein], targets: Sequence[str], multilabel: Sequence[str]
) -> Column:
    """The labels that headers of a FASTA file give."""
    name = next(iter((*multilabel, *targets)), "target")
    label = label_column(["target"], name, str(path))
    return Column(
        "target",
        label.kind,
        [e.label for e in found],
        [f"{path}, line {e.line}, TARGET" for e in found],
        str(path),
        several=bool(multilabel),
    )


def _is_fasta(path: Path) -> bool:
    with explained(str(path), lambda: 0), open_source(str(path)) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b">")


def _benchmark(
    path: Path, level: Level, found: list[UserProtein], made: list[Labels], notes: list[str]
) -> Benchmark:
    by_split: dict[str, list[LabelledProtein]] = {}
    for i, e in enumerate(found):
        values = {of.target.name: of.values[i] for of in made}
        by_split.setdefault(e.split, []).append(LabelledProtein(e.id, e.sequence, values))
    tests = sorted(name for name in by_split if name not in ("train", "valid"))
    return Benchmark(
        name=path.name.partition(".")[0],
        title=path.name,
        level=level,
        targets=tuple(of.target for of in made),
        splits={name: partial(list, by_split[name]) for name in ("train", "valid", *tests)},
        views={name: View(name, name) for name in tests},
        licence="your own",
        source=path.name,
        notes=tuple(notes),
    )


def _residue_classes(found: list[UserProtein]) -> Labels:
    letters = "".join(sorted(set().union(*(e.label for e in found)) - {UNKNOWN_RESIDUE}))
    codes = {letter: code for code, letter in enumerate(letters)} | {UNKNOWN_RESIDUE: UNKNOWN}
    values = []
    for e in found:
        classes = np.array([codes[letter] for letter in e.label], np.int16)
        counted = np.array([c == "1" for c in e.counted]) if e.counted else True
        values.append(np.where(counted, classes, np.int16(UNKNOWN)))
    return Labels(Target("label", "classes", tuple(letters), letters=letters), values)


def _checked(path: Path, of: Labels, found: list[UserProtein]) -> list[str]:
    """What is odd about a target's labels in the splits."""
    target, there = of.target, [known(of.target, value) for value in of.values]
    where = f"{path}, {target.name!r}"
    by_part: dict[str, list[np.ndarray]] = {"train": [], "valid": [], "test": []}
    for e, value, is_known in zip(found, of.values, there, strict=True):
        by_part["test" if e.split.startswith("test") else e.split].append(value[is_known])
    labels = {part: np.unique(np.concatenate(values)) for part, values in by_part.items()}
    for part, different in labels.items():
        if not different.size:
            raise ProtlmError(
                f"{where}: no protein in split {part!r} has a label; name another column in "
                "--targets, or divide the proteins anew (--split random)"
            )
    notes = _conflicts(of, found, there) if of.values[0].ndim == 0 else []
    if labels["train"].size < 2:
        notes.append(
            f"WARNING: all labels of {target.name!r} in training are the same: a head has nothing "
            "to learn."
        )
    if target.kind == "classes":
        unseen = sorted(set(range(len(target.classes))) - set(labels["train"].tolist()))
        if unseen:
            names = [target.classes[code] for code in unseen[:10]]
            notes.append(f"{target.name}: never in training: {', '.join(names)}.")
    return notes


def _conflicts(of: Labels, found: list[UserProtein], there: list[np.ndarray]) -> list[str]:
    """A warning about sequences that stand in training with different labels."""
    labels: dict[str, set[float]] = {}
    first: dict[str, str] = {}
    for e, value, is_known in zip(found, of.values, there, strict=True):
        if e.split == "train" and is_known:
            labels.setdefault(e.sequence, set()).add(float(value))
            first.setdefault(e.sequence, e.id)
    torn = [first[sequence] for sequence, different in labels.items() if len(different) > 1]
    if not torn:
        return []
    return [
        f"WARNING: {len(torn):,} sequences stand in training several times with different labels "
        f"in {of.target.name!r} ({parts.shown(torn)})."
    ]
