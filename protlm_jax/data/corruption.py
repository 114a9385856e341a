"""Corruption that changes what an encoder-decoder sees: ProtT5, T5 spans, Ankh. NumPy only.

A piece of a protein is uint8 ASCII letters. Hidden residues become codes that no letter has:
`HIDDEN` stands for the vocabulary's one hiding token, `SENTINEL + i` for <extra_id_i>
(`token_rows.Alphabet` gives their ids). Every draw is a function of a key, so the same key hides
the same residues on every machine.

**prott5**: what its authors trained on; not T5's span corruption. Each residue is chosen with
probability 0.15; 90 % of the chosen become the hiding token and 10 % one of the other 19 amino
acids. The target is the whole sequence (ProtT5-XL-BFD model card, Elnaggar et al. 2021; T5 calls it
`iid_15_r10s90_f`, but draws the random tenth from all ids, sentinels included):

    input    M K <extra_id_0> A Y W A K </s>
    target   M K T            A Y I A K </s>

**span3** and **ankh**: spans are hidden, each behind a sentinel of its own, and only they are asked
for:

    protein  M K T A Y I A K Q R
    input    M K <extra_id_0> I A K <extra_id_1> </s>
    target   <extra_id_0> T A Y <extra_id_1> Q R </s>

`span3` hides 15 % in spans of 3 on average (Raffel et al. 2020, section 3.1.4). As in T5's code,
the numbers of hidden residues and of spans follow from the length, and all ways to cut that many
are equally likely. A protein begins with a shown residue and ends with a hidden one, and there is
no closing sentinel. Each protein is corrupted by itself, where T5 joins pieces of several texts.

`ankh` hides 20 % in spans of one residue (1-gram partial demasking, Elnaggar et al. 2023,
arXiv:2301.06568). The form of input and target and the 20 % agree with the authors' example for
Ankh3 (M<0>AY<1>LI<2>SRG<3> asks for <0>K<1>V<2>N<3>P). No code was published, so how positions were
drawn is not known; here they are drawn as T5 draws spans of length 1.

T5's code counts past its last sentinel into the ids of residues. Here no piece is longer than its
sentinels allow: 502 residues for `ankh`, 2,009 for `span3`, with the 100 sentinels of ProtT5.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from protlm_jax.data.orders import below, keys_of, words_of
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS, Vocabulary

NOISE_DENSITY = 0.15
RANDOM_SHARE = 0.1

HIDDEN = ord("A") - 1
SENTINEL = 128

_RESIDUES = np.frombuffer(AMINO_ACIDS.encode(), np.uint8)
_RANKS = np.full(256, -1)
_RANKS[_RESIDUES] = np.arange(len(_RESIDUES))
_AT_ONCE = 64


def prott5_noise(letters: np.ndarray, keys: np.ndarray, random_share: float) -> np.ndarray:
    """ProtT5's denoising of rows.

    Args:
      letters: uint8 [rows, length]; bytes below "A" are never hidden.
      keys: uint64 [rows].
      random_share: share of the chosen residues that become another amino acid. Held-out proteins
        are read with 0: where a model may see the residue, it cannot be scored.
    Returns:
      uint8 [rows, length].
    """
    hidden = letters.copy()
    shares = NOISE_DENSITY, NOISE_DENSITY * random_share
    limits = [np.uint64(round(share * 2**64)) for share in shares]
    # A few rows at a time, so that their words stay in the processor's cache.
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
    # A step of 1 to 19 around the ring of 20 never comes back to where it began; a residue that is
    # not in the ring (X) has all 20 before it, from rank -1.
    rank = _RANKS[letters]
    choices = np.where(rank < 0, 20, 19)
    return _RESIDUES[(rank + 1 + below(words, choices)) % 20]


@dataclasses.dataclass(frozen=True)
class SpanNoise:
    """How much is hidden: the share of the residues, and the mean length of a span."""

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
        """Most residues that fit into so many tokens of inputs and targets, specials left out."""
        # With half of the residues hidden or less, inputs are at least half of the protein.
        residues = np.arange(1, 2 * inputs + 1)
        hidden, spans = self.counts(residues)
        fits = (residues - hidden + spans <= inputs) & (hidden + spans <= targets)
        # None of the three ever falls as proteins grow, so those that fit are the shortest ones.
        return int(np.sum(fits & (spans <= sentinels)))


SPAN_TASKS = {"span3": SpanNoise(0.15, 3.0), "ankh": SpanNoise(0.20, 1.0)}


def sentinel_count(vocabulary: Vocabulary) -> int:
    """How many sentinels <extra_id_0>, <extra_id_1>, ... can be used.

    Raises:
      ProtlmError: the vocabulary has none.
    """
    if not len(vocabulary.sentinel_ids):
        raise ProtlmError(
            f"vocabulary {vocabulary.name!r} has no sentinels <extra_id_0>, ... to hide spans "
            "behind; span corruption is for T5 models"
        )
    return min(len(vocabulary.sentinel_ids), 256 - SENTINEL)


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
    asked = runs[:, 1] > 0
    ends = np.cumsum(runs, axis=0)
    inputs = np.insert(letters[~is_hidden], ends[asked, 0], codes[asked])
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
