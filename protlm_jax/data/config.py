"""What a run reads; free of TensorFlow, because every config names it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from protlm_jax.errors import ProtlmError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which proteins, and how they become rows of tokens.

    Attributes:
        fasta: path of a FASTA file (plain, gz, xz, bz2 or zst); None for the bundled proteins.
        length: tokens per row, the special ones included.
        task: "tokens" (clean rows; an encoder's objective hides residues inside the step) or
            "prott5" (ProtT5's denoising: corrupted input, whole sequence as the target).
        pack: several proteins per row; False pads each protein to a row of its own.
        heldout_percent: share of the proteins kept out of training, chosen by a hash of the
            sequence.
        rare_residues: "X" maps U, Z, O and B to X as ProtTrans did; "keep" keeps them.
    """

    fasta: str | None = None
    length: int = 512
    task: Literal["tokens", "prott5"] = "tokens"
    pack: bool = True
    heldout_percent: float = 2.0
    rare_residues: Literal["X", "keep"] = "X"

    def __post_init__(self) -> None:
        if self.length < 3:
            raise ProtlmError(f"data.length is {self.length}; a row needs at least 3 tokens")
        if not 0.0 <= self.heldout_percent < 100.0:
            raise ProtlmError(
                f"data.heldout_percent is {self.heldout_percent}; it must be in [0, 100)"
            )
        if self.task not in ("tokens", "prott5"):
            raise ProtlmError(f"data.task is {self.task!r}; choose 'tokens' or 'prott5'")
