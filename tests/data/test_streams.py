"""Streams: every protein once, rows that continue each other, exact continuation."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.data.batches import BatchRequest
from protlm_jax.data.config import DataConfig
from protlm_jax.data.streams import FEATURES, StreamIterator
from protlm_jax.data.token_files import TokenShard
from protlm_jax.vocabularies import AMINO_ACIDS, PROT_T5, PROT_TXL, Vocabulary

Batch = dict[str, np.ndarray]


def proteins(lengths: list[int], seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(AMINO_ACIDS), n)) for n in lengths]


def streams(
    sequences: list[str],
    rows: int,
    length: int,
    *,
    split: str = "train",
    seed: int = 0,
    vocabulary: Vocabulary = PROT_TXL,
) -> StreamIterator:
    config = DataConfig(task="stream", length=length)
    wanted = BatchRequest(split, seed, rows)
    return StreamIterator([TokenShard.of(sequences)], config, vocabulary, "some", wanted)


def equal(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def joined(batches: list[Batch]) -> Batch:
    """Batches end to end: [rows, batches * length]."""
    return {name: np.concatenate([b[name] for b in batches], axis=1) for name in FEATURES}


def runs(row: np.ndarray) -> list[tuple[int, int, int]]:
    """(segment, start, stop) of each stretch of one number."""
    cuts = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
    return [(int(row[a]), int(a), int(b)) for a, b in itertools.pairwise(cuts)]


SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(3, 9), st.integers(0, 3))
def test_an_epoch_shows_each_protein_once_and_whole(
    lengths: list[int], rows: int, length: int, seed: int
) -> None:
    sequences = proteins(lengths, seed)
    tokens = sum(lengths) + 2 * len(lengths)
    needed = 2 * tokens // length + 2  # one row alone would have read two epochs
    full = joined(list(itertools.islice(streams(sequences, rows, length, seed=seed), needed)))
    found: dict[int, str] = {}
    for row in range(rows):
        for segment, start, stop in runs(full["segment_ids"][row]):
            assert segment > 0 and segment not in found, "a number stands for one protein"
            np.testing.assert_array_equal(full["positions"][row, start:stop], range(stop - start))
            found[segment] = PROT_TXL.decode(full["input_tokens"][row, start:stop])
            ends = stop < full["segment_ids"].shape[1]
            weights = full["target_weights"][row, start:stop]
            assert weights[:-1].all() and weights[-1] == (0 if ends else weights[-1])
            np.testing.assert_array_equal(
                full["target_tokens"][row, start : stop - 1],
                full["input_tokens"][row, start + 1 : stop],
            )
    for epoch in range(2):
        numbers = range(1 + epoch * len(lengths), 1 + (epoch + 1) * len(lengths))
        shown = [found.get(n, "") for n in numbers]
        whole = [text for text in shown if text.endswith("</s>")]
        assert not Counter(whole) - Counter(f"<s>{s}</s>" for s in sequences)
        if epoch == 0:
            assert len(whole) == len(lengths)


@pytest.mark.parametrize("vocabulary", [PROT_TXL, PROT_T5], ids=["prefix", "none"])
def test_the_last_token_of_a_batch_predicts_the_first_of_the_next(vocabulary: Vocabulary) -> None:
    sequences = proteins([7, 20, 3, 11, 40])
    batches = list(itertools.islice(streams(sequences, 2, 5, vocabulary=vocabulary), 60))
    asked = 0
    for one, two in itertools.pairwise(batches):
        weights = one["target_weights"][:, -1] > 0
        same = one["segment_ids"][:, -1] == two["segment_ids"][:, 0]
        np.testing.assert_array_equal(weights, same)
        np.testing.assert_array_equal(one["target_tokens"][same, -1], two["input_tokens"][same, 0])
        asked += same.sum()
    assert asked > 60


@settings(max_examples=30, deadline=None)
@given(
    SIZES,
    st.integers(1, 4),
    st.integers(3, 9),
    st.integers(0, 40),
    st.sampled_from(["train", "heldout"]),
)
def test_restored_anywhere_it_goes_on_the_same(
    lengths: list[int], rows: int, length: int, stop: int, split: str
) -> None:
    sequences = proteins(lengths)
    first = streams(sequences, rows, length, split=split)
    for _ in itertools.islice(first, stop):
        pass
    state = first.state()
    expected = list(itertools.islice(first, 20))
    again = streams(sequences, rows, length, split=split)
    next(again)
    again.restore(state)
    found = list(itertools.islice(again, 20))
    assert len(found) == len(expected) and all(map(equal, found, expected))


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(3, 9))
def test_held_out_streams_end_after_one_pass(lengths: list[int], rows: int, length: int) -> None:
    sequences = proteins(lengths)
    iterator = streams(sequences, rows, length, split="heldout")
    full = joined(list(iterator))
    padding = full["segment_ids"] == 0
    assert (full["input_tokens"][padding] == PROT_TXL.pad_id).all()
    assert not full["target_weights"][padding].any() and not full["positions"][padding].any()
    assert (np.diff(padding.astype(int), axis=1) >= 0).all(), "padding stands at the end of a row"
    assert not padding[:, -length:].all(), "no batch without a token"
    assert (~padding).sum() == sum(lengths) + 2 * len(lengths)
    assert full["target_weights"].sum() == sum(lengths) + len(lengths)
    texts = [
        PROT_TXL.decode(full["input_tokens"][r, a:b])
        for r in range(rows)
        for s, a, b in runs(full["segment_ids"][r])
        if s
    ]
    assert sorted(texts) == sorted(f"<s>{s}</s>" for s in sequences)
    assert next(iterator, None) is None
    assert iterator.counts.proteins == len(lengths) and iterator.counts.residues == sum(lengths)
