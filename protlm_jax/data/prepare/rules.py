"""Which proteins of a release are kept, and on which side of the split each stands.

A rule looks at one protein (its sequence, its UniRef50 cluster), never at its neighbours or at the
order of the input, so that one machine and a Beam cluster judge alike.

Held out is what a hash of the sequence says (`splits.is_heldout`); for UniRef50 that is the
sequence of the cluster's representative. Or, with `heldout_from`, what an earlier prepared folder
held out:

- a protein with the same sequence as a frozen one is held out here too;
- so is a member of the UniRef50 cluster of a frozen one, where both are of one release (names of
  clusters change between releases, so across releases they decide nothing);
- any other protein of which no cluster of that release is known is compared with the frozen ones,
  and left out of both sides where it resembles one ("similar_to_heldout").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any, Literal

from protlm_jax.data.entries import ReleaseEntry
from protlm_jax.data.fasta import BadRecord, read_every_record
from protlm_jax.data.prepare.similarity import Similar
from protlm_jax.data.prepared import Prepared
from protlm_jax.data.splits import is_heldout
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import ResiduePolicy

Side = Literal["train", "heldout"]
SIDES: tuple[Side, Side] = ("train", "heldout")

BAD_RECORD = "bad_record"
DUPLICATE = "duplicate"
SIMILAR = "similar_to_heldout"
REASONS = (BAD_RECORD, "too_short", "too_long", DUPLICATE, SIMILAR)
"""Why a record is not in the prepared data."""

HASH_RULE = (
    "held out: first 8 bytes of BLAKE2b(sequence), big-endian, / 2^64 < percent / 100; no seed"
)
FROZEN_RULE = (
    "held out: the sequence, or its UniRef50 cluster in the same release, is held out in "
    "`heldout_from`; left out: similar to a protein held out there"
)
ORDER_RULE = "BLAKE2b(sequence, 16 bytes, person 'order')"
KEY = 16
"""Bytes of an `order_key`."""


def order_key(sequence: str) -> bytes:
    """16 bytes that place a protein: proteins are stored sorted by them, which shuffles them once.

    Equal sequences have equal keys, so duplicates meet. It differs from the hash of the split, by
    which held-out proteins would sort first.
    """
    return blake2b(sequence.encode("ascii"), digest_size=KEY, person=b"order").digest()


def bucket_of(key: bytes, buckets: int) -> int:
    """Number of the bucket, in [0, buckets), of a protein; buckets are ranges of keys."""
    return int.from_bytes(key[:8], "big") * buckets >> 64


@dataclass(frozen=True)
class SelectionRules:
    """What is kept, and what is held out.

    Attributes:
        min_length, max_length: residues; None is no upper limit. Longer ones are left out and
            counted, not cut: cutting is the business of whoever fills rows.
        rare_residues: "X" maps U, Z, O and B to X as ProtTrans did; "keep" keeps them.
        bad_records: "error" stops at a record that is no protein; "drop" counts it and goes on.
        deduplicate: keep the first, in the order of the input, of equal sequences.
        heldout_percent: share held out by the hash; without meaning when `heldout_from` is given.
        heldout_from: a prepared folder whose held-out proteins are held out here.
        release: release of the data to be judged, to know whether cluster names can be compared.
    """

    min_length: int = 1
    max_length: int | None = None
    rare_residues: Literal["X", "keep"] = "X"
    bad_records: Literal["error", "drop"] = "error"
    deduplicate: bool = True
    heldout_percent: float = 2.0
    heldout_from: str | None = None
    release: str = ""

    def __post_init__(self) -> None:
        if self.min_length < 1:
            raise ProtlmError(f"min_length is {self.min_length}; a protein has at least 1 residue")
        if self.max_length is not None and self.max_length < self.min_length:
            raise ProtlmError(
                f"max_length is {self.max_length}, below min_length ({self.min_length}); nothing "
                "would be kept"
            )
        if not 0.0 <= self.heldout_percent < 100.0:
            raise ProtlmError(
                f"heldout_percent is {self.heldout_percent:g}; it must be in [0, 100)"
            )

    @property
    def policy(self) -> ResiduePolicy:
        """How sequences are normalised before they are judged."""
        return ResiduePolicy(rare=self.rare_residues)

    def reject(self, entry: ReleaseEntry) -> str | None:
        """Why a protein is left out, by itself; None where it is kept."""
        length = len(entry.sequence)
        if length < self.min_length:
            return "too_short"
        if self.max_length is not None and length > self.max_length:
            return "too_long"
        return None

    def side(self, entry: ReleaseEntry) -> Side:
        """The side of the split of a protein that is kept.

        Raises:
            ProtlmError: the folder of `heldout_from` cannot be read.
        """
        if self.heldout_from is None:
            held = is_heldout(entry.sequence, self.heldout_percent)
        else:
            frozen = _frozen(self.heldout_from, self.policy)
            held = frozen.holds(entry.sequence) or (
                self._same_clusters(frozen) and entry.uniref50 in frozen.clusters
            )
        return "heldout" if held else "train"

    def verdicts(self, entries: Sequence[ReleaseEntry]) -> list[str]:
        """For each protein its side, or the reason why it is left out (duplicates apart).

        Looking for similar ones is quicker in batches; the answers do not depend on the batch.

        Raises:
            ProtlmError: the folder of `heldout_from` cannot be read.
        """
        answers = [self.reject(entry) or self.side(entry) for entry in entries]
        if self.heldout_from is None:
            return answers
        frozen = _frozen(self.heldout_from, self.policy)
        compare = [
            i
            for i, (entry, answer) in enumerate(zip(entries, answers, strict=True))
            if answer == "train" and not (entry.uniref50 and self._same_clusters(frozen))
        ]
        similar = frozen.similar.find([entries[i] for i in compare]) if compare else []
        for i, found in zip(compare, similar, strict=True):
            if found:
                answers[i] = SIMILAR
        return answers

    def describe(self) -> dict[str, Any]:
        """The rules as the manifest keeps them: no paths, only what decides.

        Raises:
            ProtlmError: the folder of `heldout_from` cannot be read.
        """
        fields: dict[str, Any] = {
            "min_length": self.min_length,
            "max_length": self.max_length,
            "rare_residues": self.rare_residues,
            "bad_records": self.bad_records,
            "deduplicate": self.deduplicate,
            "order": ORDER_RULE,
        }
        if self.heldout_from is None:
            return fields | {"split": {"rule": HASH_RULE, "percent": self.heldout_percent}}
        frozen = _frozen(self.heldout_from, self.policy)
        return fields | {"split": {"rule": FROZEN_RULE, "heldout_from": frozen.describe()}}

    def _same_clusters(self, frozen: Frozen) -> bool:
        """Whether UniRef50 clusters here are those of the frozen proteins."""
        return bool(self.release) and self.release == frozen.release


@dataclass(frozen=True)
class Frozen:
    """The held-out side of a prepared folder.

    Attributes:
        dataset, release, digest: which folder it was (digest of its manifest).
        sequences: the proteins, normalised by the policy of the data to be judged.
        clusters: names of their UniRef50 clusters, where known; those of `release`.
    """

    dataset: str
    release: str
    digest: str
    sequences: tuple[str, ...]
    clusters: frozenset[str]

    @classmethod
    def open(cls, folder: str, policy: ResiduePolicy) -> Frozen:
        """Reads the held-out proteins of a prepared folder, and checks that they are unchanged.

        Raises:
            ProtlmError: the folder is not finished, is damaged, or holds nothing out.
        """
        prepared = Prepared.open(folder)
        sequences, clusters = [], set()
        for record in read_every_record(prepared.heldout_fasta(), policy):
            if isinstance(record, BadRecord):
                raise record.error
            sequences.append(record.sequence)
            clusters.add(record.description.removeprefix("uniref50="))
        return cls(
            prepared.dataset,
            prepared.release,
            prepared.digest,
            tuple(sequences),
            frozenset(clusters - {""}),
        )

    def holds(self, sequence: str) -> bool:
        """Whether a sequence is among the frozen ones."""
        return sequence in self._sequences

    @cached_property
    def similar(self) -> Similar:
        """Finds what resembles a frozen protein; made when first needed."""
        return Similar(self.sequences)

    def describe(self) -> dict[str, Any]:
        """What decides, for a manifest."""
        return {
            "dataset": self.dataset,
            "release": self.release,
            "digest": self.digest,
            "proteins": len(self.sequences),
            "similarity": self.similar.describe(),
        }

    @cached_property
    def _sequences(self) -> frozenset[str]:
        return frozenset(self.sequences)


@lru_cache(maxsize=2)
def _frozen(folder: str, policy: ResiduePolicy) -> Frozen:
    """The frozen proteins, read once per process."""
    return Frozen.open(folder, policy)
