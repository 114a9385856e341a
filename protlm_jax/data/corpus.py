"""All proteins of one split in two NumPy arrays, which is what the token pipeline reads.

One byte per residue (two where a vocabulary has more than 256 ids): the bundled sample takes 5 MB,
and a protein is a slice. Needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from protlm_jax.data.fasta import Record
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import Vocabulary


@dataclass(frozen=True)
class Corpus:
    """Proteins as token ids, specials not included.

    tokens: uint8 or uint16 [residues], all proteins one after the other.
    offsets: int64 [proteins + 1]; protein i is tokens[offsets[i] : offsets[i + 1]].
    """

    tokens: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_records(cls, records: Sequence[Record], vocabulary: Vocabulary) -> Corpus:
        """Encodes the records, in their order.

        Raises:
            ProtlmError: a residue that the vocabulary does not have; names the record.
        """
        lengths = [len(record.sequence) for record in records]
        letters = np.frombuffer("".join(r.sequence for r in records).encode("ascii"), np.uint8)
        tokens = vocabulary.letter_table[letters]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if tokens.size and tokens.min() < 0:
            record = records[int(np.searchsorted(offsets, tokens.argmin(), side="right")) - 1]
            try:
                vocabulary.encode(record.sequence)
            except ProtlmError as error:
                raise ProtlmError(f"record {record.id!r}, {error}") from error
        dtype = np.uint8 if vocabulary.residue_ids.max() < 256 else np.uint16
        return cls(tokens.astype(dtype), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [proteins]: residues of each."""
        return np.diff(self.offsets)

    def ids(self, index: int) -> np.ndarray:
        """uint8 or uint16 [residues]: one protein."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def digest(self) -> str:
        """A short name for exactly these proteins in this order."""
        state = blake2b(self.tokens.tobytes(), digest_size=8)
        state.update(self.offsets.tobytes())
        return state.hexdigest()
