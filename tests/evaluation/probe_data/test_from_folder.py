"""Files that do not ship, in their own layout."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import probe_data


def write_parts(folder: Path, name: str, **rows: str) -> None:
    for part, text in rows.items():
        with gzip.open(folder / f"{name}.{part}.csv.gz", "wt") as file:
            file.write("seq,label\n" + text)


def test_stability_and_folds(tmp_path: Path) -> None:
    write_parts(tmp_path, "stability", train="MKV,-0.5\nMKU,1.5\n", valid="MK,0\n", test="MA,2\n")
    write_parts(tmp_path, "remote_homology", train="MKV,3\n", valid="MK,0\n", test="MA,1194\n")
    stability = probe_data.load("stability", tmp_path)
    train = stability.splits["train"]()
    assert [(p.id, p.sequence, float(p.labels["stability"])) for p in train] == [
        ("train-1", "MKV", -0.5),
        ("train-2", "MKU", 1.5),
    ]
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
    assert {n: [p.id for p in ps] for n, ps in found.items()} == {
        "train": ["a-A"],
        "valid": ["b-A"],
        "test": ["c-A"],
    }
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
