"""Which proteins train, validate and test: as a file says, or by a hash of their sequence.

A file's own division is used or refused, and never replaced unless `--split random` asks for that.
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
from protlm_jax.evaluation.probe_data.user_files import UserProtein

RANDOM = "random"
_WORDS = {
    "train": "train", "training": "train",
    "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "development": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
_TEST_SET = re.compile(r"test_.+", re.IGNORECASE)
_NAMES = "train, valid, test, or test_ and a name for several test sets"
_SEED = 0
_VALID, _TEST = 0.1, 0.1  # of the proteins, where the file does not say
_SHOWN = 10


@dataclass(frozen=True)
class SplitRequest:
    """What `--split` says.

    Attributes:
        column: that holds the split; None takes one by its name.
        random: the file's own split is not used.
        words: a word of the column -> train, valid, test, test_NAME.
    """

    column: str | None = None
    random: bool = False
    words: Mapping[str, str] = field(default_factory=dict)


def parse_split(words: Sequence[str]) -> SplitRequest:
    """Reads COLUMN, `random`, and assignments as train=0,1,2.

    Raises:
        ProtlmError: several columns, or an assignment to something else than a split.
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


def divided(
    path: Path,
    found: Sequence[UserProtein],
    asked: SplitRequest = SplitRequest(),
    column: str = "split",
) -> tuple[list[UserProtein], list[str]]:
    """Every entry with its split, and what to say about how that came about.

    Raises:
        ProtlmError: an entry has no split where others have, or words that name none; or a split
            has no proteins.
    """
    given = [e for e in found if e.split and not asked.random]
    if not given:
        if asked.words:
            raise ProtlmError(f"{path} has no column of splits: name it, or leave out --split")
        found = [replace(e, split=_drawn(e.sequence)) for e in found]
        how = "The split of the file is not used" if asked.random else "The file names no split"
        notes = [
            f"{how}: {1 - _VALID - _TEST:.0%} of the sequences train, {_VALID:.0%} validate and "
            f"{_TEST:.0%} test, by a hash of the sequence (SHA-256, seed {_SEED}). Relatives fall "
            "on both sides, which flatters every score: cluster the proteins, with MMseqs2 for "
            "instance, and give a split that keeps clusters together."
        ]
        _need(path, found, ("train", "valid", "test"), f"name the splits ({_NAMES})")
        return found, notes
    notes = ["Split as the file says; that no test protein has relatives in training is its care."]
    found = _translated(path, found, asked, column)
    remedy = f"name it ({_NAMES}), or divide the proteins anew (--split {RANDOM})"
    _need(path, found, ("train", "test"), remedy)
    if not any(e.split == "valid" for e in found):
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
        _need(path, found, ("train", "valid"), remedy)
    return found, notes


def fraction(sequence: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the sequence alone; equal sequences share it."""
    digest = hashlib.sha256(f"{_SEED}:{purpose}:{sequence}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def shared(found: Sequence[UserProtein]) -> list[str]:
    """A warning about sequences that stand on both sides of a split."""
    warnings = []
    seen: set[str] = set()
    for of, name in (("train", "training"), ("valid", "validation"), ("test", "test")):
        of_part = [e for e in found if e.split == of or (of == "test" and e.split[:5] == "test_")]
        double = [e.id for e in of_part if e.sequence in seen]
        if double:
            before = "a training" if of == "valid" else "a training or validation"
            warnings.append(
                f"{len(double):,} of {len(of_part):,} {name} proteins have the sequence of "
                f"{before} protein ({shown(double)})"
            )
        seen |= {e.sequence for e in of_part}
    return [f"WARNING: {'; '.join(warnings)}."] if warnings else []


def shown(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _translated(
    path: Path, found: Sequence[UserProtein], asked: SplitRequest, column: str
) -> list[UserProtein]:
    known = {**_WORDS, **asked.words}
    made, unknown = [], dict[str, int]()
    for e in found:
        word = e.split
        if not word:
            raise ProtlmError(
                f"{path}, line {e.line}, column {column!r}: {e.id!r} has no split, others have; "
                f"write {_NAMES}, of all proteins or of none"
            )
        if (part := known.get(word.casefold())) is None and _TEST_SET.fullmatch(word):
            part = "test_" + word[5:]
        if part is None:
            unknown.setdefault(word, e.line)
        made.append(replace(e, split=part or ""))
    if unknown:
        words = [f"{shortened(word)} (line {line})" for word, line in unknown.items()]
        more = f" and {len(words) - _SHOWN:,} more" if len(words) > _SHOWN else ""
        name = f"'{column}'" if " " in column else column
        raise ProtlmError(
            f"{path}, column {column!r}: {', '.join(words[:_SHOWN])}{more}: no names of a split; "
            f"write {_NAMES}, or say what they mean (--split {name} train=A,B valid=C test=D), or "
            f"divide the proteins anew (--split {RANDOM}), or learn the column (--targets {name})"
        )
    return made


def _drawn(sequence: str) -> str:
    place = fraction(sequence, "split")
    return "test" if place < _TEST else "valid" if place < _TEST + _VALID else "train"


def _need(path: Path, found: Sequence[UserProtein], parts: Sequence[str], remedy: str) -> None:
    splits = Counter("test" if e.split.startswith("test") else e.split for e in found)
    for part in parts:
        if not splits[part]:
            raise ProtlmError(
                f"{path}: none of its {len(found):,} proteins is in split {part!r}: give more "
                f"proteins, {remedy}"
            )
