"""Rows come back as they were; other bytes are an error, never more memory than they have."""

from __future__ import annotations

import contextlib

import pytest
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


@given(rows, st.data())
def test_other_bytes_are_an_error(rows, data):
    whole = bytearray(to_bytes(rows) or b"0")
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    with contextlib.suppress(ValueError):
        from_bytes(bytes(whole))
    with pytest.raises(ValueError):
        from_bytes(b"\xff" * 63 + b"\x0f" + bytes(whole))
