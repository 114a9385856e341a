"""How proteins of all lengths go through a model: windows, a few static shapes, full batches.

XLA compiles once per shape. Where attention asks no key of another protein (`packs`), rows of one
or two lengths are filled with proteins, and a few in a hundred tokens are padding. Elsewhere each
protein has a row, and the shapes are chosen once for all proteins, from their lengths: at most
eight, those that waste the fewest computations on padding, and fewer where compiling one more would
cost more than it saves.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from protlm_jax.evaluation.batching import bucket
from protlm_jax.models.config import ModelConfig

MOST_SHAPES = 8
_FEW = 1000  # pieces, of which rows of several lengths are tried
_STEP = 128  # packed rows are multiples of it, as attention's tiles are
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


@dataclass(frozen=True)
class Batch:
    """Rows that are run together.

    Attributes:
        rows: what stands in each row, in order: indices into the list of pieces that was batched.
            There may be fewer than the shape has.
        shape: of the batch.
    """

    rows: list[list[int]]
    shape: Shape

    @property
    def members(self) -> list[int]:
        return [member for row in self.rows for member in row]


def packs(config: ModelConfig) -> bool:
    """Whether several proteins share a row.

    They do where attention skips the keys of others, which is the `chunked` backend. Attention by
    relative distance (XLNet, Transformer-XL) scores all pairs of a row before it attends: there
    each protein has a row of its own.
    """
    return config.attention_backend == "chunked" and config.positions != "relative_xl"


def packed_shapes(tokens: np.ndarray, budget: int, devices: int) -> list[Shape]:
    """The shapes of packed batches, one row a device: of the budget, and of what is longer.

    Args:
        tokens: of each piece, special ones included; at least one.
        budget: tokens of a row, at most.
        devices: that share a batch.
    """
    longest, share = int(tokens.max()), -(-int(tokens.sum()) // devices)
    most = min(budget, max(longest, share))

    def shapes(short: int) -> list[Shape]:
        lengths = {-(-length // _STEP) * _STEP for length in (short, max(short, longest))}
        return [Shape(devices, length) for length in sorted(lengths)]

    def cost(short: int) -> int:
        return sum(batch.shape.length for batch in packed(tokens.tolist(), shapes(short)))

    if len(tokens) > _FEW:
        return shapes(most)
    # Of few pieces the last row may be nearly empty; somewhat shorter rows share them out evenly.
    fewest = max(most // 2, min(longest, most))
    return shapes(min(range(most, fewest - 1, -_STEP), key=cost))


def packed(tokens: Sequence[int], shapes: Sequence[Shape]) -> Iterator[Batch]:
    """Batches of packed rows, longest pieces first, each in the fullest row with room for it.

    Args:
        tokens: of each piece; members are indices into it.
        shapes: of `packed_shapes`; the longest holds every piece.
    """
    order = np.argsort(-np.asarray(tokens, np.int64), kind="stable").tolist()
    lengths = [shape.length for shape in shapes]
    rows: dict[Shape, list[list[int]]] = {shape: [] for shape in shapes}
    room: list[tuple[int, int, Shape]] = []  # tokens left in a row, its place, its shape
    for member in order:
        size = tokens[member]
        at = bisect.bisect_left(room, (size, -1), key=lambda left: left[:2])
        if at < len(room):
            left, row, shape = room.pop(at)
            rows[shape][row].append(member)
        else:
            shape = shapes[bisect.bisect_left(lengths, size)]
            left, row = shape.length, len(rows[shape])
            rows[shape].append([member])
        bisect.insort(room, (left - size, row, shape), key=lambda left: left[:2])
    for shape in reversed(shapes):
        for first in range(0, len(rows[shape]), shape.rows):
            yield Batch(rows[shape][first : first + shape.rows], shape)


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


def padded(tokens: Sequence[int], shapes: Sequence[Shape]) -> Iterator[Batch]:
    """Batches of one piece a row, longest first; all full but perhaps the last.

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
        yield Batch([[member] for member in members], shape)
        first += len(members)
