"""Benchmarks: counts, masks, and what stands on both sides; and files that do not ship."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

from protlm_jax import bundled
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import probe_data
from protlm_jax.evaluation.probe_data import Benchmark, benchmarks
from protlm_jax.evaluation.probes import scores

STRUCTURE = {  # proteins, labels of q3 and q8
    "train": (9712, 2_319_963, 1_534_340),
    "valid": (1080, 262_853, 175_345),
    "cb513": (511, 140_486, 140_486),
    "ts115": (115, 27_501, 27_501),
    "casp12": (20, 6_004, 6_004),
    "casp13": (12, 2_280, 2_280),
    "casp14": (18, 2_718, 2_718),
    "new364": (364, 75_402, 0),
}
VIEWS = {"cb513": (511, 140_486), "cb513_own_mask": (509, 83_427), "cb513_far": (299, 73_814)}
LOCATION = {  # proteins, labels of membrane
    "train": (12_185, 12_185),
    "valid": (2_987, 2_987),
    "deeploc1_test": (2_768, 1_746),
    "deeploc1_hard": (490, 0),
}
GB1 = {
    "gb1_one_vs_rest": (25, 3, 8705),
    "gb1_two_vs_rest": (381, 43, 8309),
    "gb1_three_vs_rest": (2691, 299, 5743),
    "gb1_low_vs_high": (4580, 509, 3644),
    "gb1_sampled": (6289, 699, 1745),
}


@pytest.fixture(scope="module")
def structure() -> Benchmark:
    return probe_data.load("secondary_structure")


@pytest.fixture(scope="module")
def location() -> Benchmark:
    return probe_data.load("localization")


def sequences(benchmark: Benchmark, split: str) -> set[str]:
    return {p.sequence for p in benchmark.splits[split]()}


@pytest.mark.parametrize("name", ["secondary_structure", "localization", *GB1, "contacts"])
def test_every_benchmark_is_whole(name: str) -> None:
    benchmark = probe_data.load(name)
    assert benchmark.name == name and {"train", "valid"} <= set(benchmark.splits)
    assert {v.split for v in benchmark.views.values()} <= set(benchmark.splits)
    for read in benchmark.splits.values():
        proteins = read()
        assert len({p.id for p in proteins}) == len(proteins)
        for p in proteins:
            for target in benchmark.targets:
                labels = p.labels[target.name]
                if benchmark.level != "pair":
                    shape = (len(p.sequence),) if benchmark.level == "residue" else ()
                    assert labels.shape == shape
                    assert all(mark.shape == shape for mark in p.marks.values())
                if target.kind == "classes" and benchmark.level != "pair":
                    assert labels.min() >= -1 and labels.max() < len(target.classes)


def test_secondary_structure_has_the_stated_counts(structure: Benchmark) -> None:
    found = probe_data.counts(structure)
    assert {n: (c["proteins"], *c["labelled"].values()) for n, c in found.items()} == STRUCTURE


def test_views_of_cb513_count_what_they_say(structure: Benchmark) -> None:
    for name, expected in VIEWS.items():
        view = structure.views[name]
        proteins = structure.splits[view.split]()
        of = scores.labelled(proteins, "residue", structure.targets[0], view.mark)
        assert of is not None and (of.proteins, len(of.truth)) == expected


def test_labels_are_the_letters_where_resolved_and_known(structure: Benchmark) -> None:
    assert all((p.labels["q8"] == -1).all() for p in structure.splits["new364"]())
    raw = next(c for c in bundled.secondary_structure("valid") if "-" in (c.q8 or ""))
    chain = next(p for p in structure.splits["valid"]() if p.id == raw.id)
    assert raw.q8 is not None and "0" in raw.mask
    for i, resolved in enumerate(raw.mask):
        q3 = "HEC".index(raw.q3[i]) if resolved == "1" else -1
        q8 = "GHIEBSTC".find(raw.q8[i]) if resolved == "1" else -1
        assert (chain.labels["q3"][i], chain.labels["q8"][i]) == (q3, q8)


def test_one_rule_makes_three_states_of_eight_in_every_test_set(structure: Benchmark) -> None:
    to_q3 = [{"E": 1, "B": 1, "G": 0, "H": 0, "I": 0}.get(s, 2) for s in benchmarks.Q8]
    changed = 0
    for name in ("cb513", "ts115", "casp12", "casp13", "casp14"):
        raw = {c.id: c for c in bundled.secondary_structure(name)}
        for p in structure.splits[name]():
            there = p.labels["q8"] >= 0
            expected = np.array(to_q3)[p.labels["q8"][there]]
            np.testing.assert_array_equal(p.labels["q3"][there], expected)
            published = ["HEC".index(s) for s in raw[p.id].q3]
            changed += int((np.array(published)[there] != expected).sum())
    assert changed == 20


def test_overlaps_of_secondary_structure_are_those_that_are_stated(structure: Benchmark) -> None:
    test = {name: sequences(structure, name) for name in STRUCTURE}
    assert len(test["cb513"]) == 432
    assert len(test["cb513"] & test["train"]) == len(test["cb513"] & test["valid"]) == 1
    assert len(test["ts115"] & test["train"]) == 1 and len(test["ts115"] & test["casp12"]) == 4
    assert len(test["casp14"] & test["new364"]) == 1
    for name in ("casp12", "casp13", "casp14", "new364"):
        assert not test[name] & (test["train"] | test["valid"])
    far = {p.sequence for p in structure.splits["cb513"]() if p.marks["far"].all()}
    assert not far & (test["train"] | test["valid"])


def test_the_papers_numbers_stand_on_views_and_targets(structure: Benchmark) -> None:
    assert len(structure.paper) == 12 * 6
    assert {row.view for row in structure.paper} <= set(structure.views)
    found = {(r.view, r.target): r.percent for r in structure.paper if r.model == "ProtT5-XL-U50"}
    assert found["casp12", "q3"] == 81 and found["cb513", "q8"] == 74


def test_localization_has_the_stated_counts_and_keeps_tests_apart(location: Benchmark) -> None:
    found = probe_data.counts(location)
    assert {n: (c["proteins"], c["labelled"]["membrane"]) for n, c in found.items()} == LOCATION
    assert all(c["labelled"]["location"] == c["proteins"] for c in found.values())
    by_split = [sequences(location, name) for name in LOCATION]
    for i, one in enumerate(by_split):
        assert not any(one & other for other in by_split[:i])
    proteins = location.splits["deeploc1_test"]()
    places = [location.targets[0].classes[int(p.labels["location"])] for p in proteins]
    assert places.count("Nucleus") == 806 and places.count("Cell membrane") == 273
    assert sum(int(p.labels["membrane"]) == 1 for p in proteins) == 743
    assert sum(bool(p.marks["far"]) for p in proteins) == 2055
    kingdoms = {p.notes["kingdom"] for p in location.splits["train"]()}
    assert kingdoms == {"Metazoa", "Fungi", "Viridiplantae", "Other"}


@pytest.mark.parametrize("name", GB1)
def test_gb1_is_split_as_flip_splits_it(name: str) -> None:
    benchmark = probe_data.load(name)
    splits = [benchmark.splits[s]() for s in ("train", "valid", "test")]
    assert tuple(map(len, splits)) == GB1[name]
    together = [p for split in splits for p in split]
    assert len({p.sequence for p in together}) == 8733
    for p in together[:100]:
        pairs = enumerate(zip(benchmarks.GB1_PARENT, p.sequence, strict=True), start=1)
        assert {i for i, (a, b) in pairs if a != b} <= set(benchmarks.GB1_SITES)
    if name == "gb1_two_vs_rest":
        parent = next(p for p in together if p.sequence == benchmarks.GB1_PARENT)
        assert float(parent.labels["fitness"]) == 1.0


def test_contacts_are_pairs_of_the_chain() -> None:
    benchmark = probe_data.load("contacts")
    found = probe_data.counts(benchmark)
    assert [c["proteins"] for c in found.values()] == [100, 20, 280]
    assert [c["labelled"]["contact"] for c in found.values()] == [33_137, 7_529, 91_604]
    for p in benchmark.splits["valid"]():
        i, j = p.labels["contact"].T
        assert (i >= 0).all() and (j < len(p.sequence)).all() and (j - i >= 6).all()


def test_a_subset_is_seeded_and_ordered(structure: Benchmark) -> None:
    chains = structure.splits["casp12"]()
    some = probe_data.subset(chains, 7, seed=1)
    assert [c.id for c in some] == [c.id for c in probe_data.subset(chains, 7, seed=1)]
    assert [c.id for c in some] != [c.id for c in probe_data.subset(chains, 7, seed=2)]
    assert [c.id for c in some] == [c.id for c in chains if c.id in {s.id for s in some}]
    assert len(probe_data.subset(chains, None, 0)) == len(probe_data.subset(chains, 99, 0)) == 20


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProtlmError, match="no benchmark 'gb2'; there is secondary_structure"):
        probe_data.load("gb2")
    with pytest.raises(ProtlmError, match=r"stability does not ship.*stability\.train\.csv\.gz"):
        probe_data.load("stability")
    with pytest.raises(ProtlmError, match=r"flip_conservation_splits\.zip is missing.*FLIP"):
        probe_data.load("conservation", tmp_path)


def write_parts(folder: Path, name: str, **rows: str) -> None:
    for part, text in rows.items():
        with gzip.open(folder / f"{name}.{part}.csv.gz", "wt") as file:
            file.write("seq,label\n" + text)


def test_stability_and_folds(tmp_path: Path) -> None:
    write_parts(tmp_path, "stability", train="MKV,-0.5\nMKU,1.5\n", valid="MK,0\n", test="MA,2\n")
    write_parts(tmp_path, "remote_homology", train="MKV,3\n", valid="MK,0\n", test="MA,1194\n")
    stability = probe_data.load("stability", tmp_path)
    train = stability.splits["train"]()
    found = [(p.id, p.sequence, float(p.labels["stability"])) for p in train]
    assert found == [("train-1", "MKV", -0.5), ("train-2", "MKU", 1.5)]
    folds = probe_data.load("remote_homology", tmp_path)
    assert int(folds.splits["test"]()[0].labels["fold"]) == 1194
    assert len(folds.targets[0].classes) == 1195
    assert "26 of its 12,851" in stability.notes[0]


def test_conservation(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "flip_conservation_splits.zip", "w") as archive:
        archive.writestr("splits/sequences.fasta", ">a-A\nMKV\n>b-A\nMK\nVA\n>c-A\nMM\n>d\nM\n")
        labels = ">a-A SET=train VALIDATION=False\n159\n>b-A SET=train VALIDATION=True\n1234\n"
        labels += ">c-A SET=test VALIDATION=False\n99\n"
        archive.writestr("splits/sampled.fasta", labels)
    benchmark = probe_data.load("conservation", tmp_path)
    found = {name: read() for name, read in benchmark.splits.items()}
    names = {n: [p.id for p in proteins] for n, proteins in found.items()}
    assert names == {"train": ["a-A"], "valid": ["b-A"], "test": ["c-A"]}
    np.testing.assert_array_equal(found["train"][0].labels["conservation"], [0, 4, 8])


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "flip_conservation_splits.zip").write_bytes(b"no archive")
    with pytest.raises(ProtlmError, match="cannot be read"):
        probe_data.load("conservation", tmp_path).splits["train"]()
    write_parts(tmp_path, "stability", train="MKV,1\nM*V,2\n", valid="MK,\n", test="MA,2\n")
    benchmark = probe_data.load("stability", tmp_path)
    with pytest.raises(ProtlmError, match="line 3.*position 2"):
        benchmark.splits["train"]()
    with pytest.raises(ProtlmError, match="line 2: a row without a label"):
        benchmark.splits["valid"]()
