"""Which proteins train, validate and test: as their file says, or by a hash of the sequence.

The split of a file is used or refused; only `--split random` replaces it.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from protlm_jax.data.tables import shortened
from protlm_jax.errors import ProtlmError

RANDOM = "random"
_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "development"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_TEST_SET = re.compile(r"test_.+", re.IGNORECASE)
_NAMES = "train, valid, test, or test_ and a name for several test sets"
_SEED = 0
_VALID, _TEST = 0.1, 0.1  # of the proteins, where the file does not say
_SHOWN = 10


@dataclass(frozen=True)
class UserProtein:
    """A protein as its file has it.

    Attributes:
        line: where it begins in the file.
        split: as written, "" where the file says nothing.
        counted: "1" or "0" for each residue; "" counts all.
    """

    line: int
    id: str
    sequence: str
    split: str
    counted: str = ""


@dataclass(frozen=True)
class SplitRequest:
    """`--split`: the column (None: found by its name), or `random`, and what its words mean."""

    column: str | None = None
    random: bool = False
    words: Mapping[str, str] = field(default_factory=dict)


def parse_split(words: Sequence[str]) -> SplitRequest:
    """Reads COLUMN, `random`, and assignments as train=0,1,2.

    Raises:
        ProtlmError: there are several columns, or an assignment to something else than a split.
    """
    columns, meant = [], {}
    for word in words:
        part, equals, values = word.partition("=")
        if not equals or not (part in ("train", "valid", "test") or _TEST_SET.fullmatch(part)):
            columns.append(word)
            continue
        meant.update({value.strip().casefold(): part for value in values.split(",")})
    if len(columns) > 1 or (columns == [RANDOM] and meant):
        raise ProtlmError(
            f"--split {' '.join(words)}: give one column, or 'random', and what its words mean, as "
            "in --split Partition train=0,1,2 valid=3 test=4"
        )
    if columns == [RANDOM]:
        return SplitRequest(random=True)
    return SplitRequest(columns[0] if columns else None, words=meant)


def assign(
    path: Path,
    proteins: Sequence[UserProtein],
    request: SplitRequest = SplitRequest(),
    column: str = "split",
) -> tuple[list[UserProtein], list[str]]:
    """Gives every protein its split; returns the proteins and notes on how they were divided.

    Raises:
        ProtlmError: some proteins have no split, a word names no split, or a split is empty.
    """
    if request.random or not any(p.split for p in proteins):
        if request.words:
            raise ProtlmError(f"{path} has no column of splits: name it, or leave out --split")
        proteins = [replace(p, split=_by_hash(p.sequence)) for p in proteins]
        how = "The split of the file is not used" if request.random else "The file names no split"
        _require(path, proteins, ("train", "valid", "test"), f"name the splits ({_NAMES})")
        return proteins, [
            f"{how}: {1 - _VALID - _TEST:.0%} of the sequences train, {_VALID:.0%} validate and "
            f"{_TEST:.0%} test, by a hash of the sequence (SHA-256, seed {_SEED}). Relatives fall "
            "on both sides, which flatters every score: cluster the proteins, with MMseqs2 for "
            "instance, and give a split that keeps clusters together."
        ]
    notes = [
        "The file's split is used; whether test proteins have relatives in training is not checked."
    ]
    proteins = _translated(path, proteins, request, column)
    remedy = f"name it ({_NAMES}), or divide the proteins anew (--split {RANDOM})"
    _require(path, proteins, ("train", "test"), remedy)
    if not any(p.split == "valid" for p in proteins):
        proteins = [
            replace(p, split="valid")
            if p.split == "train" and fraction(p.sequence, "valid") < _VALID
            else p
            for p in proteins
        ]
        notes.append(
            f"The file names no validation proteins: {_VALID:.0%} of the training sequences are "
            f"taken, by a hash of the sequence (SHA-256, seed {_SEED})."
        )
        _require(path, proteins, ("train", "valid"), remedy)
    return proteins, notes


def fraction(sequence: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the sequence and the purpose alone."""
    digest = hashlib.sha256(f"{_SEED}:{purpose}:{sequence}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def duplicates(proteins: Sequence[UserProtein]) -> list[str]:
    """A warning that counts sequences on both sides of a split; [] where there are none."""
    warnings = []
    seen: set[str] = set()
    for part, name in (("train", "training"), ("valid", "validation"), ("test", "test")):
        members = [p for p in proteins if side(p.split) == part]
        if double := [p.id for p in members if p.sequence in seen]:
            before = "a training" if part == "valid" else "a training or validation"
            warnings.append(
                f"{len(double):,} of {len(members):,} {name} proteins have the sequence of "
                f"{before} protein ({shown(double)})"
            )
        seen |= {p.sequence for p in members}
    return [f"WARNING: {'; '.join(warnings)}."] if warnings else []


def side(split: str) -> str:
    """train, valid or test: all test sets are one side."""
    return "test" if split.startswith("test") else split


def shown(names: Sequence[str]) -> str:
    """The first three names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _translated(
    path: Path, proteins: Sequence[UserProtein], request: SplitRequest, column: str
) -> list[UserProtein]:
    """The proteins with the names of splits in place of the file's words."""
    known = {**_WORDS, **request.words}
    found, unknown = [], dict[str, int]()
    for p in proteins:
        if not p.split:
            raise ProtlmError(
                f"{path}, line {p.line}, column {column!r}: {p.id!r} has no split, others have; "
                f"write {_NAMES}, of all proteins or of none"
            )
        part = known.get(p.split.casefold())
        if part is None and _TEST_SET.fullmatch(p.split):
            part = "test_" + p.split[5:]
        if part is None:
            unknown.setdefault(p.split, p.line)
        found.append(replace(p, split=part or ""))
    if unknown:
        words = [f"{shortened(word)} (line {line})" for word, line in unknown.items()]
        more = f" and {len(words) - _SHOWN:,} more" if len(words) > _SHOWN else ""
        name = f"'{column}'" if " " in column else column
        raise ProtlmError(
            f"{path}, column {column!r}: {', '.join(words[:_SHOWN])}{more}: not names of splits; "
            f"write {_NAMES}, give their meaning (--split {name} train=A,B valid=C test=D), "
            f"divide the proteins anew (--split {RANDOM}), or learn the column (--targets {name})"
        )
    return found


def _by_hash(sequence: str) -> str:
    place = fraction(sequence, "split")
    return "test" if place < _TEST else "valid" if place < _TEST + _VALID else "train"


def _require(
    path: Path, proteins: Sequence[UserProtein], parts: Sequence[str], remedy: str
) -> None:
    there = Counter(side(p.split) for p in proteins)
    for part in parts:
        if not there[part]:
            raise ProtlmError(
                f"{path}: none of its {len(proteins):,} proteins is in split {part!r}: give more "
                f"proteins, {remedy}"
            )
