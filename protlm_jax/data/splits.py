"""Which proteins are trained on, which are held out, and how often each residue occurs.

The split is a rule, not a list: a protein is held out when a hash of its sequence says so. It
needs no file, does not depend on the order or the number of proteins, gives the same answer on
every machine and in every later version, puts identical sequences on one side, and a larger
held-out share contains the smaller one.

What it does not do is look at similarity. The bundled proteins are representatives of clusters at
50 % identity, so a near-copy of a held-out protein is not among those trained on. In a FASTA of
your own, homologs may stand on both sides, and the held-out loss then looks better than it would
on new families: cluster first (for instance with MMseqs2) and give one protein per cluster.

Needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Literal

import numpy as np

from protlm_jax import bundled
from protlm_jax.data.config import DataConfig
from protlm_jax.data.fasta import Record, read_fasta
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS, ResiduePolicy

Split = Literal["train", "heldout"]


def is_heldout(sequence: str, percent: float) -> bool:
    """Whether a normalised sequence belongs to the held-out `percent` of all sequences.

    The rule: the first 8 bytes of its BLAKE2b hash, read as a big-endian number and divided by
    2^64, are less than percent / 100.
    """
    digest = blake2b(sequence.encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < percent / 100


def source_name(config: DataConfig) -> str:
    """The FASTA file a config reads, for messages and reading alike."""
    return config.fasta or str(bundled.path("pretraining"))


def load_records(config: DataConfig, split: Split) -> list[Record]:
    """The proteins of one side of the split, in the order of the file.

    Raises:
      ProtlmError: the file is at fault, or that side of the split is empty.
    """
    policy = ResiduePolicy(rare=config.rare_residues)
    source = source_name(config)
    wanted = split == "heldout"
    everything = list(read_fasta(source, policy=policy))
    percent = config.heldout_percent
    records = [r for r in everything if is_heldout(r.sequence, percent) == wanted]
    if not records:
        side, remedy = ("held out", "raise") if wanted else ("left to train", "lower")
        raise ProtlmError(
            f"{source}: of its {len(everything)} proteins none is {side} with "
            f"data.heldout_percent={percent:g}; {remedy} it, or give more proteins"
        )
    return records


def heldout_records(config: DataConfig) -> list[Record]:
    """The proteins that a run with this config never trains on."""
    return load_records(config, "heldout")


def residue_frequencies(sequences: Iterable[str]) -> np.ndarray:
    """float64 [20]: share of each standard amino acid, in the order of `AMINO_ACIDS`.

    X and the rare residues are left out of the count.

    Raises:
      ProtlmError: no standard amino acid in any of them.
    """
    counts = np.zeros(256, np.int64)
    for sequence in sequences:
        counts += np.bincount(np.frombuffer(sequence.encode("ascii"), np.uint8), minlength=256)
    standard = counts[np.frombuffer(AMINO_ACIDS.encode(), np.uint8)].astype(np.float64)
    if not standard.any():
        raise ProtlmError("these proteins hold none of the 20 standard amino acids, only X")
    return standard / standard.sum()


def training_frequencies(config: DataConfig) -> np.ndarray:
    """float64 [20]: `residue_frequencies` of the proteins that a run with this config trains on.

    The entropy of these is what a model must beat to have learned anything at all.
    """
    return residue_frequencies(record.sequence for record in load_records(config, "train"))


def total_residues(records: Sequence[Record]) -> int:
    """Number of residues in some records."""
    return sum(len(record.sequence) for record in records)
