"""Rows of tokens from pieces of proteins, clean or corrupted; NumPy only.

A row is first written in letters, one byte each: residues as themselves, special tokens as small
codes. Copying a piece is copying memory, hiding a residue is writing another byte, and one table
(`Alphabet`) turns all of them into ids at the end.

    letters        1 M K T 2 1 A 2 0 0        1, 2: prefix, suffix    0: padding
    segment_ids    1 1 1 1 1 2 2 2 0 0
    positions      0 1 2 3 4 0 1 2 0 0

Hidden residues are codes that no letter has: `HIDDEN` is the vocabulary's one hiding token,
`SENTINEL + i` is <extra_id_i>. Every random choice is a function of a key.

**prott5**, the denoising of ProtT5, not T5's span corruption: each residue is chosen with
probability 0.15; 90 % of the chosen become the hiding token and 10 % one of the other 19 amino
acids. The target is the whole sequence (ProtT5-XL-BFD model card, Elnaggar et al. 2021; T5 calls it
`iid_15_r10s90_f`, but draws the random tenth from all ids, sentinels included):

    input    M K <extra_id_0> A Y W A K </s>
    target   M K T            A Y I A K </s>

**span3** and **ankh**: each hidden span is replaced by its own sentinel, and is the target:

    protein  M K T A Y I A K Q R
    input    M K <extra_id_0> I A K <extra_id_1> </s>
    target   <extra_id_0> T A Y <extra_id_1> Q R </s>

`span3` hides 15 % in spans of 3 on average (Raffel et al. 2020, section 3.1.4). As in T5's code,
the numbers of hidden residues and of spans follow from the length, and all ways to cut that many
are equally likely; a protein begins with a shown residue and ends with a hidden one, and there is
no closing sentinel. Each protein is corrupted by itself, where T5 joins pieces of several texts.

`ankh` hides 20 % in spans of one residue (1-gram partial demasking, Elnaggar et al. 2023,
arXiv:2301.06568). The form of input and target and the 20 % agree with the authors' example for
Ankh3 (M<0>AY<1>LI<2>SRG<3> asks for <0>K<1>V<2>N<3>P). Their code is not published; positions are
drawn here as T5 draws spans of length 1.

T5's code counts past its last sentinel into the ids of residues. Here no piece is longer than its
sentinels allow: 502 residues for `ankh`, 2,009 for `span3`, with the 100 sentinels of ProtT5.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from protlm_jax.data.orders import below, keys_of, words_of
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS, RARE, Vocabulary

NOISE_DENSITY = 0.15
RANDOM_SHARE = 0.1

HIDDEN = ord("A") - 1
SENTINEL = 128

_RESIDUES = np.frombuffer(AMINO_ACIDS.encode(), np.uint8)
_RANKS = np.full(256, -1)
_RANKS[_RESIDUES] = np.arange(len(_RESIDUES))
_AT_ONCE = 64


class Alphabet:
    """The ids of a vocabulary for the bytes of a row."""

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
        """int32 ids of letters, of the same shape."""
        if self._bytes is None:
            return self._table[letters]
        narrow = np.frombuffer(letters.tobytes().translate(self._bytes), np.uint8)
        return narrow.astype(np.int32).reshape(letters.shape)


class Layout:
    """The places of segments in rows of equal length.

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

    def specials(
        self, alphabet: Alphabet, dtype: np.typing.DTypeLike = np.uint8
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows with the specials of every segment, of the letters' dtype [rows * length], and where
        the residues of each begin, int64 [segments]."""
        flat = np.zeros(self.segment_ids.size, dtype)
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
    """Rows of an encoder that reads `inputs` and a decoder that predicts `targets`.

    The decoder's input is its target shifted right by one within each segment, after a 0; every
    target counts, the closing token included. int32 [rows, length] each.
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


def prott5_noise(letters: np.ndarray, keys: np.ndarray, random_share: float) -> np.ndarray:
    """ProtT5's denoising of rows.

    Args:
      letters: uint8 [rows, length]; bytes below "A" are never hidden.
      keys: uint64 [rows].
      random_share: share of the chosen residues that become another amino acid; 0 for held-out
        proteins, whose score must not depend on residues that the model sees.
    Returns:
      uint8 [rows, length].
    """
    hidden = letters.copy()
    shares = NOISE_DENSITY, NOISE_DENSITY * random_share
    limits = [np.uint64(round(share * 2**64)) for share in shares]
    # A few rows at a time: their words stay in the processor's cache.
    for begin in range(0, len(letters), _AT_ONCE):
        part = hidden[begin : begin + _AT_ONCE].reshape(-1)
        words = words_of(keys[begin : begin + _AT_ONCE], letters.shape[1]).reshape(-1)
        residue = part >= ord("A")
        chosen, swapped = (residue & (words < limit) for limit in limits)
        places = np.flatnonzero(swapped)
        # The high bits decided that a residue is chosen; the low ones are still free.
        others = _others(part[places], words[places] << np.uint64(32))
        np.copyto(part, HIDDEN, where=chosen)
        part[places] = others
    return hidden


def _others(letters: np.ndarray, words: np.ndarray) -> np.ndarray:
    """For each residue another amino acid, all equally likely, from random words."""
    # A step of 1 to 19 around the ring of 20 never returns to its start; a residue outside the ring
    # (X) takes 1 to 20 steps from rank -1.
    rank = _RANKS[letters]
    choices = np.where(rank < 0, 20, 19)
    return _RESIDUES[(rank + 1 + below(words, choices)) % 20]


@dataclasses.dataclass(frozen=True)
class SpanNoise:
    """The share of the residues that is hidden, and the mean length of a span."""

    density: float
    mean_length: float

    def counts(self, residues: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hidden residues and spans of proteins with so many residues: int64, as T5 rounds them.

        T5 counts a protein of one residue as one of two.
        """
        total = np.maximum(residues, 2)
        # In float32, where T5 calculates: halves must fall to the same side.
        hidden = np.round(total.astype(np.float32) * np.float32(self.density))
        hidden = np.clip(hidden, 1, total - 1)
        spans = np.maximum(np.round(hidden / np.float32(self.mean_length)), 1)
        return hidden.astype(np.int64), spans.astype(np.int64)

    def longest(self, inputs: int, targets: int, sentinels: int) -> int:
        """The most residues that fit so many tokens of inputs and targets, without specials."""
        # At most half of the residues is hidden, so inputs are at least half of the protein.
        residues = np.arange(1, 2 * inputs + 1)
        hidden, spans = self.counts(residues)
        fits = (residues - hidden + spans <= inputs) & (hidden + spans <= targets)
        # None of the three falls as proteins grow: those that fit are the shortest ones.
        return int(np.sum(fits & (spans <= sentinels)))


SPAN_TASKS = {"span3": SpanNoise(0.15, 3.0), "ankh": SpanNoise(0.20, 1.0)}


def sentinel_count(vocabulary: Vocabulary) -> int:
    """How many sentinels <extra_id_0>, ... can be used; raises ProtlmError where there are none."""
    if not len(vocabulary.sentinel_ids):
        raise ProtlmError(
            f"vocabulary {vocabulary.name!r} has no sentinels <extra_id_0>, ... for hidden "
            "spans; span corruption is for T5 models"
        )
    return min(len(vocabulary.sentinel_ids), 256 - SENTINEL)


def residues_per_row(task: str, vocabulary: Vocabulary, inputs: int, targets: int) -> int:
    """The most residues of one piece in rows of so many tokens.

    Span corruption shortens what the encoder reads: a row of 512 tokens of `span3` holds 568
    residues, as T5's own do; the number of sentinels is a second limit. Raises ProtlmError where
    the vocabulary lacks the sentinels or the hiding token of the task.
    """
    if task == "prott5":
        _ = vocabulary.hiding_id  # raises where there is none
    inputs, targets = inputs - vocabulary.num_specials, targets - vocabulary.num_specials
    if task not in SPAN_TASKS:
        return min(inputs, targets)
    return SPAN_TASKS[task].longest(inputs, targets, sentinel_count(vocabulary))


def span_noise(
    letters: np.ndarray, sizes: np.ndarray, keys: np.ndarray, noise: SpanNoise
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Span corruption of pieces of proteins, each by itself.

    Args:
      letters: uint8 [sum of sizes], the pieces one after the other.
      sizes: int64 [pieces], residues of each, at least 1.
      keys: uint64 [pieces].
    Returns:
      Inputs (uint8), their sizes (int64 [pieces]), targets (uint8), their sizes.
    """
    hidden, spans = noise.counts(sizes)
    hidden = np.where(sizes > 1, hidden, 0)  # a single residue is shown
    shown = sizes - hidden
    runs = np.stack(
        [_random_parts(shown, spans, keys), _random_parts(hidden, spans, keys_of(keys, 1))], axis=1
    )
    is_hidden = np.repeat(np.tile([False, True], len(runs)), runs.ravel())
    number = np.arange(len(runs)) - np.repeat(np.cumsum(spans) - spans, spans)
    codes = (SENTINEL + number).astype(np.uint8)
    has_hidden = runs[:, 1] > 0
    ends = np.cumsum(runs, axis=0)
    inputs = np.insert(letters[~is_hidden], ends[has_hidden, 0], codes[has_hidden])
    targets = np.insert(letters[is_hidden], ends[:, 1] - runs[:, 1], codes)
    return inputs, shown + spans * (hidden > 0), targets, hidden + spans


def _random_parts(totals: np.ndarray, parts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """int64 [sum of parts]: lengths, none of them 0, that add up to each total (a total of 0 has
    one part of 0); all ways to cut are equally likely."""
    places = np.maximum(totals - 1, 0)
    owner = np.repeat(np.arange(len(totals)), places)
    rank = np.arange(len(owner)) - (np.cumsum(places) - places)[owner]
    order = np.lexsort((keys_of(keys[owner], rank), owner))
    cut = np.sort(order[rank < (parts - 1)[owner]])
    begins = np.cumsum(totals) - totals
    starts = np.concatenate([begins, (begins[owner] + rank + 1)[cut]])
    return np.diff(np.sort(starts), append=totals.sum())
