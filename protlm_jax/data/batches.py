"""Packed batches of tokens, each a function of the proteins, the seed and its number.

Row r of the endless sequence of rows belongs to epoch r // R, where R is the number of rows of the
packing plan. Within the epoch

    the row of the plan      is r % R, through the epoch's order of rows,
    the k-th of a length     is the k-th protein in the epoch's order of that length,
    a crop, and the noise    come from random words for that protein or that row,

each computed directly (`orders.py`). So every protein is read exactly once per epoch; order,
neighbours, crops and noise are new in each; and the state of an iterator is one number, whichever
rows a host reads. The index takes eight bytes of memory per protein, 360 MB for UniRef50, and four
times as much while it is built.
"""

from __future__ import annotations

import json
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from protlm_jax.data import orders, token_rows
from protlm_jax.data.config import DataConfig, LongProteins
from protlm_jax.data.rows import PackingPlan
from protlm_jax.data.splits import Split
from protlm_jax.data.token_files import TokenShard
from protlm_jax.data.token_rows import SPAN_TASKS, Alphabet, Layout, encoder_decoder, single_stack
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import Vocabulary

THREADS = 2
AHEAD = 3
"""Batches that are prefetched."""

PLANNED = 4096
"""Rows that are planned at once: a few large arrays cost less than many small ones."""

Contents = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row (ascending), first residue over all shards, and residues of some pieces: int64 each."""

# Keys of an epoch's random choices; the key of the order of a length is the length itself.
_ROW_ORDER = 0
_CROPS = 2**40
_NOISE = 2**41

_RESTARTED = (
    "the data of this checkpoint were read through SeqIO by an earlier version, whose order is not "
    "kept: parameters and optimizer are taken over, and the data begin at the start of an epoch"
)


@dataclass(frozen=True)
class ReadCounts:
    """What is read, for the log.

    proteins, residues: of this side of the split.
    longer: proteins longer than a row, see `data.long_proteins`; 0 for a stream, which cuts none.
    filled: share of the tokens of all rows that are not padding, where it is known beforehand.
    """

    proteins: int
    residues: int
    longer: int
    filled: float | None = None


@dataclass(frozen=True)
class BatchRequest:
    """Which batches to make.

    split: "train" (endless) or "heldout" (one pass).
    seed: of order, crops and noise.
    batch_size: rows of a batch of all hosts together.
    rows: the rows of this host, ascending; None for all.
    """

    split: Split
    seed: int
    batch_size: int
    rows: Sequence[int] | None = None

    @property
    def numbers(self) -> np.ndarray:
        """int64: the rows of this host."""
        return np.arange(self.batch_size) if self.rows is None else np.asarray(self.rows, np.int64)


class ResumableBatches(Iterator[dict[str, np.ndarray]], ABC):
    """Batches of int32 arrays, with a state that can be saved and restored."""

    def __init__(self, counts: ReadCounts, identity: str) -> None:
        self.counts = counts
        self._identity = identity

    def state(self) -> bytes:
        """The position after the last batch returned; prefetched batches do not count."""
        text = json.dumps({"identity": self._identity, **self._position()})
        return zlib.compress(text.encode())

    def restore(self, state: bytes) -> str | None:
        """Continues after the batch at which `state` was taken. Returns a warning where the
        position cannot be used (a state of an earlier version): the iterator then is at its
        beginning. Raises ProtlmError for a state of other proteins, another seed or another shape
        of batch."""
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
        """The position, as JSON takes it."""

    @abstractmethod
    def _move_to(self, position: dict[str, Any]) -> None:
        """The inverse of `_position`."""


@dataclass(frozen=True)
class Pieces:
    """Pieces of proteins of at most `room` residues, sorted by length.

    starts: int64 [pieces], the first residue of each, counted over all shards.
    first: int64 [room + 2]; pieces of n residues are starts[first[n] : first[n + 1]].
    whole: int32, residues of the protein of each piece of `room` residues under "crop", else empty.
    longer: proteins longer than `room`.
    """

    starts: np.ndarray
    first: np.ndarray
    whole: np.ndarray
    longer: int

    @classmethod
    def of(cls, shards: Sequence[TokenShard], room: int, rule: LongProteins) -> Pieces:
        """The pieces of all proteins; `rule` (see `DataConfig`) treats those above `room`."""
        lengths = np.concatenate([np.diff(s.offsets).astype(np.int32) for s in shards])
        begins = np.cumsum([0] + [len(s.letters) for s in shards[:-1]])
        starts = np.concatenate(
            [s.offsets[:-1] + begin for s, begin in zip(shards, begins, strict=True)]
        )
        too_long = lengths > room
        longer = int(too_long.sum())
        if rule == "chunk":
            starts, lengths = _even_pieces(starts, lengths, room)
        elif rule == "drop":
            starts, lengths = starts[~too_long], lengths[~too_long]
        # NumPy sorts integers of 16 bits by radix, in linear time.
        classes = np.minimum(lengths, room).astype(np.min_scalar_type(room))
        order = np.argsort(classes, kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(classes, minlength=room + 1))])
        whole = lengths[order[first[room] :]] if rule == "crop" else lengths[:0]
        return cls(starts[order], first, whole, longer)


def _even_pieces(
    starts: np.ndarray, lengths: np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """Starts (int64) and lengths (int32) of the pieces of proteins: `rows.even_pieces` of many."""
    total = lengths.astype(np.int64)
    parts = (total + room - 1) // room
    owner = np.repeat(np.arange(len(parts)), parts)
    part = np.arange(len(owner)) - (np.cumsum(parts) - parts)[owner]
    total, parts = total[owner], parts[owner]
    begin, end = part * total // parts, (part + 1) * total // parts
    return starts[owner] + begin, (end - begin).astype(np.int32)


class TokenBatches(ResumableBatches):
    """Packed batches of every task but `stream`: dicts of int32 [rows, length].

    Features are input_tokens, segment_ids and positions for `tokens`, those of SeqIO's
    encoder-decoders for the others. "train" never ends; "heldout" is one pass over all residues, in
    one order for every seed, and its last batch is filled up with empty rows.
    """

    def __init__(
        self,
        shards: Sequence[TokenShard],
        config: DataConfig,
        vocabulary: Vocabulary,
        identity: str,
        request: BatchRequest,
    ) -> None:
        """Plans the rows of `shards`; `identity` names these batches in their state. Raises
        ProtlmError where no protein fits a row, or the vocabulary lacks the sentinels of the
        task."""
        self._training = request.split == "train"
        self._length = config.length
        room = token_rows.residues_per_row(config.task, vocabulary, config.length, config.length)
        if room < 1:
            raise ProtlmError(f"data.length={config.length} leaves no room for residues; raise it")
        self._pieces = Pieces.of(shards, room, config.long_proteins if self._training else "chunk")
        # Tokens of a piece in an (encoder's) row minus its residues, by its length. The decoder's
        # part of a piece is never longer than the encoder's, so one plan fills both.
        self._ends = vocabulary.num_specials
        extra = np.full(room + 1, self._ends)
        if config.task in SPAN_TASKS:
            hidden, spans = SPAN_TASKS[config.task].counts(np.arange(room + 1))
            extra += spans - hidden
        pieces = np.diff(self._pieces.first)
        self.plan = PackingPlan(pieces, config.length, extra, several=config.pack)
        if not self.plan.rows:
            raise ProtlmError(
                f"no protein fits a row of data.length={config.length} tokens, and "
                "data.long_proteins='drop' leaves out the others; raise the one or change the other"
            )
        self._dtype = shards[0].letters.dtype
        self._letters = [shard.letters.data for shard in shards]
        self._begins = np.cumsum([0] + [len(shard.letters) for shard in shards])
        proteins = sum(len(s.offsets) - 1 for s in shards)
        longer, filled = self._pieces.longer, self.plan.utilisation
        super().__init__(ReadCounts(proteins, int(self._begins[-1]), longer, filled), identity)
        self._alphabet = Alphabet(vocabulary, config.rare_residues)
        self._task, self._seed = config.task, request.seed
        self._batch_size, self._rows = request.batch_size, request.numbers
        self._total = None if self._training else -(-self.plan.rows // request.batch_size)
        self._next = 0
        self._batches_planned = max(1, PLANNED // len(self._rows))
        self._planned: dict[int, Contents] = {}
        self._planning = Lock()
        self._pool = ThreadPoolExecutor(THREADS, "batches")
        self._coming: deque[Future[dict[str, np.ndarray]]] = deque()

    def __next__(self) -> dict[str, np.ndarray]:
        while len(self._coming) <= AHEAD:
            number = self._next + len(self._coming)
            if self._total is not None and number >= self._total:
                break
            self._coming.append(self._pool.submit(self.batch, number))
        if not self._coming:
            raise StopIteration
        batch = self._coming.popleft().result()
        self._next += 1
        return batch

    def _position(self) -> dict[str, Any]:
        return {"batch": self._next}

    def _move_to(self, position: dict[str, Any]) -> None:
        for future in self._coming:
            future.cancel()
        self._coming.clear()
        self._next = position["batch"]

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """This host's rows of batch `number`, whatever was read before."""
        rows = number * self._batch_size + self._rows
        owner, starts, residues = self._contents(number)
        keys = orders.keys_of(orders.key_of(self._seed, _NOISE), rows)
        if self._task in SPAN_TASKS:
            return self._spans(owner, starts, residues, keys)
        layout = Layout(owner, residues + self._ends, len(rows), self._length)
        flat, begin = layout.specials(self._alphabet, self._dtype)
        self._copy(flat, begin, starts, residues)
        letters = flat.reshape(layout.segment_ids.shape)
        tokens = self._alphabet.ids(letters)
        if self._task in ("tokens", "labels"):
            return single_stack(tokens, layout)
        share = token_rows.RANDOM_SHARE if self._training else 0.0
        hidden = token_rows.prott5_noise(letters, keys, share)
        return encoder_decoder(self._alphabet.ids(hidden), layout, tokens, layout)

    def _spans(
        self, owner: np.ndarray, starts: np.ndarray, residues: np.ndarray, keys: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Rows of span corruption: the two sides of a piece have their own lengths."""
        letters = np.empty(residues.sum(), np.uint8)
        self._copy(letters, np.cumsum(residues) - residues, starts, residues)
        piece_keys = orders.keys_of(keys[owner], starts)
        noise = SPAN_TASKS[self._task]
        inputs, shown, targets, hidden = token_rows.span_noise(letters, residues, piece_keys, noise)
        sides: list[Any] = []
        for values, sizes in ((inputs, shown), (targets, hidden)):
            layout = Layout(owner, sizes + self._ends, len(keys), self._length)
            flat, begin = layout.specials(self._alphabet)
            token_rows.spread(values, begin, sizes, flat)
            sides += [self._alphabet.ids(flat.reshape(layout.segment_ids.shape)), layout]
        return encoder_decoder(*sides)

    def _contents(self, number: int) -> Contents:
        """The pieces in this host's rows of a batch."""
        group, index = divmod(number, self._batches_planned)
        with self._planning:
            if group not in self._planned:
                numbers = group * self._batches_planned + np.arange(self._batches_planned)
                rows = (numbers[:, None] * self._batch_size + self._rows).ravel()
                # Another thread may still read the previous group.
                kept = {n: c for n, c in self._planned.items() if n == group - 1}
                self._planned = {**kept, group: self._plan(rows)}
            owner, starts, residues = self._planned[group]
        begin = index * len(self._rows)
        here = slice(*np.searchsorted(owner, [begin, begin + len(self._rows)]))
        return owner[here] - begin, starts[here], residues[here]

    def _plan(self, rows: np.ndarray) -> Contents:
        """The pieces in rows of the endless sequence."""
        epochs, within = np.divmod(rows, self.plan.rows)
        if not self._training:  # rows after the only epoch stay empty
            epochs, within = epochs[epochs == 0], within[epochs == 0]
        numbers, which = np.unique(epochs, return_inverse=True)
        keys = np.array([orders.key_of(self._seed, int(e)) for e in numbers], np.uint64)[which]
        size = np.full(len(within), self.plan.rows)
        order = orders.keys_of(keys, _ROW_ORDER)
        places = self.plan.places(orders.shuffled_many(within, size, order))
        keys = keys[places.row]
        first, length = self._pieces.first, places.length
        chosen = orders.shuffled_many(
            places.rank, self.plan.counts[length], orders.keys_of(keys, length)
        )
        starts = self._pieces.starts[first[length] + chosen]
        if len(self._pieces.whole):
            long = np.flatnonzero(length == len(first) - 2)
            spare = self._pieces.whole[chosen[long]] - length[long]
            words = orders.keys_of(orders.keys_of(keys[long], _CROPS), starts[long])
            starts[long] += orders.below(words, spare + 1)
        return places.row, starts, length

    def _copy(
        self, flat: np.ndarray, first: np.ndarray, starts: np.ndarray, residues: np.ndarray
    ) -> None:
        """Copies pieces of proteins to their places in `flat`."""
        shard = np.searchsorted(self._begins, starts, side="right") - 1
        starts = starts - self._begins[shard]
        letters, target = self._letters, flat.data
        ends, last = starts + residues, first + residues
        pieces = (shard, starts, ends, first, last)
        for s, a, b, c, d in zip(*(part.tolist() for part in pieces), strict=True):
            target[c:d] = letters[s][a:b]
