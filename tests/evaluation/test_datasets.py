"""The counts that the module states, and the labels of one protein read by hand."""

from __future__ import annotations

import numpy as np
import pytest

from protlm_jax import bundled
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import datasets


@pytest.mark.parametrize(
    ("name", "proteins", "resolved", "with_q8"),
    [
        ("valid", 1080, 262_853, 822),
        ("new364", 364, 75_402, 0),
        ("cb513", 511, 140_486, 511),
        ("ts115", 115, 27_501, 115),
        ("casp12", 20, 6_004, 20),
    ],
)
def test_counts(name: str, proteins: int, resolved: int, with_q8: int) -> None:
    chains = datasets.load(name)
    assert len(chains) == proteins
    assert sum(int((c.q3 >= 0).sum()) for c in chains) == resolved
    assert sum(bool((c.q8 >= 0).any()) for c in chains) == with_q8
    assert all(len(c.sequence) == len(c.q3) == len(c.q8) for c in chains)


def test_training_counts_and_disjoint_ids() -> None:
    chains = datasets.load("train")
    assert len(chains) == 9712
    assert sum(int((c.q3 >= 0).sum()) for c in chains) == 2_319_963
    ids = {c.id for c in chains}
    assert len(ids) == 9712
    for other in ("valid", "new364"):
        assert not ids & {c.id for c in datasets.load(other)}


def test_labels_follow_the_letters_and_the_mask() -> None:
    raw = next(iter(bundled.secondary_structure("valid")))
    chain = datasets.load("valid")[0]
    assert chain.id == raw.id
    for i, letter in enumerate(raw.q3):
        expected = datasets.Q3.index(letter) if raw.mask[i] == "1" else -1
        assert chain.q3[i] == expected
    assert "0" in raw.mask and set(np.unique(chain.q3)) == {-1, 0, 1, 2}


def test_q8_reduces_to_q3() -> None:
    to_q3 = np.array([datasets.Q3.index({"E": "E", "B": "E"}.get(s, s)) if s in "EB"
                      else datasets.Q3.index("H" if s in "GHI" else "C")
                      for s in datasets.Q8])  # fmt: skip
    for chain in datasets.load("ts115"):
        known = chain.q8 >= 0
        np.testing.assert_array_equal(to_q3[chain.q8[known]], chain.q3[known])


def test_subset_is_seeded_and_ordered() -> None:
    chains = datasets.load("casp12")
    some = datasets.subset(chains, 7, seed=1)
    assert [c.id for c in some] == [c.id for c in datasets.subset(chains, 7, seed=1)]
    assert [c.id for c in some] != [c.id for c in datasets.subset(chains, 7, seed=2)]
    assert [c.id for c in some] == [c.id for c in chains if c.id in {s.id for s in some}]
    assert len(datasets.subset(chains, None, seed=0)) == len(datasets.subset(chains, 99, 0)) == 20


def test_unknown_set_is_an_error() -> None:
    with pytest.raises(ProtlmError, match="no secondary-structure set 'cb531'"):
        datasets.load("cb531")
