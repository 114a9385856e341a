"""What all sources of batches have in common: counts for the log, and a state that can be saved.

Needs no TensorFlow.
"""

from __future__ import annotations

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from protlm_jax.data.config import DataConfig
from protlm_jax.data.corpus import Corpus
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import Vocabulary

FORMAT = 1
"""Raised when a change of the pipeline gives other batches than before from the same seed."""


@dataclass(frozen=True)
class Counts:
    """What was read, for the log.

    proteins, residues: of this side of the split.
    longer: proteins that do not fit a row; in training each epoch shows a random piece of them, and
      held out they are cut into pieces. A stream cuts nothing off: 0.
    """

    proteins: int
    residues: int
    longer: int


class ResumableBatches(Iterator[dict[str, np.ndarray]], ABC):
    """Batches of int32 arrays, with a state that can be saved and restored."""

    def __init__(self, counts: Counts, identity: str) -> None:
        self.counts = counts
        self._identity = identity

    def state(self) -> bytes:
        """Where the iterator stands after the last batch it gave, whatever was prefetched."""
        text = json.dumps({"identity": self._identity, **self._position()})
        return zlib.compress(text.encode())

    def restore(self, state: bytes) -> None:
        """Continues behind the batch after which `state` was taken.

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
        self._move_to(saved)

    @abstractmethod
    def _position(self) -> dict[str, Any]:
        """Where it stands, as JSON takes it."""

    @abstractmethod
    def _move_to(self, position: dict[str, Any]) -> None:
        """The reverse of `_position`."""


def identity_of(
    config: DataConfig,
    corpus: Corpus,
    vocabulary: Vocabulary,
    *,
    split: str,
    seed: int,
    batch_size: int,
) -> str:
    """A name for exactly these batches: those of another name are others."""
    settings = {**asdict(config), "fasta": corpus.digest()}
    name = f"format {FORMAT}, {vocabulary.name}, {settings}, {split}, seed {seed}"
    return name + f", batches of {batch_size}"
