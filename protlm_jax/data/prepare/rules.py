"""Which proteins of a release are kept, and on which side of the split each is.

A rule reads one protein (its sequence, its UniRef50 cluster), never its neighbours or the order of
the input, so one machine and a Beam cluster agree.

A hash of the sequence decides what is held out (`splits.is_heldout`; for UniRef50 the sequence of
the cluster's representative). Or, with `heldout_from`, an earlier prepared folder decides:

- a protein with the same sequence as a held-out one there is held out here too;
- so is a member of the UniRef50 cluster of one, where both are of one release (the names of
  clusters change between releases);
- any other protein whose cluster is not known in that release is compared with them, and left out
  of both sides where it resembles one ("similar_to_heldout").
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np

from protlm_jax.data.entries import ReleaseEntry
from protlm_jax.data.fasta import BadRecord, read_every_record
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

IDENTITY = 0.5
COVERAGE = 0.8
_OPTIONS = (
    *("-s", "4", "-e", "1e-3", "--alignment-mode", "3", "--max-seqs", "60"),
    *("--min-seq-id", str(IDENTITY), "--format-output", "query,qcov,tcov"),
)


def order_key(sequence: str) -> bytes:
    """16 bytes by which proteins are sorted in storage, which shuffles them once.

    Equal sequences have equal keys, so duplicates meet. It differs from the hash of the split, by
    which held-out proteins would sort first.
    """
    return blake2b(sequence.encode("ascii"), digest_size=KEY, person=b"order").digest()


def bucket_of(key: bytes, buckets: int) -> int:
    """The bucket, in [0, buckets), of a protein; buckets are ranges of keys."""
    return int.from_bytes(key[:8], "big") * buckets >> 64


@dataclass(frozen=True)
class SelectionRules:
    """What is kept, and what is held out.

    Attributes:
        min_length, max_length: residues; None is no upper limit. Longer proteins are left out and
            counted, not cut.
        rare_residues: "X" maps U, Z, O and B to X as ProtTrans did; "keep" keeps them.
        bad_records: "error" stops at a record that is no protein; "drop" counts it and goes on.
        deduplicate: of equal sequences keep the first in the order of the input.
        heldout_percent: share held out by the hash; not used with `heldout_from`.
        heldout_from: a prepared folder whose held-out proteins are held out here.
        release: of the input, to know whether names of clusters can be compared.
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
        """How sequences are normalised before the rules apply."""
        return ResiduePolicy(rare=self.rare_residues)

    def reject(self, entry: ReleaseEntry) -> str | None:
        """Why a protein is left out by its length; None where it is kept."""
        length = len(entry.sequence)
        if length < self.min_length:
            return "too_short"
        if self.max_length is not None and length > self.max_length:
            return "too_long"
        return None

    def side(self, entry: ReleaseEntry) -> Side:
        """The side of the split of a protein that is kept; raises as `verdicts`."""
        if self.heldout_from is None:
            held = is_heldout(entry.sequence, self.heldout_percent)
        else:
            frozen = _frozen(self.heldout_from, self.policy)
            held = entry.sequence in frozen.sequences or (
                self._same_clusters(frozen) and entry.uniref50 in frozen.clusters
            )
        return "heldout" if held else "train"

    def verdicts(self, entries: Sequence[ReleaseEntry]) -> list[str]:
        """For each protein its side, or the reason why it is left out (duplicates apart).

        The answers do not depend on the batch; comparing many proteins at a time is faster. Raises
        ProtlmError where the folder of `heldout_from` cannot be read, or MMseqs2 failed.
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
        similar = frozen.similar.find([entries[i].sequence for i in compare])
        for i, found in zip(compare, similar, strict=True):
            if found:
                answers[i] = SIMILAR
        return answers

    def describe(self) -> dict[str, Any]:
        """The rules as the manifest keeps them, without paths; raises as `verdicts`."""
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
        return bool(self.release) and self.release == frozen.prepared.release


@dataclass(frozen=True)
class Frozen:
    """The held-out side of a prepared folder.

    sequences: its proteins, normalised by the policy of the new data.
    clusters: names of their UniRef50 clusters, where known, in the release of `prepared`.
    """

    prepared: Prepared
    sequences: frozenset[str]
    clusters: frozenset[str]

    @classmethod
    def open(cls, folder: str, policy: ResiduePolicy) -> Frozen:
        """Reads the held-out proteins of a prepared folder, and verifies their checksum; raises
        ProtlmError where the folder is not finished, is damaged, or holds nothing out."""
        prepared = Prepared.open(folder)
        sequences, clusters = set(), set()
        for record in read_every_record(prepared.heldout_fasta(), policy):
            if isinstance(record, BadRecord):
                raise record.error
            sequences.add(record.sequence)
            clusters.add(record.description.removeprefix("uniref50="))
        return cls(prepared, frozenset(sequences), frozenset(clusters - {""}))

    @cached_property
    def similar(self) -> Similar:
        """The search for similar proteins, made when first needed."""
        return Similar(self.sequences)

    def describe(self) -> dict[str, Any]:
        """What decides, for a manifest."""
        return {
            "dataset": self.prepared.dataset,
            "release": self.prepared.release,
            "digest": self.prepared.digest,
            "proteins": self.prepared.splits["heldout"].proteins,
            "similarity": self.similar.describe(),
        }


@lru_cache(maxsize=2)
def _frozen(folder: str, policy: ResiduePolicy) -> Frozen:
    """The frozen proteins, read once per process."""
    return Frozen.open(folder, policy)


class Similar:
    """Finds proteins that resemble one of a frozen set, with MMseqs2 (doi:10.1038/nbt.3988).

    Similar means equal, or aligned with at least 50 % identical residues over at least 80 % of
    either protein (a fragment of a held-out protein leaks as much as the whole). The frozen
    proteins are the targets of the search, so E-values do not depend on the number of queries.
    """

    def __init__(self, sequences: Iterable[str]) -> None:
        self._frozen = frozenset(sequences)
        self._sorted = sorted(self._frozen)
        self._program = shutil.which("mmseqs")
        self._version = self._run("version").strip() if self._program else None

    def find(self, sequences: Sequence[str]) -> list[bool]:
        """For each protein whether it is similar to a frozen one; raises ProtlmError where MMseqs2
        is missing or failed."""
        found = np.array([sequence in self._frozen for sequence in sequences], bool)
        others = np.flatnonzero(~found)
        if len(others) and self._frozen:
            found[others] = self._search([sequences[i] for i in others.tolist()])
        return found.tolist()

    def describe(self) -> dict[str, Any]:
        """The method and its settings, for a manifest."""
        return {
            "method": "mmseqs2",
            "version": self._version,
            "command": f"easy-search {' '.join(_OPTIONS)}",
            "identity": IDENTITY,
            "coverage_of_either": COVERAGE,
        }

    def _search(self, sequences: Sequence[str]) -> np.ndarray:
        """bool [number of sequences]."""
        found = np.zeros(len(sequences), bool)
        try:
            with tempfile.TemporaryDirectory(prefix="protlm-similar-") as folder:
                paths = [f"{folder}/{name}" for name in ("query", "target", "hits", "work")]
                for path, some in zip(paths, (sequences, self._sorted), strict=False):
                    text = "".join(f">{i}\n{sequence}\n" for i, sequence in enumerate(some))
                    Path(path).write_text(text)
                self._run("easy-search", *paths, *_OPTIONS, "--threads", "1", "-v", "1")
                for line in Path(paths[2]).read_text().splitlines():
                    query, *covered = line.split("\t")
                    found[int(query)] |= max(map(float, covered)) >= COVERAGE
        except OSError as error:
            raise ProtlmError(
                f"comparing with held-out proteins: {error.strerror or error} (in the folder for "
                f"temporary files, {tempfile.gettempdir()}; another one can be named in TMPDIR)"
            ) from None
        return found

    def _run(self, *arguments: str) -> str:
        if self._program is None:
            raise ProtlmError(
                "--heldout_from compares these proteins with the held-out ones by MMseqs2, and "
                "there is no program mmseqs on the PATH: install it (conda install -c bioconda "
                "mmseqs2), or give UniRef XML of the same release, which names the clusters"
            )
        done = subprocess.run(
            [self._program, *arguments], capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            message = (done.stderr or done.stdout).strip()[-500:]
            raise ProtlmError(
                f"{self._program} {arguments[0]} failed with exit code {done.returncode}: {message}"
                "; repair the installation of MMseqs2"
            )
        return done.stdout
