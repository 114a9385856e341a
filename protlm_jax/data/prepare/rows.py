"""Proteins on their way into a shard, and how they lie on disk meanwhile: columns, not pickles.

    int64 [8]             number of rows, and bytes of each text column
    uint8 [rows, 16]      keys
    int64 [4, rows]       source and line of the position, members, taxon_id
    int32 [7, rows]       characters of each text
    the 7 columns of texts, each joined, in UTF-8

All numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from protlm_jax.data.prepare.manifest import Position

_KEY = 16
_NUMBERS = 4
_TEXTS = 7


class Row(NamedTuple):
    """What is kept of a protein's entry, and where it belongs.

    key: of `order_key`. side: of the split. position: in the input.
    """

    key: bytes
    side: str
    position: Position
    id: str
    sequence: str
    description: str
    members: int
    taxon: str
    taxon_id: int
    representative: str
    uniref50: str


def to_bytes(rows: Sequence[Row]) -> bytes:
    """Rows, in their order; nothing for none."""
    if not rows:
        return b""
    keys, sides, positions, ids, sequences, said, members, taxa, numbers, *names = zip(
        *rows, strict=True
    )
    texts = (sides, ids, sequences, said, taxa, *names)
    integers = np.array([*zip(*positions, strict=True), members, numbers], "<i8")
    lengths = np.array([list(map(len, text)) for text in texts], "<i4")
    columns = ["".join(text).encode() for text in texts]
    sizes = np.array([len(rows), *map(len, columns)], "<i8")
    parts = [sizes.tobytes(), *keys, integers.tobytes(), lengths.tobytes(), *columns]
    return b"".join(parts)


def from_bytes(data: bytes) -> list[Row]:
    """The rows of `to_bytes`.

    Raises:
        ValueError: these are other bytes.
    """
    if not data:
        return []
    number, *sizes = np.frombuffer(data, "<i8", 1 + _TEXTS).tolist()
    at = 8 * (1 + _TEXTS)
    each = _KEY + 8 * _NUMBERS + 4 * _TEXTS
    if min(number, *sizes) < 0 or at + each * number + sum(sizes) != len(data):
        raise ValueError("the sizes do not add up")
    keys = [data[i : i + _KEY] for i in range(at, at + _KEY * number, _KEY)]
    at += _KEY * number
    integers = np.frombuffer(data, "<i8", _NUMBERS * number, at).reshape(_NUMBERS, number)
    at += 8 * _NUMBERS * number
    lengths = np.frombuffer(data, "<i4", _TEXTS * number, at).reshape(_TEXTS, number)
    at += 4 * _TEXTS * number
    texts = []
    for size, length in zip(sizes, lengths, strict=True):
        column = data[at : at + size].decode()
        ends = [0, *np.cumsum(length, dtype=np.int64).tolist()]
        texts.append([column[a:b] for a, b in pairwise(ends)])
        at += size
    sides, ids, sequences, said, taxa, *names = texts
    source, line, members, numbers = integers.tolist()
    positions = zip(source, line, strict=True)
    columns = (keys, sides, positions, ids, sequences, said, members, taxa, numbers, *names)
    return [Row(*row) for row in zip(*columns, strict=True)]
