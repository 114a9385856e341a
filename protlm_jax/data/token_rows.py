"""Rows of tokens from pieces of proteins, many at once and in few operations.

A row is first written in letters, one byte each: residues as themselves, special tokens as small
codes. Copying a piece is then copying memory, hiding a residue is writing another byte, and one
table turns all of them into ids at the end.

    letters        1 M K T 2 1 A 2 0 0        1, 2: prefix, suffix    0: padding
    segment_ids    1 1 1 1 1 2 2 2 0 0
    positions      0 1 2 3 4 0 1 2 0 0

Needs no TensorFlow.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from protlm_jax.data.orders import below, words_of
from protlm_jax.vocabularies import AMINO_ACIDS, Vocabulary

NOISE_DENSITY = 0.15
RANDOM_SHARE = 0.1

_RARE = "UZOB"
_RESIDUES = np.frombuffer(AMINO_ACIDS.encode(), np.uint8)
_FIRST_LETTER = ord("A")
_HIDDEN = _FIRST_LETTER - 1
_AT_ONCE = 64
_RANKS = np.full(256, -1)
_RANKS[_RESIDUES] = np.arange(len(_RESIDUES))


class Alphabet:
    """What the bytes of a row stand for in a vocabulary."""

    def __init__(self, vocabulary: Vocabulary, rare: Literal["X", "keep"]) -> None:
        table = vocabulary.letter_table.copy()
        if rare == "X":
            table[[ord(c) for c in _RARE]] = table[ord("X")]
        specials = (vocabulary.pad_id, *vocabulary.prefix_ids, *vocabulary.suffix_ids)
        table[: len(specials)] = specials
        if vocabulary.mask_id is not None:
            table[_HIDDEN] = vocabulary.mask_id
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
    """Where pieces stand in rows of equal length.

    Attributes:
      begin: int64 [pieces], index of the first token of each in all rows, one after the other.
      segment_ids, positions: int32 [rows, length].
    """

    def __init__(self, owner: np.ndarray, sizes: np.ndarray, rows: int, length: int) -> None:
        """Places pieces of `sizes` tokens in rows `owner`, int64 [pieces] each, rows ascending."""
        pieces = np.bincount(owner, minlength=rows)
        after = np.cumsum(pieces)
        ends = np.concatenate([[0], np.cumsum(sizes)])
        row_ends = ends[after]
        used = np.diff(row_ends, prepend=0)
        self.begin = owner * length + ends[:-1] - (row_ends - used)[owner]
        # Runs of equal segment numbers: the pieces of a row, and then its padding.
        runs = np.zeros((3, len(owner) + rows), np.int32)
        place, padding = np.arange(len(owner)) + owner, after + np.arange(rows)
        runs[0, place], runs[0, padding] = sizes, length - used
        runs[1, place] = np.arange(len(owner)) - (after - pieces)[owner] + 1
        runs[2, place] = self.begin
        segment_ids = np.repeat(runs[1], runs[0])
        positions = np.arange(rows * length, dtype=np.int32)
        positions -= np.repeat(runs[2], runs[0])
        positions[segment_ids == 0] = 0
        self.segment_ids = segment_ids.reshape(rows, length)
        self.positions = positions.reshape(rows, length)


def single_stack(letters: np.ndarray, layout: Layout, alphabet: Alphabet) -> dict[str, np.ndarray]:
    """Clean rows: int32 [rows, length] each."""
    return {
        "input_tokens": alphabet.ids(letters),
        "segment_ids": layout.segment_ids,
        "positions": layout.positions,
    }


def encoder_decoder(
    letters: np.ndarray, hidden: np.ndarray, layout: Layout, alphabet: Alphabet
) -> dict[str, np.ndarray]:
    """Rows of an encoder that sees `hidden`, and of a decoder that is asked for `letters`.

    The decoder's input is its target moved one to the right within each segment, after a 0; each
    target counts, the closing token too. int32 [rows, length] each.
    """
    targets = alphabet.ids(letters)
    shifted = np.zeros_like(targets)
    shifted[:, 1:] = targets[:, :-1]
    shifted[layout.positions == 0] = 0
    return {
        "encoder_input_tokens": alphabet.ids(hidden),
        "encoder_segment_ids": layout.segment_ids,
        "encoder_positions": layout.positions,
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (layout.segment_ids > 0).astype(np.int32),
        "decoder_segment_ids": layout.segment_ids,
        "decoder_positions": layout.positions,
    }


def prott5_noise(letters: np.ndarray, keys: np.ndarray, random_share: float) -> np.ndarray:
    """ProtT5's denoising (see `denoising.py`) of rows in letters, from a key for each row.

    Args:
      letters: uint8 [rows, length].
      keys: uint64 [rows].
      random_share: share of the chosen residues that become another amino acid.
    Returns:
      uint8 [rows, length]: chosen residues are the byte of `Vocabulary.mask_id`, or other letters.
    """
    hidden = letters.copy()
    shares = NOISE_DENSITY, NOISE_DENSITY * random_share
    limits = [np.uint64(round(share * 2**64)) for share in shares]
    # A few rows at a time, so that their words stay in the processor's cache.
    for begin in range(0, len(letters), _AT_ONCE):
        part = hidden[begin : begin + _AT_ONCE].reshape(-1)
        words = words_of(keys[begin : begin + _AT_ONCE], letters.shape[1]).reshape(-1)
        residue = part >= _FIRST_LETTER
        chosen, swapped = (residue & (words < limit) for limit in limits)
        places = np.flatnonzero(swapped)
        # What decided that a residue is chosen are the high bits; the low ones are still free.
        others = _others(part[places], words[places] << np.uint64(32))
        np.copyto(part, _HIDDEN, where=chosen)
        part[places] = others
    return hidden


def _others(letters: np.ndarray, words: np.ndarray) -> np.ndarray:
    """For each residue another amino acid, all equally likely, from random words."""
    # A step of 1 to 19 around the ring of 20 never comes back to where it began; a residue that is
    # not in the ring (X) has all 20 before it, from rank -1.
    rank = _RANKS[letters]
    choices = np.where(rank < 0, 20, 19)
    return _RESIDUES[(rank + 1 + below(words, choices)) % 20]
