"""Beam and TFDS against `protlm prepare` without them: the same bytes, the same records."""

from __future__ import annotations

import importlib
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protlm_jax.data.builders.datasets import ProteinConfig
from protlm_jax.data.prepare.beam import prepare_with_beam
from protlm_jax.data.prepare.direct import prepare
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rules import SelectionRules
from protlm_jax.data.prepared import Prepared
from protlm_jax.data.runtime import tfds
from protlm_jax.errors import ProtlmError

RULES = {"min_length": 25, "heldout_percent": 10.0, "bad_records": "drop"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two files that share proteins, with short ones and one that is no protein."""
    draw = random.Random(0)
    proteins = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=20 + i % 90)) for i in range(300)]
    folder = tmp_path_factory.mktemp("sources")
    parts = {"a.fasta": range(200), "b.fasta": [*range(150, 300), 299]}
    for name, numbers in parts.items():
        text = "".join(f">{name[0]}{i} n={i}\n{proteins[n]}\n" for i, n in enumerate(numbers))
        (folder / name).write_text(text + (">bad\nMK1\n" if name == "b.fasta" else ""))
    return [str(folder / name) for name in parts]


def plan(sources: list[str], output: Path, **rules: Any) -> PreparePlan:
    """Of several blocks and buckets, which so little input would not have."""
    made = PreparePlan.make(
        "fasta", sources, output, SelectionRules(**RULES | rules), tokens=True, records=True
    )
    return replace(made, block_bytes=3000, buckets=4)


@pytest.fixture(scope="module")
def direct(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(plan(sources, tmp_path_factory.mktemp("direct") / "out"), workers=1)


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def records(folder: Path | str, split: str) -> set[tuple[tuple[str, Any], ...]]:
    ds = tfds.builder_from_directory(folder).as_dataset(split=split)
    return {tuple(sorted(example.items())) for example in ds.as_numpy_iterator()}


def test_beam_writes_the_bytes_of_the_direct_runner(sources, direct, tmp_path):
    beam = prepare_with_beam(plan(sources, tmp_path / "out"))
    assert files(beam.folder) == files(direct.folder)
    dropped = {reason: told["count"] for reason, told in beam.manifest["dropped"].items()}
    # 50 stand in both files and one twice; every 90th length is 20, 21, ... and so below 25.
    assert dropped["bad_record"] == 1 and 45 <= dropped["duplicate"] <= 51
    assert dropped["too_short"] >= 15
    assert prepare_with_beam(plan(sources, tmp_path / "out")).digest == beam.digest


@pytest.mark.slow
def test_two_beam_workers_write_the_same_bytes(sources, direct, tmp_path):
    flags = "--direct_num_workers=2 --direct_running_mode=multi_processing"
    assert files(prepare_with_beam(plan(sources, tmp_path / "out"), flags).folder) == files(
        direct.folder
    )


def test_beam_says_what_is_wrong_as_the_direct_runner_does(sources, tmp_path):
    with pytest.raises(ProtlmError, match=r"b\.fasta, line 304: record 'bad', position 3") as told:
        prepare_with_beam(plan(sources, tmp_path / "out", bad_records="error"))
    assert "while running" not in str(told.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.fixture(scope="module")
def built(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> tfds.core.DatasetBuilder:
    """The builder `fasta`, with its files found in manual_dir."""
    config = ProteinConfig(name="mine", release="2024_01", rules=RULES)
    builder = tfds.builder("fasta", config=config, data_dir=tmp_path_factory.mktemp("tfds"))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=Path(sources[0]).parent)
    )
    return builder


def test_builders_hold_the_records_of_prepare(built, direct):
    assert str(built.version) == "2024.1.0"
    for split in ("train", "heldout"):
        found = records(built.data_dir, split)
        assert found == records(direct.folder / "records", split)
        assert len(found) == direct.splits[split].proteins == built.info.splits[split].num_examples


def test_a_manifest_lies_beside_what_tfds_wrote(built, direct):
    made = Prepared.open(built.data_dir)
    same = ("dataset", "sources", "rules", "read", "kept", "dropped")
    assert {key: made.manifest[key] for key in same} == {key: direct.manifest[key] for key in same}
    for side, split in made.splits.items():
        assert (split.lengths == direct.splits[side].lengths).all()
        assert split.residue_counts == direct.splits[side].residue_counts
        for shard in split.records:
            assert (made.folder / shard.file).stat().st_size == shard.bytes
    heldout = made.heldout_fasta().read_text().split(">")
    assert sorted(heldout) == sorted(direct.heldout_fasta().read_text().split(">"))
    assert not (made.folder / ".work").exists()


def test_a_builder_on_beam_says_what_is_wrong(sources, tmp_path):
    config = ProteinConfig(name="mine", files=sources)
    builder = tfds.builder("fasta", config=config, data_dir=tmp_path)
    with pytest.raises(ProtlmError, match=r"b\.fasta, line 304: .*remove the numbers") as told:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(beam_runner="DirectRunner")
        )
    assert "while running" not in str(told.value)


def test_without_beam_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "protlm_jax.data.prepare.beam")
    with pytest.raises(ProtlmError, match=r"pip install 'protlm-jax\[beam\]'"):
        importlib.import_module("protlm_jax.data.prepare.beam")


def test_a_uniref_needs_its_release(sources, tmp_path):
    config = ProteinConfig(name="mine", files=sources)
    builder = tfds.builder("uniref50", config=config, data_dir=tmp_path)
    with pytest.raises(ProtlmError, match="which release of uniref50"):
        builder.download_and_prepare()
