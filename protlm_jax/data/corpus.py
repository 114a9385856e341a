"""All proteins of one split in two NumPy arrays, which is what the token pipeline reads.

One byte per residue: the bundled sample takes 5 MB, and a protein is a slice. Needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from protlm_jax.data.fasta import Record
from protlm_jax.vocabularies import Vocabulary


@dataclass(frozen=True)
class Corpus:
    """Proteins as token ids, specials not included.

    tokens: uint8 [residues], all proteins one after the other.
    offsets: int64 [proteins + 1]; protein i is tokens[offsets[i] : offsets[i + 1]].
    """

    tokens: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_records(cls, records: Sequence[Record], vocabulary: Vocabulary) -> Corpus:
        """Encodes the records, in their order."""
        lengths = [len(record.sequence) for record in records]
        letters = np.frombuffer("".join(r.sequence for r in records).encode("ascii"), np.uint8)
        tokens = vocabulary.letter_table[letters].astype(np.uint8)
        return cls(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [proteins]: residues of each."""
        return np.diff(self.offsets)

    def digest(self) -> str:
        """A short name for exactly these proteins in this order."""
        state = blake2b(self.tokens.tobytes(), digest_size=8)
        state.update(self.offsets.tobytes())
        return state.hexdigest()
