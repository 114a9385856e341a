"""T5's span corruption and Ankh's partial demasking: what is hidden is all that is asked.

Spans of residues are hidden, each behind a sentinel of its own, counted down from <extra_id_0>
(127). The target names each sentinel and then what it hides:

    protein   M K T A Y I A K Q R
    input     M K <extra_id_0> I A K <extra_id_1> </s>
    target    <extra_id_0> T A Y <extra_id_1> Q R </s>

(so short a protein would have less of it hidden).

`span3` is T5's objective (Raffel et al. 2020, section 3.1.4): 15 % of the residues, in spans of 3
on average. As in T5's own code, the numbers of hidden residues and of spans follow from the length
of the protein alone, and all ways to cut that many of each are equally likely, the protein
beginning with a shown residue and ending with a hidden one. So there is no closing sentinel, as it
stands in the paper's figure; the first residue is never hidden and the last one always, and up to
30 residues have one span, which is their end. (A single residue is shown.) Unlike T5, which fills
its rows with pieces of several texts, each protein is corrupted by itself, and none is ever merged
with another.

`ankh` is Ankh's 1-gram partial demasking (Elnaggar et al. 2023, arXiv:2301.06568): the same with
20 % and spans of one residue. Verified, from the example that its authors give for Ankh3
(M<0>AY<1>LI<2>SRG<3> asks for <0>K<1>V<2>N<3>P) and from notes on the paper, is the form of input
and target, and the 20 %; not verified is how the positions were drawn, since no code for it was
published. Here they are drawn as T5 draws spans of length 1, which agrees with the example: no two
hidden residues are neighbours, and each has its sentinel.

T5's code does not notice when the sentinels are used up, and counts on into the ids of residues.
Here no piece of a protein is longer than its sentinels allow: 502 residues for `ankh` (20 % of 511
would take 102 sentinels), 2,009 for `span3`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from protlm_jax.data.denoising import Corruption, Example
from protlm_jax.data.runtime import tf
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import Vocabulary


@dataclasses.dataclass(frozen=True)
class SpanNoise:
    """How much is hidden: the share of the residues, and the mean length of a span."""

    density: float
    mean_length: float

    def counts(self, residues: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hidden residues and spans of proteins with so many residues: int32, as T5 rounds them.

        T5 counts a protein of one residue as one of two.
        """
        total = np.maximum(residues, 2)
        # In float32, where T5 calculates: halves must fall to the same side.
        hidden = np.round(total.astype(np.float32) * np.float32(self.density))
        hidden = np.clip(hidden, 1, total - 1)
        spans = np.maximum(np.round(hidden / np.float32(self.mean_length)), 1)
        return hidden.astype(np.int32), spans.astype(np.int32)

    def longest(self, inputs: int, targets: int, sentinels: int) -> int:
        """Most residues that fit into so many tokens of inputs and targets, specials left out.

        With half of the residues hidden or less, inputs are at least half as long as the protein.
        """
        residues = np.arange(1, 2 * inputs + 1)
        hidden, spans = self.counts(residues)
        fits = (residues - hidden + spans <= inputs) & (hidden + spans <= targets)
        # None of the three ever falls as proteins grow, so those that fit are the shortest ones.
        return int(np.sum(fits & (spans <= sentinels)))


SPAN_TASKS = {"span3": SpanNoise(0.15, 3.0), "ankh": SpanNoise(0.20, 1.0)}


def sentinels_of(vocabulary: Vocabulary) -> np.ndarray:
    """int32 [sentinels]: ids of <extra_id_0>, <extra_id_1>, ...

    Raises:
      ProtlmError: the vocabulary has none.
    """
    if not len(vocabulary.sentinel_ids):
        raise ProtlmError(
            f"vocabulary {vocabulary.name!r} has no sentinels <extra_id_0>, ... to hide spans "
            "behind; span corruption is for T5 models"
        )
    return vocabulary.sentinel_ids


def span_corruption(vocabulary: Vocabulary, noise: SpanNoise) -> Corruption:
    """A function of example and seed, from a protein, "targets", to what is shown above.

    It must run before the specials are added, on proteins that have sentinels enough. The same
    seed, int32 [2], hides the same residues.

    Raises:
      ProtlmError: the vocabulary has no sentinels.
    """
    sentinels = sentinels_of(vocabulary)
    # More residues than any protein with so many sentinels has.
    longest = int((len(sentinels) + 1) * noise.mean_length / noise.density) + 1
    counts = tf.constant(np.stack(noise.counts(np.arange(longest)), axis=1))

    def corrupt(example: Example, seed: tf.Tensor) -> Example:
        protein = example["targets"]
        size = tf.size(protein)
        hidden, spans = tf.unstack(tf.gather(counts, size))
        seeds = tf.unstack(tf.random.split(seed, 2))
        lengths = [
            _random_lengths(tf.maximum(size, 2) - hidden, spans, seeds[0]),
            _random_lengths(hidden, spans, seeds[1]),
        ]
        # Shown and hidden take turns. (tf.repeat would make a matrix of runs and lengths.)
        ends = tf.cumsum(tf.reshape(tf.stack(lengths, axis=1), [-1]))
        turns = tf.scatter_nd(ends[:-1, None], tf.ones(2 * spans - 1, tf.int32), [size + 1])
        is_hidden = tf.cast(tf.cumsum(turns[:-1]) % 2, tf.bool)
        return {
            **example,
            "inputs": _runs_to_sentinels(protein, is_hidden, sentinels),
            "targets": _runs_to_sentinels(protein, ~is_hidden, sentinels),
        }

    return corrupt


def _random_lengths(total: tf.Tensor, parts: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Lengths [parts], none of them 0, that add up to `total`; all ways are equally likely."""
    # Not tf.random's own shuffle, which may give another order in another version of TensorFlow.
    draws = tf.random.stateless_uniform([total - 1], seed)
    cuts = 1 + tf.sort(tf.math.top_k(draws, parts - 1).indices)
    ends = tf.concat([cuts, [total]], axis=0)
    return ends - tf.concat([[0], ends[:-1]], axis=0)


def _runs_to_sentinels(tokens: tf.Tensor, runs: tf.Tensor, sentinels: np.ndarray) -> tf.Tensor:
    """Tokens with each run of marked ones become one sentinel, the first, the second, ..."""
    opens = runs & ~tf.concat([[False], runs[:-1]], axis=0)
    number = tf.maximum(tf.cumsum(tf.cast(opens, tf.int32)) - 1, 0)
    shown = tf.where(opens, tf.gather(tf.constant(sentinels), number), tokens)
    return tf.gather(shown, tf.where(opens | ~runs)[:, 0])
