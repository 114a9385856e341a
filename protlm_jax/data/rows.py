"""How pieces of proteins are arranged in rows of a few static shapes: windows, buckets, packing.

XLA compiles once per shape, so rows have a few lengths: `one_a_row` rounds lengths up to buckets
and gives each piece a row; `packed` fills rows of one length with several pieces, by the
`PackingPlan` that training uses too. A `RowBatch` holds the place of each piece. Nothing is cut
off. Needs no JAX.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_SMALLEST_BUCKET = 16
_STEP = 128  # packed rows are multiples of it, as attention's tiles are
_FEW = 1000  # up to so many pieces, rows of several lengths are tried


class Window(NamedTuple):
    """A stretch [start, stop) of a protein, of which [keep_start, keep_stop) is kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


class Shape(NamedTuple):
    """Rows and tokens per row of a batch."""

    rows: int
    length: int


@dataclass(frozen=True)
class RowBatch:
    """Pieces that go through a model together.

    Attributes:
        members: indices into the list of pieces that was batched.
        rows: the row of each member.
        starts: the token of its row at which each member begins.
        shape: of the batch; rows may be empty.
    """

    members: list[int]
    rows: list[int]
    starts: list[int]
    shape: Shape

    def fill(self, values: Sequence[np.ndarray], empty: int = 0) -> np.ndarray:
        """int32 [rows, length] with each member's values at its place, `empty` elsewhere."""
        out = np.full(self.shape, empty, np.int32)
        for row, start, own in zip(self.rows, self.starts, values, strict=True):
            out[row, start : start + len(own)] = own
        return out

    @property
    def segments(self) -> Iterator[int]:
        """The number of each member in its row, from 1."""
        seen: Counter[int] = Counter()
        for row in self.rows:
            seen[row] += 1
            yield seen[row]


def windows(residues: int, limit: int | None) -> list[Window]:
    """Covers a protein by windows of at most `limit` residues that overlap by half.

    Two neighbours meet in the middle of their overlap, so that each residue comes from the window
    in which it is farthest from a cut (the ends of the protein are not cuts).
    """
    if limit is None or residues <= limit:
        return [Window(0, residues, 0, residues)]
    stride = max(1, limit // 2)
    starts = [*range(0, residues - limit, stride), residues - limit]
    meets = [(after + before + limit) // 2 for before, after in itertools.pairwise(starts)]
    kept = itertools.pairwise([0, *meets, residues])
    return [Window(start, start + limit, *own) for start, own in zip(starts, kept, strict=True)]


def window_counts(residues: np.ndarray, limit: int | None) -> np.ndarray:
    """int64 [proteins]: the number of `windows` of proteins of each length."""
    if limit is None:
        return np.ones(len(residues), np.int64)
    more = -(-(residues.astype(np.int64) - limit) // max(1, limit // 2))
    return 1 + np.maximum(0, more)


def even_pieces(residues: int, limit: int | None) -> list[tuple[int, int]]:
    """Cuts a protein into the fewest pieces of at most `limit` residues, as equal as can be."""
    count = 1 if limit is None else -(-residues // limit)
    return list(itertools.pairwise(residues * i // count for i in range(count + 1)))


def bucket(tokens: int, cap: int | None = None, sizes: int = 2) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96, 128, ... that holds `tokens`, at most `cap`.

    `sizes` is how many there are from one power of two to the next: 2 wastes a sixth of a batch on
    padding, 8 a twentieth and takes up to four times the compilations. All are multiples of 8.
    """
    step = max(8, (1 << (tokens - 1).bit_length()) // (2 * sizes))
    size = max(_SMALLEST_BUCKET, -(-tokens // step) * step)
    return size if cap is None else min(size, cap)


def one_a_row(
    tokens: Sequence[int],
    shape_of: Callable[[int], Shape],
    *,
    multiple: int = 1,
    last_full: bool = False,
) -> Iterator[RowBatch]:
    """Batches of one piece a row, longest first; all are full but the last.

    Rows left over by the pieces of one length take shorter ones.

    Args:
        tokens: of each piece, special tokens included.
        shape_of: from the tokens of the longest piece to the shape of a full batch.
        multiple: rows are a multiple of it.
        last_full: the last batch has the rows of a full one; otherwise, where no full batch has
            its length, only a power of four: few shapes again.
    """
    order = np.argsort(-np.asarray(tokens, np.int64), kind="stable").tolist()
    first, before = 0, Shape(0, 0)
    while first < len(order):
        shape = shape_of(tokens[order[first]])
        members = order[first : first + shape.rows]
        rows = shape.rows
        if shape != before and not last_full:
            rows = min(rows, 4 ** math.ceil(math.log(len(members), 4)))
        rows = -(-rows // multiple) * multiple
        places = list(range(len(members)))
        yield RowBatch(members, places, [0] * len(members), Shape(rows, shape.length))
        first, before = first + len(members), shape


Pattern = tuple[tuple[int, int], ...]
"""Lengths in a row, longest first, each with its number of copies."""


class Places(NamedTuple):
    """The pieces in some rows, row by row: int64 [places] each.

    row: index among the given rows, ascending. length: of the piece, in residues. rank: its
    number among the pieces of that length, before the epoch's permutation.
    """

    row: np.ndarray
    length: np.ndarray
    rank: np.ndarray


class PackingPlan:
    """The rows of one epoch, from a histogram of lengths (Krell, Kosec, Perez & Fitzgibbon 2021,
    "Efficient sequence packing without cross-contamination", arXiv:2107.02027).

    Packing depends on lengths alone, so the plan is a list of patterns (lengths that make a row)
    with the number of rows of each, whatever the number of proteins:

        lengths    500 x 3,  300 x 2,  200 x 5      rows of 512
        patterns   (500) x 3,  (300, 200) x 2,  (200, 200) x 1,  (200) x 1

    Best-fit decreasing, all pieces of a length at once: at most three new patterns per length. The
    contents of row r follow from r, without the rows before it.

    Attributes:
      rows: rows per epoch.
      counts: int64 [longest + 1], pieces of each length, index 0 unused.
      utilisation: share of the tokens of these rows that are not padding.
    """

    def __init__(
        self,
        counts: np.ndarray,
        row_length: int,
        specials: int | np.ndarray,
        *,
        several: bool = True,
    ) -> None:
        """Plans rows of `row_length` tokens for `counts[n]` pieces of n residues, n >= 1.

        Args:
          counts: int64 [longest + 1]; longest + specials <= row_length.
          row_length: tokens per row.
          specials: tokens of each piece minus its residues; an array [longest + 1] where this
            depends on the length (negative where a piece has fewer tokens than residues).
          several: False gives every piece its own row.
        """
        self.counts = np.asarray(counts, np.int64)
        room = row_length if several else 0
        sizes = np.arange(len(self.counts)) + specials
        made = list(_best_fit_decreasing(self.counts, room, sizes.tolist()))
        self._first_row = np.concatenate([[0], np.cumsum([m for _, m in made])]).astype(np.int64)
        self.rows = int(self._first_row[-1])
        tokens = int((sizes * self.counts)[1:].sum())
        self.utilisation = tokens / (self.rows * row_length) if self.rows else 0.0
        places = [sum(copies for _, copies in pattern) for pattern, _ in made]
        self._first_place = np.concatenate([[0], np.cumsum(places)]).astype(np.int64)
        self._place = _pattern_places(made, len(self.counts))

    def places(self, rows: np.ndarray) -> Places:
        """The contents of rows `rows`, int64 [n] in 0 to self.rows - 1."""
        pattern = np.searchsorted(self._first_row, rows, side="right") - 1
        begin = self._first_place[pattern]
        sizes = self._first_place[pattern + 1] - begin
        ends = np.cumsum(sizes)
        owner = np.repeat(np.arange(len(rows)), sizes)
        place = np.arange(len(owner)) + (begin - ends + sizes)[owner]
        length, copies, copy, before = self._place[:, place]
        rank = before + (rows - self._first_row[pattern])[owner] * copies + copy
        return Places(owner, length, rank)

    def rows_of(self, lengths: np.ndarray) -> np.ndarray:
        """int64 [n]: the row of each of n pieces with the histogram `counts`. Rows are numbered by
        their first piece, so that they are not sorted by length."""
        order = np.argsort(lengths, kind="stable")
        first = np.cumsum(self.counts) - self.counts
        places = self.places(np.arange(self.rows))
        row = np.empty(len(lengths), np.int64)
        row[order[first[places.length] + places.rank]] = places.row
        _, opened, number = np.unique(row, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(opened))[number]


def _best_fit_decreasing(
    counts: np.ndarray, room: int, sizes: list[int]
) -> Iterator[tuple[Pattern, int]]:
    """Patterns and the number of rows of each, at least 1."""
    # By free tokens: the patterns of the rows with so many, and how many rows.
    open_rows: dict[int, list[tuple[Pattern, int]]] = {}
    for length in range(len(counts) - 1, 0, -1):
        left, size = int(counts[length]), sizes[length]
        while left:
            free = min((f for f in open_rows if f >= size), default=None)
            if free is None:
                # Enough rows for all pieces that are left: rows without a piece are never kept.
                free, rows = max(room, size), left
                pattern: Pattern = ()
            else:
                pattern, rows = open_rows[free].pop()
                if not open_rows[free]:
                    del open_rows[free]
            copies = min(free // size, left)
            filled = min(rows, left // copies)
            parts = [(copies, filled)]
            left -= copies * filled
            if filled < rows and left:
                parts.append((left, 1))
                left = 0
            for number, times in parts:
                entry = ((*pattern, (length, number)), times)
                open_rows.setdefault(free - number * size, []).append(entry)
            if pattern and (rest := rows - sum(times for _, times in parts)):
                open_rows.setdefault(free, []).append((pattern, rest))
    for free in sorted(open_rows):
        yield from open_rows[free]


def _pattern_places(patterns: list[tuple[Pattern, int]], classes: int) -> np.ndarray:
    """int64 [4, places], per place of each pattern: length; copies of that length in the pattern;
    which of these it is; pieces of that length in the rows of earlier patterns."""
    used = [0] * classes
    table: list[tuple[int, int, int, int]] = []
    for pattern, rows in patterns:
        for length, copies in pattern:
            table += [(length, copies, copy, used[length]) for copy in range(copies)]
            used[length] += copies * rows
    return np.array(table, np.int64).reshape(-1, 4).T


def packed(tokens: np.ndarray, shape: Shape) -> Iterator[RowBatch]:
    """Batches of packed rows, by a `PackingPlan`.

    Args:
        tokens: [pieces] int, special tokens included, none longer than a row.
        shape: of all batches.
    """
    counts = np.bincount(tokens)
    plan = PackingPlan(counts, shape.length, 0)
    places = plan.places(np.arange(plan.rows))
    by_length = np.argsort(tokens, kind="stable")
    members = by_length[(np.cumsum(counts) - counts)[places.length] + places.rank]
    first = np.searchsorted(places.row, np.arange(plan.rows))
    before = np.cumsum(places.length) - places.length
    starts = before - before[first][places.row]
    cuts = np.searchsorted(places.row, np.arange(0, plan.rows + shape.rows, shape.rows))
    for begin, end in itertools.pairwise(cuts.tolist()):
        rows = places.row[begin:end] % shape.rows
        own = members[begin:end].tolist()
        yield RowBatch(own, rows.tolist(), starts[begin:end].tolist(), shape)


def packed_length(tokens: np.ndarray, budget: int, rows: int) -> int:
    """Tokens in packed rows: about `budget`, or what the longest piece needs.

    Of few pieces the last row may be nearly empty; somewhat shorter rows share them out evenly.
    """
    longest = int(tokens.max())
    most = max(longest, min(budget, -(-int(tokens.sum()) // rows)))
    most = -(-most // _STEP) * _STEP
    if len(tokens) > _FEW:
        return most

    def computed(length: int) -> int:
        return length * -(-PackingPlan(np.bincount(tokens), length, 0).rows // rows)

    return min(range(most, max(most // 2, longest) - 1, -_STEP), key=computed)
