"""ProtT5's denoising, as its authors describe it, and not T5's span corruption (`spans.py`).

Each residue is chosen with probability 0.15, on its own. Of the chosen, 90 % become `<extra_id_0>`
(one and the same sentinel, id 127, wherever they stand) and 10 % another amino acid, uniformly one
of the other 19. Input and target have the same length, and the target is the whole sequence:

    input    M K <extra_id_0> A Y W A K </s>
    target   M K T            A Y I A K </s>

Source: the ProtT5-XL-BFD model card, Elnaggar et al. 2021; in T5's own terms the objective
`iid_15_r10s90_f`. T5's code would draw the random tenth from all ids, sentinels included; the
model card says amino acids, and that is what happens here.
"""

from __future__ import annotations

from collections.abc import Callable

from protlm_jax.data.runtime import tf
from protlm_jax.data.token_rows import NOISE_DENSITY, RANDOM_SHARE
from protlm_jax.vocabularies import Vocabulary

__all__ = ["NOISE_DENSITY", "RANDOM_SHARE", "Corruption", "Example", "prott5_corruption"]

Example = dict[str, tf.Tensor]
Corruption = Callable[[Example, tf.Tensor], Example]


def prott5_corruption(vocabulary: Vocabulary, random_share: float = RANDOM_SHARE) -> Corruption:
    """A function of example and seed that adds "inputs", the corrupted "targets".

    It must run before the specials are added, since those are never hidden. The same seed, int32
    [2], hides the same residues.

    Args:
      vocabulary: gives the sentinel and the amino acids.
      random_share: share of the chosen residues that become another amino acid. Held-out proteins
        are read with 0: where a model may see the residue, it cannot be scored.
    """
    amino_acids = tf.constant(vocabulary.amino_acid_ids)
    # Rank of each id among the 20 amino acids; -1 for X and the rare residues.
    ranks = [-1] * vocabulary.size
    for rank, token in enumerate(vocabulary.amino_acid_ids):
        ranks[token] = rank

    def corrupt(example: Example, seed: tf.Tensor) -> Example:
        targets = example["targets"]
        draws = tf.random.stateless_uniform([2, tf.size(targets)], seed)
        chosen = draws[0] < NOISE_DENSITY
        swapped = draws[0] < NOISE_DENSITY * random_share
        # A step of 1 to 19 around the ring of 20 never comes back to where it began; a residue
        # that is not in the ring has all 20 before it, from rank -1.
        rank = tf.gather(tf.constant(ranks), targets)
        choices = tf.where(rank < 0, 20, 19)
        step = 1 + tf.cast(draws[1] * tf.cast(choices, tf.float32), tf.int32)
        # float32 may round a draw just below 1 up to the next whole number.
        others = tf.gather(amino_acids, (rank + tf.minimum(step, choices)) % 20)
        hidden = tf.where(swapped, others, vocabulary.hiding_id)
        return {**example, "inputs": tf.where(chosen, hidden, targets)}

    return corrupt
