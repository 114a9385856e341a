"""Batches whose rows continue each other, for models with a memory of earlier rows.

Row r of a batch begins where row r of the batch before ended (Dai et al. 2019, section 3.2):

    batch t      M K T A Y I     ]  [ G S W ]      [ ] are the vocabulary's prefix and suffix
    batch t + 1  [ M A A K ]     [ L P Q V R T     each row is one endless stream
    segment_ids  7 7 7 7 7 7  ...                  one number per protein, over all batches

Proteins come whole, in a new order in every epoch, and a row that has finished one takes the next:
each protein is read exactly once per epoch, by one row. The state is three numbers per row, so
resuming costs nothing. Which proteins a row takes depends on the other rows; a host that reads
some of the rows follows the others by the lengths of their proteins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from protlm_jax.data import orders
from protlm_jax.data.batches import BatchRequest, ReadCounts, ResumableBatches
from protlm_jax.data.config import DataConfig
from protlm_jax.data.token_files import TokenShard
from protlm_jax.data.token_rows import Alphabet
from protlm_jax.vocabularies import Vocabulary

FEATURES = ("input_tokens", "target_tokens", "target_weights", "segment_ids", "positions")

_LAST_SEGMENT = 2**31 - 2  # segment ids are int32
_TAKEN_AT_ONCE = 1024


class StreamIterator(ResumableBatches):
    """Batches of int32 [rows, length]:

        input_tokens    prefix, residues and suffix of proteins, one after the other
        target_tokens   the next token of the same protein
        target_weights  1 where there is one: nothing is predicted after a protein's last token
        segment_ids     a number of the protein, unique in the row over 2^31 proteins
        positions       index in the protein, prefix included, whichever batch it began in

    Held-out streams end after one pass; the rest of their rows is padding (segment 0).
    """

    def __init__(
        self,
        shards: Sequence[TokenShard],
        config: DataConfig,
        vocabulary: Vocabulary,
        identity: str,
        request: BatchRequest,
    ) -> None:
        self._lengths = np.concatenate([np.diff(s.offsets).astype(np.int32) for s in shards])
        super().__init__(ReadCounts(len(self._lengths), int(self._lengths.sum()), 0), identity)
        self._shards, self._vocabulary = shards, vocabulary
        self._first = np.cumsum([0] + [len(shard.offsets) - 1 for shard in shards[:-1]])
        self._alphabet = Alphabet(vocabulary, config.rare_residues)
        self._rows, self._length = request.batch_size, config.length
        self._place = {row: place for place, row in enumerate(request.numbers.tolist())}
        self._endless, self._seed = request.split == "train", request.seed
        self._move_to({"taken": 0, "reading": [-1] * self._rows, "read": [0] * self._rows})

    def __next__(self) -> dict[str, np.ndarray]:
        shape = len(self._place), self._length
        batch = {name: np.zeros(shape, np.int32) for name in FEATURES}
        batch["input_tokens"][:] = batch["target_tokens"][:] = self._vocabulary.pad_id
        used = [self._fill(row, batch) for row in range(self._rows)]
        if not any(used):
            raise StopIteration
        return batch

    def _fill(self, row: int, batch: dict[str, np.ndarray]) -> int:
        """Writes the row's next tokens where this host reads the row; returns their number."""
        at, length = 0, self._length
        place = self._place.get(row)
        while at < length:
            if self._reading[row] < 0 and not self._take(row):
                break
            start = self._read[row]
            stop = min(self._size[row], start + length - at)
            if place is not None:
                self._write(row, start, stop, batch, place, at)
            at += stop - start
            self._read[row] = stop
            if stop == self._size[row]:
                self._reading[row] = -1
        return at

    def _write(
        self, row: int, start: int, stop: int, batch: dict[str, np.ndarray], place: int, at: int
    ) -> None:
        """Writes tokens `start` to `stop` of the protein that a row reads."""
        number, tokens = self._tokens.get(row, (-1, self._lengths))
        if number != self._reading[row]:
            vocabulary = self._vocabulary
            protein = self._ids(self._protein[row])
            tokens = np.concatenate([vocabulary.prefix_ids, protein, vocabulary.suffix_ids])
            tokens = tokens.astype(np.int32)
            self._tokens[row] = self._reading[row], tokens
        here = slice(at, at + stop - start)
        after = tokens[start + 1 : stop + 1]
        batch["input_tokens"][place, here] = tokens[start:stop]
        batch["target_tokens"][place, at : at + len(after)] = after
        batch["target_weights"][place, at : at + len(after)] = 1
        batch["segment_ids"][place, here] = 1 + self._reading[row] % _LAST_SEGMENT
        batch["positions"][place, here] = np.arange(start, stop)

    def _ids(self, index: int) -> np.ndarray:
        """Token ids of one protein, without specials: int32 [residues]."""
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        shard, at = self._shards[number], index - int(self._first[number])
        return self._alphabet.ids(shard.letters[shard.offsets[at] : shard.offsets[at + 1]])

    def _take(self, row: int) -> bool:
        """Gives a row its next protein; False when there is none left."""
        if not self._coming:
            last = self._taken + _TAKEN_AT_ONCE
            if not self._endless:
                last = min(last, len(self._lengths))
            proteins = self._chosen(np.arange(self._taken, last))
            self._coming.extend(zip(proteins.tolist(), self._sizes(proteins), strict=True))
        if not self._coming:
            return False
        self._protein[row], self._size[row] = self._coming.popleft()
        self._reading[row], self._read[row] = self._taken, 0
        self._taken += 1
        return True

    def _chosen(self, numbers: np.ndarray) -> np.ndarray:
        """The proteins that are taken as numbers `numbers`, over all epochs: int64 [n]."""
        epochs, index = np.divmod(numbers, len(self._lengths))
        distinct, which = np.unique(epochs, return_inverse=True)
        keys = [orders.key_of(self._seed, int(epoch)) for epoch in distinct]
        count = np.full(len(index), len(self._lengths))
        return orders.shuffled_many(index, count, np.array(keys, np.uint64)[which])

    def _sizes(self, proteins: np.ndarray) -> list[int]:
        """Tokens of some proteins, specials included."""
        return (self._lengths[proteins] + self._vocabulary.num_specials).tolist()

    def _position(self) -> dict[str, Any]:
        return {"taken": self._taken, "reading": self._reading, "read": self._read}

    def _move_to(self, position: dict[str, Any]) -> None:
        self._taken = position["taken"]  # proteins that any row has begun, over all epochs
        # For each row the number of its protein (-1: none), and how many of its tokens it has had.
        self._reading, self._read = list(position["reading"]), list(position["read"])
        proteins = self._chosen(np.maximum(self._reading, 0))
        self._protein, self._size = proteins.tolist(), self._sizes(proteins)
        self._coming: deque[tuple[int, int]] = deque()
        self._tokens: dict[int, tuple[int, np.ndarray]] = {}
