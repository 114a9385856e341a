"""Rows come back as they were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protlm_jax.data.prepare.rows import Row, from_bytes, to_bytes

numbers = st.integers(0, 10**18 - 1)
text = st.text(max_size=6)
rows = st.lists(
    st.builds(
        Row,
        st.binary(min_size=16, max_size=16),
        st.sampled_from(["train", "heldout"]),
        st.tuples(numbers, numbers),
        *(text, text, text, numbers, text, numbers, text, text),
    ),
    max_size=5,
)


@given(rows)
def test_rows_come_back(rows):
    assert from_bytes(to_bytes(rows)) == rows
