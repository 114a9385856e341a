"""Which proteins are trained on, which are held out, and how often each residue occurs.

The split is a rule, not a list: a hash of the sequence decides. It does not depend on the order or
number of proteins, gives the same answer on every machine and in every version, puts identical
sequences on one side, and a larger held-out share contains the smaller one.

It ignores similarity. The bundled proteins represent clusters at 50 % identity; in your own FASTA,
homologs may be on both sides, which makes the held-out loss too low: cluster first (for instance
with MMseqs2) and give one protein per cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal

import numpy as np

from protlm_jax import bundled
from protlm_jax.data.config import DataConfig
from protlm_jax.data.fasta import Record, read_fasta
from protlm_jax.data.prepared import Prepared
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS, ResiduePolicy
from protlm_jax.vocabularies.structure import without_structure

Split = Literal["train", "heldout"]


def is_heldout(sequence: str, percent: float) -> bool:
    """Whether a normalised sequence is held out: the first 8 bytes of its BLAKE2b hash, as a
    big-endian number divided by 2^64, are less than percent / 100."""
    digest = blake2b(without_structure(sequence).encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < percent / 100


def source_name(config: DataConfig) -> str:
    """The folder or the FASTA file that a config reads."""
    return config.prepared or config.fasta or str(bundled.path("pretraining"))


def open_prepared(config: DataConfig) -> Prepared | None:
    """The prepared folder of a config, if it has one; raises ProtlmError where it is at fault, or
    was prepared without the rare residues of the config."""
    if config.prepared is None:
        return None
    if "://" in config.prepared:
        raise ProtlmError(
            f"data.prepared is {config.prepared}, but a prepared folder is read from a local disk: "
            "copy it there first, for instance with gcloud storage cp --recursive"
        )
    prepared = Prepared.open(config.prepared)
    kept = prepared.manifest["rules"]["rare_residues"]
    if config.rare_residues == "keep" and kept != "keep":
        raise ProtlmError(
            f"data.rare_residues is 'keep', but {config.prepared} was prepared without U, Z, O and "
            "B: prepare it again with --rare_residues keep, or leave data.rare_residues at 'X'"
        )
    return prepared


def load_records(config: DataConfig, split: Split) -> list[Record]:
    """The proteins of one side of the split, in the order of the file, in memory; of a prepared
    folder only the held-out side. Raises ProtlmError where a file is at fault, or the side is
    empty."""
    policy = ResiduePolicy(rare=config.rare_residues)
    source = source_name(config)
    if prepared := open_prepared(config):
        if split == "train":
            raise ProtlmError(
                f"{source}: the training side of a prepared folder need not fit in memory; read it "
                "in batches (protlm_jax.data.pipeline.open_batches)"
            )
        return list(read_fasta(prepared.heldout_fasta(), policy=policy))
    heldout = split == "heldout"
    everything = list(read_fasta(source, policy=policy))
    percent = config.heldout_percent
    records = [r for r in everything if is_heldout(r.sequence, percent) == heldout]
    if not records:
        side, remedy = ("held out", "raise") if heldout else ("left to train", "lower")
        raise ProtlmError(
            f"{source}: of its {len(everything)} proteins none is {side} with "
            f"data.heldout_percent={percent:g}; {remedy} it, or give more proteins"
        )
    return records


def heldout_records(config: DataConfig) -> list[Record]:
    """The proteins that a run with this config never trains on."""
    return load_records(config, "heldout")


def residue_frequencies(sequences: Iterable[str]) -> np.ndarray:
    """float64 [20]: share of each standard amino acid, in the order of `AMINO_ACIDS`; X and rare
    residues do not count. Raises ProtlmError where there is no standard amino acid."""
    counts = np.zeros(256, np.int64)
    for sequence in sequences:
        letters = without_structure(sequence).encode("ascii")
        counts += np.bincount(np.frombuffer(letters, np.uint8), minlength=256)
    return _shares(counts[np.frombuffer(AMINO_ACIDS.encode(), np.uint8)].astype(np.float64))


def _shares(counts: np.ndarray) -> np.ndarray:
    if not counts.any():
        raise ProtlmError("these proteins hold none of the 20 standard amino acids, only X")
    return counts / counts.sum()


def training_frequencies(config: DataConfig) -> np.ndarray:
    """float64 [20]: `residue_frequencies` of the proteins that a run with this config trains on.
    A model that has learned anything beats their entropy."""
    if prepared := open_prepared(config):
        letters = prepared.splits["train"].residue_counts
        counts = np.array([letters.get(letter, 0) for letter in AMINO_ACIDS], np.float64)
        return _shares(counts)
    return residue_frequencies(record.sequence for record in load_records(config, "train"))


def unigram_entropy(config: DataConfig) -> float:
    """The entropy of the training residues in nats: the loss of guessing by frequency."""
    frequencies = training_frequencies(config)
    present = frequencies[frequencies > 0]
    return float(-np.sum(present * np.log(present)))
