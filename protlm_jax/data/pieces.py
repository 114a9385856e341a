"""The proteins of token files, sorted by length: what a packing plan draws from.

Where a row has no room for a whole protein, a rule says what becomes of it:

    crop     every epoch another piece of it, as long as the row and beginning anywhere
    chunk    all of it, in as few pieces as fit, of nearly equal length
    drop     nothing; it is left out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protlm_jax.data.config import LongProteins
from protlm_jax.data.token_files import TokenShard


@dataclass(frozen=True)
class Pieces:
    """Pieces of proteins, shorter ones first: eight bytes each.

    starts: int64 [pieces], the first residue of each, counted over all shards.
    first: int64 [room + 2]; pieces of n residues are starts[first[n] : first[n + 1]].
    whole: int32, residues of the protein of each piece of `room` residues, where a row shows a
      crop of it; empty where nothing is cropped.
    longer: proteins that do not fit a row.
    """

    starts: np.ndarray
    first: np.ndarray
    whole: np.ndarray
    longer: int

    @classmethod
    def of(cls, shards: Sequence[TokenShard], room: int, rule: LongProteins) -> Pieces:
        """Sorts the proteins of some shards, cut to at most `room` residues."""
        lengths = np.concatenate([np.diff(s.offsets).astype(np.int32) for s in shards])
        begins = np.cumsum([0] + [len(s.letters) for s in shards[:-1]])
        starts = np.concatenate(
            [s.offsets[:-1] + begin for s, begin in zip(shards, begins, strict=True)]
        )
        too_long = lengths > room
        longer = int(too_long.sum())
        if rule == "chunk":
            starts, lengths = cut_evenly(starts, lengths, room)
        elif rule == "drop":
            starts, lengths = starts[~too_long], lengths[~too_long]
        # Small numbers are sorted by their digits, in time that grows with their number alone.
        classes = np.minimum(lengths, room).astype(np.min_scalar_type(room))
        order = np.argsort(classes, kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(classes, minlength=room + 1))])
        whole = lengths[order[first[room] :]] if rule == "crop" else lengths[:0]
        return cls(starts[order], first, whole, longer)

    @property
    def counts(self) -> np.ndarray:
        """int64 [room + 1]: pieces of each length."""
        return np.diff(self.first)


def cut_evenly(starts: np.ndarray, lengths: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts (int64) and lengths (int32) of the pieces of proteins, as few of each as fit.

    (Filling row after row would leave a last piece of a few residues, read without context.)
    """
    total = lengths.astype(np.int64)
    parts = (total + room - 1) // room
    owner = np.repeat(np.arange(len(parts)), parts)
    part = np.arange(len(owner)) - (np.cumsum(parts) - parts)[owner]
    total, parts = total[owner], parts[owner]
    begin, end = part * total // parts, (part + 1) * total // parts
    return starts[owner] + begin, (end - begin).astype(np.int32)
