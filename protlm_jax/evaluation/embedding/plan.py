"""How proteins of all lengths go through a model: windows, a few static shapes, full batches.

XLA compiles once per shape. So the shapes are chosen once for all proteins, from their lengths: at
most eight, those that waste the fewest computations on padding, and fewer where compiling one more
would cost more than it saves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from protlm_jax.evaluation.batching import Group, bucket

MOST_SHAPES = 8
_CANDIDATES = 16  # lengths of rows to choose from, between one power of two and the next


@dataclass(frozen=True)
class Window:
    """A stretch [start, stop) of a protein, of which [keep_start, keep_stop) is kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


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
    bounds = [0, *meets, residues]
    return [
        Window(start, start + limit, bounds[i], bounds[i + 1]) for i, start in enumerate(starts)
    ]


def window_counts(residues: np.ndarray, limit: int | None) -> np.ndarray:
    """How many windows `windows` makes of proteins of each length: [proteins] int64."""
    if limit is None:
        return np.ones(len(residues), np.int64)
    more = -(-(residues.astype(np.int64) - limit) // max(1, limit // 2))
    return 1 + np.maximum(0, more)


@dataclass(frozen=True)
class Shape:
    """Rows and tokens of a batch."""

    rows: int
    length: int


def choose_shapes(
    tokens: np.ndarray,
    *,
    rows_of: Callable[[int], int],
    width: int,
    compilation: int = 4,
    cap: int | None = None,
    multiple: int = 1,
) -> list[Shape]:
    """The shapes of all batches, shortest first.

    Args:
        tokens: of each row that will be run, special ones included; at least one.
        rows_of: how many rows of a length make a full batch.
        width: d_model, by which attention's part of the work is weighed.
        compilation: full batches of short rows that run in the time of one compilation.
        cap: the longest row that the model takes.
        multiple: rows are a multiple of it, the number of devices.
    """
    sizes, of_size = np.unique(tokens, return_counts=True)
    rounded = [bucket(size, cap, _CANDIDATES) for size in sizes.tolist()]
    lengths, inverse = np.unique(rounded, return_inverse=True)
    counts = np.bincount(inverse, of_size)
    work = lengths * (1.0 + lengths / (6.0 * width))  # of one row: projections, and attention
    each = compilation * min(rows_of(int(n)) * w for n, w in zip(lengths, work, strict=True))
    shapes = []
    first = 0
    for last in _cheapest(counts, work, each):
        members = int(counts[first : last + 1].sum())
        length = int(lengths[last])
        rows = min(rows_of(length), members)
        shapes.append(Shape(-(-rows // multiple) * multiple, length))
        first = last + 1
    return shapes


def _cheapest(counts: np.ndarray, work: np.ndarray, compilation: float) -> list[int]:
    """Which lengths to keep, ascending, the last among them: each row goes to the next one kept.

    Dynamic programming over how many are kept and which is the last.
    """
    size = len(counts)
    total = np.concatenate([[0.0], np.cumsum(counts)])
    # joint[i, j]: the cost of running lengths i..j as rows of length j.
    joint = (total[None, 1:] - total[:-1, None]) * work[None, :] + compilation
    joint[np.tril_indices(size, -1)] = np.inf
    best, cuts = [joint[0]], [np.zeros(size, np.int64)]
    for _ in range(min(MOST_SHAPES, size) - 1):
        before = np.concatenate([[np.inf], best[-1][:-1]])  # what is run before length i begins
        costs = before[:, None] + joint
        cuts.append(np.argmin(costs, axis=0))
        best.append(np.min(costs, axis=0))
    kept = int(np.argmin([b[-1] for b in best]))
    chosen = [size - 1]
    for level in range(kept, 0, -1):
        chosen.append(int(cuts[level][chosen[-1]]) - 1)
    return chosen[::-1]


def batches(tokens: Sequence[int], shapes: Sequence[Shape]) -> Iterator[Group]:
    """Batches of rows, longest first; all full but perhaps the last.

    Rows that a batch has left over are filled with shorter proteins, which costs nothing.

    Args:
        tokens: of each row; members are indices into it.
        shapes: of `choose_shapes`; the longest holds every row.
    """
    order = np.argsort(-np.asarray(tokens, np.int64), kind="stable").tolist()
    lengths = np.array([shape.length for shape in shapes])
    first = 0
    while first < len(order):
        shape = shapes[int(np.searchsorted(lengths, tokens[order[first]]))]
        members = order[first : first + shape.rows]
        yield Group(members, shape.rows, shape.length)
        first += len(members)
