"""Padding is what `segment_ids` says: batches over ids where 0 is a residue and padding is not."""

from __future__ import annotations

import itertools

from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.vocabularies import AMINO_ACIDS, PROT_BERT, Vocabulary
from protlm_jax.vocabularies.files import custom_vocabulary

ZERO_IS_ALANINE = custom_vocabulary(
    [*AMINO_ACIDS, *"XUBZO", "<cls>", "<eos>", "<unk>", "<mask>", "<pad>"],
    pad_id=29,
    unk_id=27,
    mask_id=28,
    prefix_ids=[25],
    suffix_ids=[26],
)


def proteins(vocabulary: Vocabulary) -> list[str]:
    """The residues of each segment, in the order of a few packed batches."""
    batches = open_batches(DataConfig(length=96), vocabulary, split="heldout", seed=0, batch_size=8)
    texts = []
    for batch in itertools.islice(batches, 3):
        for tokens, segments in zip(batch["input_tokens"], batch["segment_ids"], strict=True):
            for segment in range(1, segments.max() + 1):
                ids = tokens[segments == segment]
                first, last = vocabulary.prefix_ids, vocabulary.suffix_ids
                assert (ids[0], ids[-1]) == (*first, *last)
                texts.append(vocabulary.decode(ids[1:-1]))
    return texts


def test_the_same_proteins_whatever_the_ids() -> None:
    texts = proteins(ZERO_IS_ALANINE)
    assert texts == proteins(PROT_BERT)
    assert any("A" in text for text in texts)
