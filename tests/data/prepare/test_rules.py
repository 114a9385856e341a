"""Rules judge one protein at a time, and as they say they do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protlm_jax.data.entries import ReleaseEntry
from protlm_jax.data.prepare.rows import Row, from_bytes, to_bytes
from protlm_jax.data.prepare.rules import SelectionRules, bucket_of, order_key
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS

sequences = st.text(AMINO_ACIDS, min_size=1, max_size=50)


@given(keys=st.lists(st.binary(min_size=16, max_size=16)), buckets=st.integers(1, 5000))
def test_buckets_are_ranges_of_keys(keys, buckets):
    numbers = [bucket_of(key, buckets) for key in sorted(keys)]
    assert numbers == sorted(numbers) and all(0 <= n < buckets for n in numbers)
    assert bucket_of(b"\0" * 16, buckets) == 0 and bucket_of(b"\xff" * 16, buckets) == buckets - 1


def test_buckets_are_about_equally_full_on_both_sides_of_the_split():
    rules = SelectionRules(heldout_percent=50.0)
    counts = {"train": [0] * 4, "heldout": [0] * 4}
    for i in range(4000):
        sequence = "".join(AMINO_ACIDS[(i // 20**k) % 20] for k in range(4))
        counts[rules.side(ReleaseEntry("p", sequence))][bucket_of(order_key(sequence), 4)] += 1
    # 4,000 draws into eight cells: 500 each, four standard errors are 84.
    assert all(abs(n - 500) < 84 for side in counts.values() for n in side)


def test_lengths_are_limits_that_still_pass():
    rules = SelectionRules(min_length=3, max_length=5, heldout_percent=0.0)
    proteins = [ReleaseEntry("p", "A" * n) for n in range(1, 8)]
    short, long = ["too_short"] * 2, ["too_long"] * 2
    assert rules.verdicts(proteins) == short + ["train"] * 3 + long
    assert [rules.reject(p) for p in proteins] == short + [None] * 3 + long


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_length": 0}, "min_length is 0"),
        ({"min_length": 9, "max_length": 8}, "max_length is 8, below min_length"),
        ({"heldout_percent": 100.0}, "heldout_percent is 100"),
        ({"heldout_percent": -1.0}, "heldout_percent is -1"),
    ],
)
def test_rules_that_keep_nothing_are_refused(settings, message):
    with pytest.raises(ProtlmError, match=message):
        SelectionRules(**settings)


numbers = st.integers(0, 10**18 - 1)
text = st.text(max_size=6)
sequences = st.text("ACDEFGHIKLMNPQRSTVWYX", max_size=6)
rows = st.lists(
    st.builds(
        Row,
        st.binary(min_size=16, max_size=16),
        st.sampled_from(["train", "heldout"]),
        st.tuples(numbers, numbers),
        *(text, sequences, text, numbers, text, numbers, text, text),
    ),
    max_size=5,
)


@given(rows)
def test_rows_come_back(rows):
    assert from_bytes(to_bytes(rows)) == rows
