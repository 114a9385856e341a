"""The split is the stated rule, and nothing but the sequence decides."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared_data import proteins, write_prepared

from protlm_jax.data.config import DataConfig
from protlm_jax.data.splits import (
    heldout_records,
    is_heldout,
    load_records,
    residue_frequencies,
    source_name,
    training_frequencies,
)
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS

sequences = st.text(AMINO_ACIDS, min_size=1, max_size=50)


def test_the_bundled_split_never_moves():
    heldout = heldout_records(DataConfig(heldout_percent=2.0))
    assert len(heldout) == 380 and sum(len(r.sequence) for r in heldout) == 101_722
    names = hashlib.sha256(" ".join(r.id for r in heldout).encode()).hexdigest()
    assert names.startswith("e0e25be850b1feca")


@given(sequence=sequences, low=st.floats(0, 100), high=st.floats(0, 100))
def test_a_larger_share_contains_the_smaller(sequence, low, high):
    if low <= high and is_heldout(sequence, low):
        assert is_heldout(sequence, high)
    assert not is_heldout(sequence, 0) and is_heldout(sequence, 100)


def test_the_two_sides_make_the_whole():
    config = DataConfig(heldout_percent=30.0)
    train, heldout = load_records(config, "train"), load_records(config, "heldout")
    assert len(train) + len(heldout) == 20_000
    assert not {r.sequence for r in train} & {r.sequence for r in heldout}
    # 20,000 draws at 0.3: three standard errors are 194.
    assert abs(len(heldout) - 6_000) < 194


def test_frequencies_are_counted_in_the_order_of_the_letters():
    frequencies = residue_frequencies(["AAC", "YXU", "AW"])
    expected = {"A": 3 / 6, "C": 1 / 6, "Y": 1 / 6, "W": 1 / 6}
    np.testing.assert_allclose(frequencies, [expected.get(a, 0) for a in AMINO_ACIDS])
    bundled = training_frequencies(DataConfig())
    assert abs(-(bundled * np.log(bundled)).sum() - 2.8895) < 1e-4


def test_sequences_of_x_alone_have_no_frequencies():
    with pytest.raises(ProtlmError, match="only X"):
        residue_frequencies(["XX"])


@pytest.mark.parametrize(("percent", "split"), [(0.0, "heldout"), (99.99, "train")])
def test_an_empty_side_is_an_error(tmp_path, percent, split):
    fasta = tmp_path / "one.fa"
    fasta.write_text(">a\nMKTAYIAK\n")
    with pytest.raises(ProtlmError, match=r"of its 1 proteins none is .*heldout_percent"):
        load_records(DataConfig(fasta=str(fasta), heldout_percent=percent), split)


def test_a_prepared_folder_is_read_like_a_file(tmp_path):
    sequences = proteins([30] * 40, letters=AMINO_ACIDS + "XU")
    folder = str(write_prepared(tmp_path, sequences, rare_residues="keep"))
    for policy in ("X", "keep"):
        config = DataConfig(prepared=folder, rare_residues=policy)
        found = {r.id: r.sequence for r in heldout_records(config)}
        expected = {n: s for n, s in sequences.items() if is_heldout(s, 25.0)}
        assert found == {
            n: s if policy == "keep" else s.replace("U", "X") for n, s in expected.items()
        }
    training = [s for n, s in sequences.items() if n not in found]
    np.testing.assert_array_equal(training_frequencies(config), residue_frequencies(training))
    assert source_name(config) == folder
    with pytest.raises(ProtlmError, match="need not fit in memory; read it in batches"):
        load_records(config, "train")
