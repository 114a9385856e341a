"""The data section of a run's config. Imports no TensorFlow: every config file names it."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from protlm_jax.errors import ProtlmError

Task = Literal["tokens", "stream", "prott5", "span3", "ankh", "labels"]
LongProteins = Literal["crop", "chunk", "drop"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which proteins are read, and how they become rows of tokens.

    Attributes:
        fasta: path of a FASTA file (plain, gz, xz, bz2 or zst), read whole into memory; None for
            the bundled proteins (or those of `prepared`).
        prepared: a folder that `protlm prepare` made, for corpora of any size. It is split already,
            and `heldout_percent` is not used.
        labels: a file of labelled proteins, which `protlm finetune` makes, for the task "labels".
        length: tokens per row, special tokens included. Rows of encoder and decoder have the same
            length, also where targets are shorter than inputs (T5 itself: 512 and 114).
        task: "tokens" (clean rows; the objective hides residues inside the step); "stream" (rows
            that continue those of the batch before, for causal models); for encoder-decoders
            "prott5" (ProtT5's denoising: the target is the whole sequence), "span3" (T5's span
            corruption, 15 % in spans of 3) or "ankh" (Ankh's partial demasking, 20 % in single
            residues), whose targets are the hidden residues alone; "labels" for fine-tuning.
        pack: several proteins per row; False gives each protein a row. A stream is always packed.
        long_proteins: for training on proteins that are longer than a row: "crop" (another random
            piece in every epoch), "chunk" (all of it, in pieces of nearly equal length) or "drop"
            (left out). Held-out proteins are always chunked; a stream cuts nothing.
        heldout_percent: share of the proteins held out, chosen by a hash of the sequence.
        rare_residues: "X" maps U, Z, O and B to X as ProtTrans did; "keep" keeps them.
    """

    fasta: str | None = None
    prepared: str | None = None
    labels: str | None = None
    length: int = 512
    task: Task = "tokens"
    pack: bool = True
    long_proteins: LongProteins = "crop"
    heldout_percent: float = 2.0
    rare_residues: Literal["X", "keep"] = "X"

    def __post_init__(self) -> None:
        if self.length < 3:
            raise ProtlmError(f"data.length is {self.length}; a row needs at least 3 tokens")
        if not 0.0 <= self.heldout_percent < 100.0:
            raise ProtlmError(
                f"data.heldout_percent is {self.heldout_percent}; it must be in [0, 100)"
            )
        if (self.task == "labels") != (self.labels is not None):
            raise ProtlmError("data.labels and data.task='labels' belong together: give both")
        if self.fasta is not None and self.prepared is not None:
            raise ProtlmError(
                f"data.fasta ({self.fasta}) and data.prepared ({self.prepared}) are both given; "
                "give one of them"
            )
        for field, choices in (("task", Task), ("long_proteins", LongProteins)):
            if (value := getattr(self, field)) not in get_args(choices):
                known = ", ".join(get_args(choices))
                raise ProtlmError(f"data.{field} is {value!r}; choose one of {known}")
