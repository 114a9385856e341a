"""Rows that continue each other: what a model with a memory of earlier rows is trained on.

Row r of a batch begins where row r of the batch before ended (Dai et al. 2019, section 3.2):

    batch t      M K T A Y I     ]  [ G S W ]      [ ] are the vocabulary's prefix and suffix
    batch t + 1  [ M A A K ]     [ L P Q V R T     each row is one endless stream
    segment_ids  7 7 7 7 7 7  ...                  the same protein has the same number throughout

Proteins come one after the other, whole, in an order of their own in every epoch, and a row that
has finished one takes the next: each protein is read exactly once per epoch, by one row. Where an
iterator stands is three numbers a row, so that going on costs nothing.

NumPy alone: training on streams needs nothing else of TensorFlow than that it is installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from protlm_jax.data.corpus import Corpus
from protlm_jax.data.resumable import Counts, ResumableBatches
from protlm_jax.data.splits import Split
from protlm_jax.vocabularies import Vocabulary

FEATURES = ("input_tokens", "target_tokens", "target_weights", "segment_ids", "positions")

_ROUNDS = 6
_WORD = 2**64 - 1
_STRIDE = 0x9E3779B97F4A7C15
_LAST_SEGMENT = 2**31 - 2  # segment ids are int32


class StreamIterator(ResumableBatches):
    """Batches whose rows continue the rows of the batch before.

    Each batch is int32 [batch_size, length] of

        input_tokens    prefix, residues and suffix of proteins, one after the other
        target_tokens   the token after each, of the same protein
        target_weights  1 where there is one: after a protein's last token nothing is predicted
        segment_ids     a number of the protein; no other protein of the row has it, in this batch
                        or (but after 2^31 proteins) an earlier one
        positions       index in the protein, prefix included, whichever batch it began in

    Held out, the streams end after one pass, and what is left of their rows is padding (segment 0).

    Args:
        corpus: the proteins.
        vocabulary: of the model.
        identity: a name for these batches, see `identity_of`.
        shape: rows, each a stream of its own, and tokens per row of a batch.
        split: "train" (endless) or "heldout" (one pass).
        seed: of the order in which proteins are taken.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        identity: str,
        shape: tuple[int, int],
        *,
        split: Split,
        seed: int,
    ) -> None:
        super().__init__(Counts(len(corpus), len(corpus.tokens), 0), identity)
        self._corpus, self._vocabulary = corpus, vocabulary
        self._shape = shape
        self._endless, self._seed = split == "train", seed
        self._taken = 0  # proteins that any row has begun, over all epochs
        self._reading = [-1] * shape[0]  # what each row reads, as a number below `taken`
        self._read = [0] * shape[0]  # how many tokens of it the row has had

    def __next__(self) -> dict[str, np.ndarray]:
        batch = {name: np.zeros(self._shape, np.int32) for name in FEATURES}
        batch["input_tokens"][:] = batch["target_tokens"][:] = self._vocabulary.pad_id
        used = [self._fill(row, batch) for row in range(self._shape[0])]
        if not any(used):
            raise StopIteration
        return batch

    def _fill(self, row: int, batch: dict[str, np.ndarray]) -> int:
        """Writes the row's next tokens; returns how many there were."""
        at, length = 0, self._shape[1]
        while at < length:
            if self._reading[row] < 0:
                if not self._endless and self._taken == len(self._corpus):
                    break
                self._reading[row], self._read[row] = self._taken, 0
                self._taken += 1
            tokens = self._tokens(self._reading[row])
            start = self._read[row]
            stop = min(len(tokens), start + length - at)
            here = slice(at, at + stop - start)
            after = tokens[start + 1 : stop + 1]
            batch["input_tokens"][row, here] = tokens[start:stop]
            batch["target_tokens"][row, at : at + len(after)] = after
            batch["target_weights"][row, at : at + len(after)] = 1
            batch["segment_ids"][row, here] = 1 + self._reading[row] % _LAST_SEGMENT
            batch["positions"][row, here] = np.arange(start, stop)
            at += stop - start
            self._read[row] = stop
            if stop == len(tokens):
                self._reading[row] = -1
        return at

    def _tokens(self, number: int) -> np.ndarray:
        """The tokens of the protein that is taken as number `number`, specials included."""
        epoch, index = divmod(number, len(self._corpus))
        protein = shuffled(index, len(self._corpus), self._seed, epoch)
        start, stop = self._corpus.offsets[protein : protein + 2]
        residues = self._corpus.tokens[start:stop].astype(np.int32)
        prefix, suffix = self._vocabulary.prefix_ids, self._vocabulary.suffix_ids
        return np.concatenate([prefix, residues, suffix]).astype(np.int32)

    def _position(self) -> dict[str, Any]:
        return {"taken": self._taken, "reading": self._reading, "read": self._read}

    def _move_to(self, position: dict[str, Any]) -> None:
        self._taken = position["taken"]
        self._reading, self._read = list(position["reading"]), list(position["read"])


def shuffled(index: int, count: int, seed: int, epoch: int) -> int:
    """Where `index` goes in a random order of 0 to count - 1: one to one, and without a table.

    A Feistel network over the next power of four, walked until it is back in range (Black &
    Rogaway 2002, "Ciphers with arbitrary finite domains"). Numbers alone decide, so every machine
    and every version of NumPy gives the same order.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = 2**half - 1
    key = _mixed(_mixed(seed & _WORD) + epoch)
    while True:
        left, right = index >> half, index & mask
        for turn in range(1, _ROUNDS + 1):
            left, right = right, left ^ (_mixed(key + turn * _STRIDE + right) & mask)
        index = left << half | right
        if index < count:
            return index


def _mixed(word: int) -> int:
    """A 64-bit hash of a word (SplitMix64: Steele, Lea & Flood 2014)."""
    word = (word + _STRIDE) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
