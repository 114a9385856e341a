"""What all batches have in common: counts for the log, and a state that can be saved."""

from __future__ import annotations

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from protlm_jax.data.config import DataConfig
from protlm_jax.data.splits import Split
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import Vocabulary

FORMAT = 2
"""Raised when a change of the pipeline gives other batches than before from the same seed."""

_RESTARTED = (
    "the data of this checkpoint were read through SeqIO by an earlier version, whose order is not "
    "kept: parameters and optimizer are taken over, and the data begin at the start of an epoch"
)


@dataclass(frozen=True)
class ReadCounts:
    """What was read, for the log.

    proteins, residues: of this side of the split.
    longer: proteins that do not fit a row. In training `data.long_proteins` says what becomes of
      them, and held out they are cut into pieces. A stream cuts nothing off: 0.
    filled: share of the tokens of all rows that are not padding, where it is known beforehand.
    """

    proteins: int
    residues: int
    longer: int
    filled: float | None = None


@dataclass(frozen=True)
class BatchRequest:
    """Which batches are asked for.

    split: "train" (endless) or "heldout" (one pass).
    seed: of order, crops and noise.
    batch_size: rows of a batch of all hosts together.
    rows: which of them are wanted here, ascending; None for all.
    """

    split: Split
    seed: int
    batch_size: int
    rows: Sequence[int] | None = None

    @property
    def numbers(self) -> np.ndarray:
        """int64: the rows that are wanted."""
        return np.arange(self.batch_size) if self.rows is None else np.asarray(self.rows, np.int64)


class ResumableBatches(Iterator[dict[str, np.ndarray]], ABC):
    """Batches of int32 arrays, with a state that can be saved and restored."""

    def __init__(self, counts: ReadCounts, identity: str) -> None:
        self.counts = counts
        self._identity = identity

    def state(self) -> bytes:
        """Where the iterator stands after the last batch it gave, whatever was prefetched."""
        text = json.dumps({"identity": self._identity, **self._position()})
        return zlib.compress(text.encode())

    def restore(self, state: bytes) -> str | None:
        """Continues behind the batch after which `state` was taken.

        Returns:
          A warning where the position cannot be taken over (a state of an earlier version); the
          iterator then stands at its beginning.
        Raises:
          ProtlmError: the state comes from other proteins, another seed or another shape of batch.
        """
        saved = json.loads(zlib.decompress(state))
        if saved["identity"] != self._identity:
            raise ProtlmError(
                "the data are not those of the checkpoint, so the run cannot be continued exactly: "
                f"it was reading {saved['identity']}, and now {self._identity}; give it the same "
                "data and settings, or start in a new folder"
            )
        if "files" in saved:
            return _RESTARTED
        self._move_to(saved)
        return None

    @abstractmethod
    def _position(self) -> dict[str, Any]:
        """Where it stands, as JSON takes it."""

    @abstractmethod
    def _move_to(self, position: dict[str, Any]) -> None:
        """The reverse of `_position`."""


def identity_of(
    config: DataConfig, digest: str, vocabulary: Vocabulary, wanted: BatchRequest
) -> str:
    """A name for exactly these batches: those of another name are others.

    `digest` stands for the proteins and their order, wherever the file or the folder now is.
    """
    settings = {**asdict(config), "proteins": digest}
    del settings["fasta"], settings["prepared"]
    if config.prepared is not None:
        del settings["heldout_percent"]
    name = f"format {FORMAT}, {vocabulary.name}, {settings}, {wanted.split}, seed {wanted.seed}"
    return name + f", batches of {wanted.batch_size}"
