"""Rows of tokens from pieces of proteins, many at once and in few operations.

A row is first written in letters, one byte each: residues as themselves, special tokens as small
codes. Copying a piece is copying memory, hiding a residue is writing another byte, and one table
turns all of them into ids at the end.

    letters        1 M K T 2 1 A 2 0 0        1, 2: prefix, suffix    0: padding
    segment_ids    1 1 1 1 1 2 2 2 0 0
    positions      0 1 2 3 4 0 1 2 0 0
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from protlm_jax.data.corruption import HIDDEN, SENTINEL
from protlm_jax.vocabularies import RARE, Vocabulary


class Alphabet:
    """Ids of a vocabulary for the bytes of a row."""

    def __init__(self, vocabulary: Vocabulary, rare: Literal["X", "keep"] = "keep") -> None:
        table = vocabulary.letter_table.copy()
        if rare == "X":
            table[[ord(c) for c in RARE]] = table[ord("X")]
        specials = (vocabulary.pad_id, *vocabulary.prefix_ids, *vocabulary.suffix_ids)
        table[: len(specials)] = specials
        if vocabulary.mask_id is not None:
            table[HIDDEN] = vocabulary.mask_id
        sentinels = vocabulary.sentinel_ids[: 256 - SENTINEL]
        table[SENTINEL : SENTINEL + len(sentinels)] = sentinels
        middle = 1 + len(vocabulary.prefix_ids)
        self.prefix, self.suffix = range(1, middle), range(middle, len(specials))
        self._table = table
        self._bytes = bytes(table.clip(0).astype(np.uint8)) if table.max() < 256 else None

    def lacks(self, letter: str) -> bool:
        """Whether a residue has no id."""
        return bool(self._table[ord(letter)] < 0)

    def ids(self, letters: np.ndarray) -> np.ndarray:
        """int32 ids of uint8 letters, of the same shape."""
        if self._bytes is None:
            return self._table[letters]
        narrow = np.frombuffer(letters.tobytes().translate(self._bytes), np.uint8)
        return narrow.astype(np.int32).reshape(letters.shape)


class Layout:
    """Where segments stand in rows of equal length.

    Attributes:
      begin: int64 [segments], index of the first token of each in all rows, one after the other.
      sizes: int64 [segments], tokens of each.
      segment_ids, positions: int32 [rows, length].
    """

    def __init__(self, owner: np.ndarray, sizes: np.ndarray, rows: int, length: int) -> None:
        """Places segments of `sizes` tokens in rows `owner`, int64 [segments] each, ascending."""
        segments = np.bincount(owner, minlength=rows)
        after = np.cumsum(segments)
        ends = np.concatenate([[0], np.cumsum(sizes)])
        row_ends = ends[after]
        used = np.diff(row_ends, prepend=0)
        self.sizes = sizes
        self.begin = owner * length + ends[:-1] - (row_ends - used)[owner]
        # Runs of equal segment numbers: the segments of a row, and then its padding.
        runs = np.zeros((3, len(owner) + rows), np.int32)
        place, padding = np.arange(len(owner)) + owner, after + np.arange(rows)
        runs[0, place], runs[0, padding] = sizes, length - used
        runs[1, place] = np.arange(len(owner)) - (after - segments)[owner] + 1
        runs[2, place] = self.begin
        segment_ids = np.repeat(runs[1], runs[0])
        positions = np.arange(rows * length, dtype=np.int32)
        positions -= np.repeat(runs[2], runs[0])
        positions[segment_ids == 0] = 0
        self.segment_ids = segment_ids.reshape(rows, length)
        self.positions = positions.reshape(rows, length)

    def specials(self, alphabet: Alphabet) -> tuple[np.ndarray, np.ndarray]:
        """Rows with the specials of every segment, uint8 [rows * length], and where the residues
        of each begin, int64 [segments]."""
        flat = np.zeros(self.segment_ids.size, np.uint8)
        for place, code in enumerate(alphabet.prefix):
            flat[self.begin + place] = code
        last = self.begin + self.sizes - len(alphabet.suffix)
        for place, code in enumerate(alphabet.suffix):
            flat[last + place] = code
        return flat, self.begin + len(alphabet.prefix)


def spread(values: np.ndarray, begin: np.ndarray, sizes: np.ndarray, flat: np.ndarray) -> None:
    """Writes `values`, segments of `sizes` one after the other, to where they begin in `flat`."""
    flat[np.arange(len(values)) + np.repeat(begin - (np.cumsum(sizes) - sizes), sizes)] = values


def single_stack(tokens: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    """Clean rows: int32 [rows, length] each."""
    return {
        "input_tokens": tokens,
        "segment_ids": layout.segment_ids,
        "positions": layout.positions,
    }


def encoder_decoder(
    inputs: np.ndarray, encoder: Layout, targets: np.ndarray, decoder: Layout
) -> dict[str, np.ndarray]:
    """Rows of an encoder that sees `inputs`, and of a decoder that is asked for `targets`.

    The decoder's input is its target moved one to the right within each segment, after a 0; each
    target counts, the closing token too. int32 [rows, length] each.
    """
    shifted = np.zeros_like(targets)
    shifted[:, 1:] = targets[:, :-1]
    shifted[decoder.positions == 0] = 0
    return {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": encoder.segment_ids,
        "encoder_positions": encoder.positions,
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (decoder.segment_ids > 0).astype(np.int32),
        "decoder_segment_ids": decoder.segment_ids,
        "decoder_positions": decoder.positions,
    }
