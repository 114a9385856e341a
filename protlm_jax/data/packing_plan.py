"""Which lengths stand together in a row: a plan from a histogram, made once and never stored.

How well proteins fill rows depends on how long they are, and on nothing else. So the packer here
never sees a protein. It takes the number of proteins of each length and answers with patterns,
lengths that make a row, and how many rows are of each pattern (Krell, Kosec, Perez & Fitzgibbon
2021, "Efficient sequence packing without cross-contamination", arXiv:2107.02027):

    lengths    500 x 3,  300 x 2,  200 x 5      rows of 512
    patterns   (500) x 3,  (300, 200) x 2,  (200, 200) x 1,  (200) x 1

Longest first, each into the fullest row that still has room (best-fit decreasing), all proteins of
a length at once: at most three new patterns per length, a tenth of a second for rows of 2,048,
whether there are a thousand proteins or two thousand millions.

With the plan, row r of an epoch is found without the rows before it: which pattern it has, and for
each of its places the how-many-eth protein of that length stands there. Which protein *is* the k-th
of its length, and which row of the plan comes r-th, is a permutation of its own in every epoch
(`orders.py`), and so crops, neighbours and order are new each time while the rows per epoch stay
as many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Pattern = tuple[tuple[int, int], ...]
"""Lengths in a row, longest first, each with its number of copies."""


@dataclass(frozen=True)
class Places:
    """What stands in some rows, row by row: int64 [places] each.

    row: index among the rows that were asked for, ascending.
    length: residues of the piece, the class it is drawn from.
    rank: which one of its class, before the epoch's permutation.
    """

    row: np.ndarray
    length: np.ndarray
    rank: np.ndarray


class PackingPlan:
    """The rows of one epoch.

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
          specials: tokens that each piece has beside its residues; an array [longest + 1] where
            this depends on its length, and negative where it has fewer tokens than residues.
          several: False gives every piece a row of its own.
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
        # Per place of each pattern: length; copies of that length in the pattern; which of these
        # it is; pieces of that length in the rows of earlier patterns.
        self._place = _places(made, len(self.counts))

    def places(self, rows: np.ndarray) -> Places:
        """The contents of rows `rows`, int64 [n] in 0 to self.rows - 1, each found directly."""
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
        """int64 [n]: the row of each of n pieces whose histogram `counts` is. Rows are numbered in
        the order of the first piece of each, so that they are not sorted by length."""
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
    """Patterns and the number of rows of each, all of them at least 1."""
    # By free tokens: the patterns of the rows that have so many, and how many rows.
    open_rows: dict[int, list[tuple[Pattern, int]]] = {}
    for length in range(len(counts) - 1, 0, -1):
        left, size = int(counts[length]), sizes[length]
        while left:
            free = min((f for f in open_rows if f >= size), default=None)
            if free is None:
                # Rows enough for all that are left: what is not needed is never opened.
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


def _places(patterns: list[tuple[Pattern, int]], classes: int) -> np.ndarray:
    """int64 [4, places]; see `PackingPlan`."""
    used = [0] * classes
    table: list[tuple[int, int, int, int]] = []
    for pattern, rows in patterns:
        for length, copies in pattern:
            table += [(length, copies, copy, used[length]) for copy in range(copies)]
            used[length] += copies * rows
    return np.array(table, np.int64).reshape(-1, 4).T
