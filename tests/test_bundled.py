"""The bundled files are there, whole, and say what LICENCES.md says of them."""

from __future__ import annotations

import lzma
from collections import Counter

import pytest

from protlm_jax import bundled
from protlm_jax.bundled import secondary_structure
from protlm_jax.errors import ProtlmError

CHAINS = {
    "train": (9712, 2_319_963),
    "valid": (1080, 262_853),
    "test_new364": (364, 75_402),
    "cb513": (511, 140_486),
    "ts115": (115, 27_501),
    "casp12": (20, 6_004),
    "casp13": (12, 2_280),
    "casp14": (18, 2_718),
}


def test_the_pretraining_sample_is_whole():
    lines = lzma.decompress(bundled.path("pretraining").read_bytes()).decode().splitlines()
    residues = "".join(line for line in lines if not line.startswith(">"))
    assert sum(line.startswith(">") for line in lines) == 20_000
    assert set(residues) == set("ACDEFGHIKLMNPQRSTVWY")


def test_secondary_structure_has_the_stated_counts_and_aligned_labels():
    counts, resolved = Counter(), Counter()
    for chain in secondary_structure(*CHAINS):
        counts[chain.split] += 1
        resolved[chain.split] += chain.mask.count("1")
        labels = (chain.q3, chain.mask, chain.q8 or chain.q3, chain.cb513_mask or chain.mask)
        assert {len(label) for label in labels} == {len(chain.seq)}
        assert set(chain.q3) <= set("HEC") and set(chain.q8 or "") <= set("GHIEBSTC-")
    assert {s: (counts[s], resolved[s]) for s in CHAINS} == CHAINS
    both = (zip(c.mask, c.cb513_mask or "", strict=True) for c in secondary_structure("cb513"))
    assert sum(a == b == "1" for masks in both for a, b in masks) == 83_427


def test_only_the_named_splits_are_read():
    assert {c.split for c in secondary_structure("casp12", "ts115")} == {"casp12", "ts115"}


def test_unknown_names_are_refused():
    with pytest.raises(ProtlmError, match="pretraining"):
        bundled.path("nothing")
    with pytest.raises(ProtlmError, match="'casp99'.*cb513"):
        list(secondary_structure("casp99"))


def test_licences_name_every_file():
    notes = bundled.path("pretraining").with_name("LICENCES.md").read_text()
    assert all(f"`{name}`" in notes for name in bundled.FILES.values())
