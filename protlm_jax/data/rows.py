"""Proteins of all lengths in rows of a few static shapes: windows, buckets, packing.

A model reads pieces of proteins, whole ones where they fit. XLA compiles once per shape, so that
rows have a few lengths: `one_a_row` rounds lengths up to buckets and gives each piece a row,
`packed` fills rows of one length with several pieces. A `Batch` says which piece stands where.
Nothing is cut off. Needs no JAX.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from protlm_jax.data.packing_plan import PackingPlan

_SMALLEST_BUCKET = 16
_STEP = 128  # packed rows are multiples of it, as attention's tiles are
_FEW = 1000  # pieces, for which rows of several lengths are tried


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
class Batch:
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
        """Which piece of its row each member is, from 1."""
        seen: Counter[int] = Counter()
        for row in self.rows:
            seen[row] += 1
            yield seen[row]


def windows(residues: int, limit: int | None) -> list[Window]:
    """Covers a protein by windows of at most `limit` residues that overlap by half.

    Two neighbours meet in the middle of their overlap, so that each residue comes from the window
    in which it is farthest from a cut (the ends of the protein itself are no cuts).
    """
    if limit is None or residues <= limit:
        return [Window(0, residues, 0, residues)]
    stride = max(1, limit // 2)
    starts = [*range(0, residues - limit, stride), residues - limit]
    meets = [(after + before + limit) // 2 for before, after in itertools.pairwise(starts)]
    kept = itertools.pairwise([0, *meets, residues])
    return [Window(start, start + limit, *own) for start, own in zip(starts, kept, strict=True)]


def window_counts(residues: np.ndarray, limit: int | None) -> np.ndarray:
    """How many windows `windows` makes of proteins of each length: [proteins] int64."""
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
) -> Iterator[Batch]:
    """Batches of one piece a row, longest first; all are full but the last.

    Rows that the pieces of one length leave over take shorter ones.

    Args:
        tokens: of each piece, special tokens included.
        shape_of: the shape of a full batch whose longest piece has so many tokens.
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
        yield Batch(members, places, [0] * len(members), Shape(rows, shape.length))
        first, before = first + len(members), shape


def packed(tokens: np.ndarray, shape: Shape) -> Iterator[Batch]:
    """Batches of packed rows, by best-fit decreasing (`packing_plan`).

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
        yield Batch(own, rows.tolist(), starts[begin:end].tolist(), shape)


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
