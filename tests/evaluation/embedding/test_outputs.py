"""What `protlm embed` wrote is checked: parts, outputs, manifests, keys, other models and links."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedded import LAST, changed, embed, proteins, read
from zoo import loaded

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import parts
from protlm_jax.evaluation.embedding import formats
from protlm_jax.evaluation.embedding.spec import EmbeddingSpec


def test_what_was_written_is_compared_before_there_is_nothing_to_do(tmp_path: Path) -> None:
    records, rng = proteins(6), np.random.default_rng(0)
    embed(tmp_path, records)
    exact, manifest = read(tmp_path / "e.h5"), tmp_path / "e.h5.json"
    for file in (tmp_path / "e.h5", manifest):
        for at in rng.integers(file.stat().st_size, size=20).tolist():
            content = changed(file, at)
            try:
                assert embed(tmp_path, records).summary.startswith("nothing to do: 6 of 6")
            except ProtlmError as error:
                assert re.search("delete|other settings", str(error)) and "\n" not in str(error)
            else:  # in a manifest, between two words
                assert file == manifest and json.loads(content) == json.loads(file.read_text())
            file.write_bytes(content)
    older = {"format": 1, "settings": {"parameters": "0123"}, "files": {"e.h5": ["residues"]}}
    manifest.write_text(json.dumps(older))
    with pytest.raises(ProtlmError, match=r"by another version of protlm_jax.*, delete"):
        embed(tmp_path, records)
    (tmp_path / "e.h5").unlink()
    assert embed(tmp_path, records).summary.startswith("6 of 6")
    for one, other in zip(read(tmp_path / "e.h5"), exact, strict=True):
        np.testing.assert_array_equal(one[2], other[2])
    assert {p.name for p in tmp_path.iterdir()} == {"x.fasta", "e.h5", "e.h5.json"}


def test_a_damaged_part_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    records, rng, folder = proteins(12), np.random.default_rng(1), tmp_path / "e.h5.work"
    embed(tmp_path, records, "exact.h5")
    whole = (tmp_path / "exact.h5").read_bytes()
    with monkeypatch.context() as held:
        held.setattr(parts, "PART_BYTES", 1)
        held.setattr(parts.Parts, "remove", lambda self: None)  # as if killed before
        embed(tmp_path, records, tokens_per_batch=64)
    kept = {file: file.read_bytes() for file in folder.iterdir()}
    assert len(kept) > 6
    for _ in range(20):
        (tmp_path / "e.h5").unlink()
        folder.mkdir(exist_ok=True)
        for file, content in kept.items():
            file.write_bytes(content)
        file = list(kept)[int(rng.integers(len(kept)))]
        changed(file, int(rng.integers(len(kept[file]))))
        caplog.clear()
        try:
            embed(tmp_path, records)
        except ProtlmError as error:
            assert file.name == "settings.json" and f"delete {folder}" in str(error)
            shutil.rmtree(folder)
            embed(tmp_path, records)
        else:
            warned = f"{file.with_suffix('')} is damaged: its proteins are computed again"
            # Of JSON the space between two words, and the name of the digest, may change.
            assert warned in caplog.text or file.suffix == ".json"
        assert (tmp_path / "e.h5").read_bytes() == whole and not folder.exists()


def test_a_part_damaged_later_and_a_file_written_wrongly_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, spec = proteins(4), EmbeddingSpec(LAST, ("mean",))
    write_file = formats.write_file

    def zeros(path: Path, entries: Any, *more: Any) -> None:
        write_file(
            path, (e._replace(arrays={"mean": 0 * e.arrays["mean"]}) for e in entries), *more
        )

    for output in ("e.h5", "e.parquet"):
        with monkeypatch.context() as held:
            held.setattr(formats, "write_file", zeros)
            with pytest.raises(ProtlmError, match=r"not written as it was computed \(entry 1"):
                embed(tmp_path, records, output, spec)
        assert not (tmp_path / output).exists()

    def late(path: Path, *more: Any) -> None:
        changed(path.parent / "part-000000")
        write_file(path, *more)

    with monkeypatch.context() as held:
        held.setattr(formats, "write_file", late)
        with pytest.raises(ProtlmError, match="part-000000 is damaged: run the same command again"):
            embed(tmp_path, records, spec=spec)
    assert embed(tmp_path, records, spec=spec).failed == 0


def test_an_input_that_changes_meanwhile_is_seen(tmp_path: Path) -> None:
    fasta = tmp_path / "x.fasta"
    for later in (">p0\nMKV\n", ">p0\nMKV\n>p1\nMKVL\n>p2\nM\n", ">p0\nMKV\n>p1\nMKVV\n"):
        with pytest.raises(ProtlmError, match=r"x.fasta changed while it was read"):
            embed(
                tmp_path, [("p0", "MKV"), ("p1", "MKVL")],
                say=lambda _, later=later: fasta.write_text(later),
            )  # fmt: skip
        assert not (tmp_path / "e.h5.work").exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "e.h5.work").mkdir()
    (tmp_path / "e.h5.work" / "e.h5").symlink_to(victim)
    (tmp_path / "e.h5.json").symlink_to(victim)
    embed(tmp_path, proteins(2))
    assert victim.read_text() == "precious" and len(read(tmp_path / "e.h5")) == 2


def test_keys_are_numbers_names_or_sums_of_the_letters(tmp_path: Path) -> None:
    """As EAT, biotrainer and TMbed look them up, who all read the file as it is written."""
    records = [
        ("a", "MKV"),
        ("é|2", "MKVLU"),
        ("bad", "M1"),
        ("c", "MKV"),
        ("d", "mkv"),
        ("a2", "MKV"),
    ]
    embed(tmp_path, records, "n.h5")
    embed(tmp_path, records, "i.h5", keys="id")
    assert [key for key, *_ in read(tmp_path / "n.h5")] == ["0", "1", "3", "4", "5"]
    assert [key for key, *_ in read(tmp_path / "i.h5")] == ["a", "é|2", "c", "d", "a2"]
    sums = {
        "md5": lambda s: hashlib.md5(s.encode()).hexdigest(),
        "biotrainer": lambda s: hashlib.sha256(f"{s}_{len(s)}".encode()).hexdigest(),
    }
    for keys, of in sums.items():
        file = tmp_path / f"{keys}.h5"
        outcome = embed(tmp_path, records, file.name, keys=keys)
        expected = [(of(s), name) for name, s in (records[0], records[1], records[4])]
        assert [(key, name) for key, name, _ in read(file)] == expected
        made = json.loads((tmp_path / f"{keys}.h5.json").read_text())
        doubles = [(d["record"], d["id"], d["written_as"]) for d in made["doubles"]]
        assert doubles == [(3, "c", "a"), (5, "a2", "a")]
        assert "2 with the letters of an earlier protein" in outcome.summary
        assert "c (as a)" in outcome.summary
        with pytest.raises(ProtlmError, match=f"keys was '{keys} of the letters' and is 'id'"):
            embed(tmp_path, records, file.name, keys="id")
    with pytest.raises(ProtlmError, match="keys was 'id' and is 'number'"):
        embed(tmp_path, records, "i.h5")
    for names, message in (
        (("a", "sp|P1/2"), "line 3: 'sp.P1/2' cannot be a key of HDF5"),
        (("a", "."), "line 3: '.' cannot be a key"),
        (
            ("a", "b", "a"),
            "line 5: 'a' is also the name in line 1, .* --keys number, biotrainer or md5",
        ),
    ):
        with pytest.raises(ProtlmError, match=message):
            embed(tmp_path, [(name, "MKV") for name in names], keys="id")
    with pytest.raises(ProtlmError, match="keys are of .h5"):
        embed(tmp_path, records, "e.parquet", EmbeddingSpec(LAST, ("mean",)), keys="id")


def test_a_model_and_its_export_are_one(tmp_path: Path) -> None:
    records = proteins(3)
    embed(tmp_path, records)
    bert = loaded("bert")
    config = bert.config.replace(dropout_rate=0.4, initializer_range=1.0, remat="full")
    other = dataclasses.replace(bert, model=models.build(config), name="an export")
    assert embed(tmp_path, records, model=other).summary.startswith("nothing to do")
