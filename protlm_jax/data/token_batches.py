"""Packed batches from proteins in memory: any batch directly, the same for any number of hosts.

A batch is a function of the proteins, the seed and its number. Row r of the endless run of rows
belongs to epoch r // R, where R is the number of rows that the packing plan makes of an epoch.
Within it

    the row of the plan      is r % R, sent through the epoch's order of rows,
    the k-th of a length     is the protein that the epoch's order of that length has k-th,
    a crop, and the noise    come from words that are drawn for that protein or that row,

each a permutation or a hash that is computed for one number alone (`orders.py`). So every protein
is read exactly once per epoch; order, neighbours, crops and noise are new in each; and where an
iterator stands is one number, whichever rows each host has read.

Beside the proteins there are eight bytes of index per protein, 360 MB for UniRef50, and four times
as much while it is made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np

from protlm_jax.data import corruption, orders
from protlm_jax.data.config import DataConfig
from protlm_jax.data.corruption import SPAN_TASKS
from protlm_jax.data.packing_plan import PackingPlan
from protlm_jax.data.pieces import Pieces
from protlm_jax.data.resumable import BatchRequest, ReadCounts, ResumableBatches
from protlm_jax.data.token_files import TokenShard
from protlm_jax.data.token_rows import Alphabet, Layout, encoder_decoder, single_stack, spread
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import Vocabulary

THREADS = 2
AHEAD = 3
"""Batches under way while the one before is used."""

PLANNED = 4096
"""Rows whose contents are found at once: many small arrays cost more than a few large ones."""

Contents = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row (ascending), first residue over all shards, and residues of some pieces: int64 each."""

# Keys of what is drawn in an epoch; orders of lengths have the length itself.
_ROW_ORDER = 0
_CROPS = 2**40
_NOISE = 2**41


def residues_per_row(task: str, vocabulary: Vocabulary, inputs: int, targets: int) -> int:
    """The longest piece of a protein, in residues, that fits rows of so many tokens.

    Span corruption shortens what it shows: a row of 512 tokens of `span3` holds 568 residues, as
    T5's own do. There, and in `ankh`, the number of sentinels is a limit of its own.

    Raises:
      ProtlmError: the task needs sentinels or a hiding token, and the vocabulary has none.
    """
    if task == "prott5":
        _ = vocabulary.hiding_id  # raises where there is none
    inputs, targets = inputs - vocabulary.num_specials, targets - vocabulary.num_specials
    if task not in SPAN_TASKS:
        return min(inputs, targets)
    return SPAN_TASKS[task].longest(inputs, targets, corruption.sentinel_count(vocabulary))


class TokenBatches(ResumableBatches):
    """Packed batches of every task but `stream`.

    Batches are dicts of int32 [rows, length]: input_tokens, segment_ids and positions for `tokens`,
    the features of SeqIO's encoder-decoders for the others. Split "train" never ends; "heldout" is
    one pass over all residues, in one order for every seed, and its last batch is filled with empty
    rows.

    Args:
        shards: of the split.
        config: its length, task, packing and rule for long proteins.
        vocabulary: of the model.
        identity: a name for these batches, see `identity_of`.
        wanted: which batches.

    Raises:
        ProtlmError: a row has no room for residues, no protein fits one, or the task needs
            sentinels that the vocabulary does not have.
    """

    def __init__(
        self,
        shards: Sequence[TokenShard],
        config: DataConfig,
        vocabulary: Vocabulary,
        identity: str,
        wanted: BatchRequest,
    ) -> None:
        self._training = wanted.split == "train"
        self._length = config.length
        room = residues_per_row(config.task, vocabulary, config.length, config.length)
        if room < 1:
            raise ProtlmError(f"data.length={config.length} leaves no room for residues; raise it")
        self._pieces = Pieces.of(shards, room, config.long_proteins if self._training else "chunk")
        # Tokens of the (encoder's) row beside the residues of a piece, by its length. The decoder's
        # part of a piece is never longer than the encoder's, so one plan fills both.
        self._ends = vocabulary.num_specials
        beside = np.full(room + 1, self._ends)
        if config.task in SPAN_TASKS:
            hidden, spans = SPAN_TASKS[config.task].counts(np.arange(room + 1))
            beside += spans - hidden
        self.plan = PackingPlan(self._pieces.counts, config.length, beside, several=config.pack)
        if not self.plan.rows:
            raise ProtlmError(
                f"no protein fits a row of data.length={config.length} tokens, and "
                "data.long_proteins='drop' leaves out the others; raise the one or change the other"
            )
        begins = np.cumsum([0] + [len(shard.letters) for shard in shards])
        counts = ReadCounts(
            sum(len(s.offsets) - 1 for s in shards),
            int(begins[-1]),
            self._pieces.longer,
            self.plan.utilisation,
        )
        super().__init__(counts, identity)
        self._letters, self._begins = [shard.letters.data for shard in shards], begins
        self._alphabet = Alphabet(vocabulary, config.rare_residues)
        self._task, self._seed = config.task, wanted.seed
        self._batch_size, self._rows = wanted.batch_size, wanted.numbers
        self._total = None if self._training else -(-self.plan.rows // wanted.batch_size)
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
        """The wanted rows of batch `number`, whatever was read before."""
        rows = number * self._batch_size + self._rows
        owner, starts, residues = self._contents(number)
        keys = orders.keys_of(orders.key_of(self._seed, _NOISE), rows)
        if self._task in SPAN_TASKS:
            return self._spans(owner, starts, residues, keys)
        layout = Layout(owner, residues + self._ends, len(rows), self._length)
        flat, begin = layout.specials(self._alphabet)
        self._copy(flat, begin, starts, residues)
        letters = flat.reshape(layout.segment_ids.shape)
        tokens = self._alphabet.ids(letters)
        if self._task == "tokens":
            return single_stack(tokens, layout)
        share = corruption.RANDOM_SHARE if self._training else 0.0
        hidden = corruption.prott5_noise(letters, keys, share)
        return encoder_decoder(self._alphabet.ids(hidden), layout, tokens, layout)

    def _spans(
        self, owner: np.ndarray, starts: np.ndarray, residues: np.ndarray, keys: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Rows of span corruption: the two sides of a piece have lengths of their own."""
        letters = np.empty(residues.sum(), np.uint8)
        self._copy(letters, np.cumsum(residues) - residues, starts, residues)
        piece_keys = orders.keys_of(keys[owner], starts)
        inputs, shown, targets, asked = corruption.span_noise(
            letters, residues, piece_keys, SPAN_TASKS[self._task]
        )
        sides: list[Any] = []
        for values, sizes in ((inputs, shown), (targets, asked)):
            layout = Layout(owner, sizes + self._ends, len(keys), self._length)
            flat, begin = layout.specials(self._alphabet)
            spread(values, begin, sizes, flat)
            sides += [self._alphabet.ids(flat.reshape(layout.segment_ids.shape)), layout]
        return encoder_decoder(*sides)

    def _contents(self, number: int) -> Contents:
        """What stands in the wanted rows of a batch."""
        group, index = divmod(number, self._batches_planned)
        with self._planning:
            if group not in self._planned:
                numbers = group * self._batches_planned + np.arange(self._batches_planned)
                rows = (numbers[:, None] * self._batch_size + self._rows).ravel()
                # The one before may still be read by another thread.
                kept = {n: c for n, c in self._planned.items() if n == group - 1}
                self._planned = {**kept, group: self._plan(rows)}
            owner, starts, residues = self._planned[group]
        begin = index * len(self._rows)
        here = slice(*np.searchsorted(owner, [begin, begin + len(self._rows)]))
        return owner[here] - begin, starts[here], residues[here]

    def _plan(self, rows: np.ndarray) -> Contents:
        """What stands in rows of the endless run."""
        epochs, within = np.divmod(rows, self.plan.rows)
        if not self._training:  # rows behind the only epoch stay empty
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
        """Copies pieces of proteins to where they stand."""
        shard = np.searchsorted(self._begins, starts, side="right") - 1
        starts = starts - self._begins[shard]
        letters, target = self._letters, flat.data
        ends, last = starts + residues, first + residues
        pieces = (shard, starts, ends, first, last)
        for s, a, b, c, d in zip(*(part.tolist() for part in pieces), strict=True):
            target[c:d] = letters[s][a:b]
