"""The user's own proteins as a benchmark; `user_files` says how their files look."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import (
    UNKNOWN,
    Benchmark,
    Kind,
    LabelledProtein,
    Level,
    Target,
    View,
)
from protlm_jax.evaluation.probe_data.user_files import (
    Entry,
    read_annotated,
    read_pair,
    read_table,
)

UNKNOWN_RESIDUE = "?"
TABLES = (".csv", ".tsv")
_SEED = 0
_VALID, _TEST = 0.1, 0.1  # of the proteins, where the file does not say
_FEW = 10  # whole numbers of no more different values are classes
_SPLITS = "train, valid, test, or test_ and a name for several test sets"


def read(path: Path, labels: Path | None = None, mask: Path | None = None) -> Benchmark:
    """A benchmark of the user's files, read now.

    Args:
        path: a .csv or .tsv table (possibly compressed), or a FASTA file.
        labels: with FASTA, a letter for each residue; None: the headers say TARGET=...
        mask: with `labels`, 1 for each residue that counts.

    Raises:
        ProtlmError: what is wrong, with file, line and column, and what to do about it.
    """
    level: Level = "protein"
    if any(suffix in TABLES for suffix in path.suffixes):
        if labels or mask:
            raise ProtlmError(f"{path} is a table; labels of residues come with a FASTA file")
        columns, found = read_table(path)
    elif labels is None:
        columns, found = ["target"], read_annotated(path)
    else:
        columns, found, level = ["label"], read_pair(path, labels, mask), "residue"
    found, notes = _divided(labels or path, found)
    proteins = [LabelledProtein(e.id, e.sequence, {}) for e in found]
    targets: list[Target] = []
    for column in columns:
        if level == "residue":
            target, values = _residue_classes(column, found)
        else:
            target, values, note = _column(path, column, found)
            notes += [note] if note else []
        if target.name in (t.name for t in targets):
            raise ProtlmError(f"{path}: two columns hold {target.name!r}; rename one of them")
        targets.append(target)
        proteins = [
            replace(p, labels={**p.labels, target.name: v})
            for p, v in zip(proteins, values, strict=True)
        ]
        notes += _warnings(target, found, values)
    by_split: dict[str, list[LabelledProtein]] = {}
    for entry, protein in zip(found, proteins, strict=True):
        by_split.setdefault(entry.split, []).append(protein)
    tests = sorted(name for name in by_split if name not in ("train", "valid"))
    return Benchmark(
        name=path.name.partition(".")[0],
        title=path.name,
        level=level,
        targets=tuple(targets),
        splits={name: _Given(by_split[name]) for name in ("train", "valid", *tests)},
        views={name: View(name, name) for name in tests},
        licence="your own",
        source=path.name,
        notes=tuple(notes),
    )


class _Given:
    """A split that is there already."""

    def __init__(self, proteins: list[LabelledProtein]) -> None:
        self._proteins = proteins

    def __call__(self) -> list[LabelledProtein]:
        return self._proteins


def fraction(sequence: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the sequence alone; equal sequences share it."""
    digest = hashlib.sha256(f"{_SEED}:{purpose}:{sequence}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _divided(path: Path, found: list[Entry]) -> tuple[list[Entry], list[str]]:
    """Every entry with its split, and what to say about how that came about."""
    said = [e for e in found if e.split]
    if said and len(said) < len(found):
        bare = next(e for e in found if not e.split)
        raise ProtlmError(
            f"{path}, line {bare.line}: {bare.id!r} has no split, others have; say {_SPLITS}, "
            f"of all proteins or of none"
        )
    for e in said:
        if e.split not in ("train", "valid", "test") and not e.split.startswith("test_"):
            raise ProtlmError(
                f"{path}, line {e.line}, column 'split': {e.split!r} is no split; write {_SPLITS}"
            )
    notes = ["Split as the file says; that no test protein has relatives in training is its care."]
    if not said:
        found = [replace(e, split=_drawn(e.sequence)) for e in found]
        notes = [
            f"The file names no splits: {1 - _VALID - _TEST:.0%} of the sequences train, "
            f"{_VALID:.0%} validate and {_TEST:.0%} test, by a hash of the sequence (SHA-256, seed "
            f"{_SEED}). Relatives fall on both sides, which flatters every score: cluster the "
            "proteins, with MMseqs2 for instance, and give a split that keeps clusters together."
        ]
    elif not any(e.split == "valid" for e in found):
        found = [
            replace(e, split="valid")
            if e.split == "train" and fraction(e.sequence, "valid") < _VALID
            else e
            for e in found
        ]
        notes.append(
            f"The file names no validation proteins: {_VALID:.0%} of the training sequences are "
            f"taken, by a hash of the sequence (SHA-256, seed {_SEED})."
        )
    _need_all(path, found)
    training = {e.sequence for e in found if e.split in ("train", "valid")}
    double = sum(e.sequence in training for e in found if e.split.startswith("test"))
    if double:
        notes.append(f"{double:,} test sequences stand in training or validation exactly.")
    return found, notes


def _drawn(sequence: str) -> str:
    place = fraction(sequence, "split")
    return "test" if place < _TEST else "valid" if place < _TEST + _VALID else "train"


def _need_all(path: Path, found: list[Entry]) -> None:
    splits = Counter("test" if e.split.startswith("test") else e.split for e in found)
    for need in ("train", "valid", "test"):
        if not splits[need]:
            raise ProtlmError(
                f"{path}: none of its {len(found):,} proteins is in split {need!r}; name the "
                f"splits of all proteins ({_SPLITS}), or give more proteins"
            )


def _residue_classes(name: str, found: list[Entry]) -> tuple[Target, list[np.ndarray]]:
    letters = "".join(sorted(set().union(*(e.labels[name] for e in found)) - {UNKNOWN_RESIDUE}))
    codes = {letter: code for code, letter in enumerate(letters)} | {UNKNOWN_RESIDUE: UNKNOWN}
    values = []
    for e in found:
        classes = np.array([codes[letter] for letter in e.labels[name]], np.int16)
        counted = np.array([c == "1" for c in e.counted]) if e.counted else True
        values.append(np.where(counted, classes, np.int16(UNKNOWN)))
    return Target(name, "classes", tuple(letters), letters=letters), values


def _column(
    path: Path, column: str, found: list[Entry]
) -> tuple[Target, list[np.ndarray], str | None]:
    """What a column of labels means, its values [] for each entry, and what to say about that."""
    name, colon, kind = column.rpartition(":")
    note = None
    if not colon or kind not in ("classes", "number"):
        name = column
        kind, note = _recognised(column, [e.labels[column] for e in found])
    if not any(e.labels[column] for e in found):
        raise ProtlmError(f"{path}, column {column!r}: no protein has a label; remove the column")
    if kind == "number":
        numbers = [_number(path, column, e) for e in found]
        return Target(name, "number"), numbers, note
    classes = sorted({e.labels[column] for e in found} - {""}, key=_in_order)
    labelled = sum(bool(e.labels[column]) for e in found)
    if len(classes) < 2 or len(classes) > max(_FEW, labelled // 2):
        raise ProtlmError(
            f"{path}, column {column!r}: {len(classes):,} classes in {labelled:,} labels are "
            f"nothing to learn from; remove the column if it holds no labels"
        )
    codes = {c: code for code, c in enumerate(classes)} | {"": UNKNOWN}
    values = [np.array(codes[e.labels[column]], np.int16) for e in found]
    return Target(name, cast(Kind, kind), tuple(classes)), values, note


def _recognised(column: str, cells: list[str]) -> tuple[str, str | None]:
    """ "classes" or "number", and what to say where it could be the other."""
    values = {cell for cell in cells if cell}
    if not all(_is_number(v) for v in values):
        return "classes", None
    if len(values) <= _FEW and all(float(v).is_integer() for v in values):
        return "classes", (
            f"{column}: {len(values)} different whole numbers, taken for classes; head the column "
            f"'{column}:number' if they are measured."
        )
    return "number", None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _in_order(name: str) -> tuple[float, str]:
    return (float(name), name) if _is_number(name) else (math.inf, name)


def _number(path: Path, column: str, entry: Entry) -> np.ndarray:
    text = entry.labels[column]
    if text and not _is_number(text):
        raise ProtlmError(
            f"{path}, line {entry.line}, column {column!r}: {text!r} is no finite number; leave "
            f"the cell empty where the value is unknown"
        )
    return np.array(float(text) if text else math.nan, np.float32)


def _warnings(target: Target, found: list[Entry], values: Iterable[np.ndarray]) -> list[str]:
    """Labels that are missing, and classes that training does not know."""
    notes = []
    array = [v.ravel() for v in values]
    bare = sum(bool(np.isnan(v).all() if v.dtype.kind == "f" else (v < 0).all()) for v in array)
    if bare:
        notes.append(f"{target.name}: {bare:,} proteins have no label, and take no part.")
    if target.kind == "classes":
        seen = {int(c) for e, v in zip(found, array, strict=True) if e.split == "train" for c in v}
        unseen = [c for code, c in enumerate(target.classes) if code not in seen]
        if unseen:
            notes.append(f"{target.name}: never in training: {', '.join(unseen[:10])}.")
    return notes
