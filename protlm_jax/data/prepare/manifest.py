"""What is in a prepared folder, counted exactly: `manifest.json`.

    format      version of this layout
    dataset, release
    sources     [{name, bytes, sha256}], in the order of reading
    rules       what was kept and what held out (`SelectionRules.describe`)
    read, kept  records in the sources, and proteins in both splits
    nucleotides records that are DNA or RNA by their letters; absent where there are none
    dropped     {reason: {count, examples}}, with the names of the first few
    splits      {train, heldout}: proteins, residues, longest, lengths [[length, proteins], ...],
                residue_counts {letter: number}, tokens and records [{file, proteins, ...}]
    heldout     {file, bytes, blake2b}: the held-out proteins as FASTA, for `--heldout_from`

It contains no time, machine or path: the same input and rules give the same bytes. Its first line
"digest" is a checksum of the rest. Counts can be added up in any order, so that workers, restarts
and Beam agree.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rules import REASONS, SIDES
from protlm_jax.data.prepared import FORMAT
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.json_files import DIGEST, digest_of_json
from protlm_jax.vocabularies import RESIDUES

EXAMPLES = 5

Position = tuple[int, int]
"""The place of a record: number of its source, line of its header."""


@dataclass
class Tally:
    """Sums over the proteins of a split: proteins of each length, residues of each letter."""

    lengths: Counter[int] = field(default_factory=Counter)
    letters: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, sequences: Iterable[str]) -> Tally:
        """Counts normalised sequences."""
        some = list(sequences)
        codes = np.frombuffer("".join(some).encode("ascii"), np.uint8)
        counts = np.bincount(codes, minlength=256).tolist()
        letters = Counter({letter: counts[ord(letter)] for letter in RESIDUES})
        return cls(Counter(map(len, some)), letters)

    def add(self, other: Tally) -> None:
        """Adds the counts of other proteins to these."""
        self.lengths.update(other.lengths)
        self.letters.update(other.letters)

    def describe(self) -> dict[str, Any]:
        """The numbers of one split, for the manifest."""
        return {
            "proteins": self.lengths.total(),
            "residues": self.letters.total(),
            "longest": max(self.lengths, default=0),
            "lengths": [list(pair) for pair in sorted(self.lengths.items())],
            "residue_counts": {letter: self.letters[letter] for letter in RESIDUES},
        }

    @classmethod
    def from_json(cls, fields: Any) -> Tally:
        """The inverse of `describe`; raises ValueError, KeyError or TypeError for anything else."""
        return cls(Counter(dict(fields["lengths"])), Counter(fields["residue_counts"]))


@dataclass
class Dropped:
    """Records left out for one reason: their number, and positions and names of the first few."""

    count: int = 0
    examples: list[tuple[Position, str]] = field(default_factory=list)

    def add(self, other: Dropped) -> None:
        """Adds other records left out for this reason."""
        self.count += other.count
        self.examples = sorted(self.examples + other.examples)[:EXAMPLES]

    def note(self, position: Position, name: str) -> None:
        """Counts one more record."""
        self.add(Dropped(1, [(position, name)]))


@dataclass
class RecordCounts:
    """Records read (`nucleotides`: DNA or RNA by their letters), left out, kept on each side."""

    read: int = 0
    nucleotides: int = 0
    dropped: dict[str, Dropped] = field(default_factory=lambda: {r: Dropped() for r in REASONS})
    splits: dict[str, Tally] = field(default_factory=lambda: {side: Tally() for side in SIDES})

    def add(self, other: RecordCounts) -> None:
        """Adds the counts of other records."""
        self.read += other.read
        self.nucleotides += other.nucleotides
        for reason, dropped in other.dropped.items():
            self.dropped[reason].add(dropped)
        for side, tally in other.splits.items():
            self.splits[side].add(tally)

    def to_json(self) -> dict[str, Any]:
        """All counts, for the work folder."""
        return {
            "read": self.read,
            "nucleotides": self.nucleotides,
            "dropped": {r: [d.count, d.examples] for r, d in self.dropped.items()},
            "splits": {side: tally.describe() for side, tally in self.splits.items()},
        }

    @classmethod
    def from_json(cls, fields: Any) -> RecordCounts:
        """The inverse of `to_json`; raises ValueError, KeyError or TypeError for anything else."""
        counts = cls(int(fields["read"]), int(fields["nucleotides"]))
        for reason in REASONS:
            number, examples = fields["dropped"][reason]
            noted = [((int(source), int(line)), str(name)) for (source, line), name in examples]
            counts.dropped[reason] = Dropped(int(number), noted)
        counts.splits = {side: Tally.from_json(fields["splits"][side]) for side in SIDES}
        return counts


def total(counts: Iterable[RecordCounts]) -> RecordCounts:
    """The sum of counts."""
    added = RecordCounts()
    for one in counts:
        added.add(one)
    return added


def build(
    plan: PreparePlan,
    counts: RecordCounts,
    *,
    sources: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, Sequence[Mapping[str, Any]]],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    heldout: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of a finished folder; shards by side, in order. Raises ProtlmError where no
    protein is left to train on."""
    dropped = {reason: some for reason, some in counts.dropped.items() if some.count}
    kept = sum(tally.lengths.total() for tally in counts.splits.values())
    lost = counts.read - kept - sum(some.count for some in dropped.values())
    assert lost == 0, f"{lost} records are neither kept nor counted as left out"
    if not counts.splits["train"].lengths:
        left_out = ", ".join(f"{r} {d.count:,}" for r, d in dropped.items()) or "none left out"
        raise ProtlmError(
            f"of {counts.read:,} records no protein is left to train on ({left_out}, held out "
            f"{kept:,}); loosen the rules or give more proteins"
        )
    return {
        "format": FORMAT,
        "dataset": plan.dataset,
        "release": plan.release,
        "sources": list(sources),
        "rules": plan.rules.describe(),
        "read": counts.read,
        "kept": kept,
        **({"nucleotides": counts.nucleotides} if counts.nucleotides else {}),
        "dropped": {
            reason: {"count": some.count, "examples": [name for _, name in some.examples]}
            for reason, some in dropped.items()
        },
        "splits": {
            side: tally.describe()
            | {"tokens": list(tokens.get(side, ())), "records": list(records.get(side, ()))}
            for side, tally in counts.splits.items()
        },
        "heldout": dict(heldout),
    }


def to_text(manifest: Mapping[str, Any]) -> str:
    """The manifest as readable JSON: one line per entry, lists of pairs in one line.

    The digest is the first line, so that without it this is the text of earlier versions.
    """
    return _pretty({DIGEST: digest_of_json(manifest)} | dict(manifest), "") + "\n"


def _pretty(value: Any, indent: str) -> str:
    deeper = indent + " "
    if isinstance(value, Mapping) and any(isinstance(v, Mapping | list) for v in value.values()):
        lines = [f"{deeper}{json.dumps(k)}: {_pretty(v, deeper)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "[\n" + ",\n".join(deeper + _pretty(v, deeper) for v in value) + f"\n{indent}]"
    return json.dumps(value)
