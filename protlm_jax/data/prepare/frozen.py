"""The held-out proteins of an earlier prepared folder, which later data must not train on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

from protlm_jax.data.fasta import BadRecord, read_every_record
from protlm_jax.data.prepare.similarity import Similar
from protlm_jax.data.prepared import Prepared
from protlm_jax.vocabularies import ResiduePolicy


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
        return _digest(sequence) in self._digests

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
    def _digests(self) -> frozenset[bytes]:
        return frozenset(map(_digest, self.sequences))


def _digest(sequence: str) -> bytes:
    return blake2b(sequence.encode("ascii"), digest_size=16).digest()
