"""`protlm embed`: every record in its place, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import jax
import numpy as np
import pyarrow.parquet
import pytest
from zoo import loaded

from protlm_jax import cli, huggingface, models
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding import formats, parts
from protlm_jax.evaluation.embedding.engine import Engine
from protlm_jax.evaluation.embedding.files import embed_file
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.embedding.wanted import Wanted
from protlm_jax.evaluation.score_files import Outcome
from protlm_jax.models import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS

LAST = (2,)
Records = list[tuple[str, str]]


def proteins(count: int, shortest: int = 5, longest: int = 60, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(shortest, longest, count)
    return [(f"p{i}", "".join(rng.choice(list(AMINO_ACIDS), n))) for i, n in enumerate(sizes)]


def write(path: Path, records: Records) -> Path:
    path.write_text("".join(f">{name} of a kind\n{sequence}\n" for name, sequence in records))
    return path


def embed(
    folder: Path, records: Records, output: str = "e.h5", wanted: Wanted | None = None, **more: Any
) -> Outcome:
    """Embeds with the smallest BERT on one device, in batches of 256 tokens."""
    fasta, model = write(folder / "x.fasta", records), more.pop("model", None) or loaded("bert")
    more = {"devices": 1, "tokens_per_batch": 256, **more}
    return embed_file(model, fasta, folder / output, wanted or Wanted(LAST, ("residues",)), **more)


def read(path: Path) -> list[tuple[str, str, np.ndarray]]:
    """(key, original_id, array) of each data set, in the order of the file."""
    with h5py.File(path) as file:
        return [(key, file[key].attrs["original_id"], file[key][:]) for key in file]


def test_a_file_has_what_the_api_gives(tmp_path: Path, assert_close: Callable[..., None]) -> None:
    records = [*proteins(11), ("sp|P1/2", "MKTAYIAKQR"), ("p3", "MKV"), ("long", "MKLVW" * 30)]
    wanted = Wanted((0, 2), ("residues", "mean"))
    outcome = embed(tmp_path, records, wanted=wanted)
    assert outcome.failed == 0 and "long (150 in 4)" in outcome.summary
    residues, means = read(tmp_path / "e.residues.h5"), read(tmp_path / "e.mean.h5")
    assert [(key, name) for key, name, _ in residues] == [
        (str(i), name) for i, (name, _) in enumerate(records)
    ]
    stream = embed_sequences(loaded("bert"), dict(enumerate_ids(records)), layers=(0, 2), devices=1)
    for (_, array), found, mean in zip(stream, residues, means, strict=True):
        assert_close(found[2], array, 1e-5)
        assert_close(mean[2], array.mean(axis=1), 1e-5)
    assert not (tmp_path / "e.h5.work").exists()


def enumerate_ids(records: Records) -> Records:
    return [(f"{i}", sequence) for i, (_, sequence) in enumerate(records)]


def test_bad_records_are_listed_and_the_rest_is_done(tmp_path: Path) -> None:
    records = [("a", "MKV"), ("stop", "MK*"), ("b", "MKVL"), ("empty", ""), ("a", "MKW")]
    outcome = embed(tmp_path, records)
    assert outcome.failed == 2 and "2 not embedded" in outcome.summary
    found = read(tmp_path / "e.h5")
    assert [(key, name, len(x)) for key, name, x in found] == [
        ("0", "a", 3), ("2", "b", 4), ("4", "a", 3),
    ]  # fmt: skip
    made = json.loads((tmp_path / "e.h5.json").read_text())
    assert [(f["record"], f["line"], f["id"]) for f in made["failures"]] == [
        (1, 3, "stop"), (3, 7, "empty"),
    ]  # fmt: skip
    assert "stop sign" in made["failures"][0]["reason"]
    assert (made["proteins"], made["embedded"], made["residues"]) == (5, 3, 10)


KILLED = """
import os, signal, sys
from pathlib import Path
import test_files as here
from protlm_jax.evaluation.embedding import formats, parts

parts.PART_BYTES = 1
write = parts.Parts.write
def write_some(self, *what):
    write(self, *what)
    if len(self._files) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
parts.Parts.write = write_some
here.embed(Path(sys.argv[1]), here.proteins(60, longest=100))
"""


def test_a_kill_costs_no_more_than_what_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir(), whole.mkdir()
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    code = f"import sys; sys.path[:0] = {paths}; import conftest\n" + KILLED
    done = subprocess.run([sys.executable, "-c", code, str(killed)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (killed / "e.h5").exists() and len(list(killed.glob("e.h5.work/part-*"))) == 4

    # A file that was not written to its end is not taken for a part.
    (killed / "e.h5.work" / ".part-000004.xyz").write_bytes(b"half")
    computed = []
    kept = parts.Collector.add
    monkeypatch.setattr(
        parts.Collector,
        "add",
        lambda self, *what: computed.append(what[0]) or kept(self, *what),
    )
    records, lines = proteins(60, longest=100), []
    embed(killed, records, say=lines.append)
    again, _ = len(computed), computed.clear()
    embed(whole, records)
    assert 0 < again < len(computed) == 60
    assert f"going on: {60 - again} proteins are done" in lines
    for one, other in zip(read(killed / "e.h5"), read(whole / "e.h5"), strict=True):
        assert one[:2] == other[:2]
        np.testing.assert_array_equal(one[2], other[2])


def test_other_settings_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = proteins(4)
    embed(tmp_path, records)
    before = (tmp_path / "e.h5").stat().st_mtime_ns
    assert embed(tmp_path, records).summary.startswith("nothing to do: 4 of 4")
    assert (tmp_path / "e.h5").stat().st_mtime_ns == before
    with pytest.raises(ProtlmError, match="proteins was .* delete .*e.h5, or choose another"):
        embed(tmp_path, proteins(3))
    other = LoadedModel(
        loaded("bert").model,
        jax.tree.map(lambda x: x + 1e-3, loaded("bert").params),
        loaded("bert").vocabulary,
        loaded("bert").name,
    )
    with pytest.raises(ProtlmError, match="identity was"):
        embed(tmp_path, records, model=other)

    monkeypatch.setattr(parts.Parts, "remove", lambda self: None)  # as if killed before
    embed(tmp_path, records, "f.h5")
    (tmp_path / "f.h5").unlink()
    with pytest.raises(ProtlmError, match=r"unfinished.*dtype was 'float32' and is 'float16'"):
        embed(tmp_path, records, "f.h5", Wanted(LAST, ("residues",), "float16"))


def test_a_very_long_protein_among_short_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_close: Callable[..., None]
) -> None:
    esm2, short = loaded("esm2"), proteins(40)
    engines: list[Engine] = []
    monkeypatch.setattr(
        Engine, "embed", lambda s, *a, run=Engine.embed: engines.append(s) or run(s, *a)
    )
    (tmp_path / "alone").mkdir()
    embed(tmp_path / "alone", short, model=esm2, window=62)
    records = [*short[:20], ("long", "MKTAYIAKQRLW" * 300), *short[20:]]
    outcome = embed(tmp_path, records, model=esm2, window=62)
    assert outcome.failed == 0 and "long (3,600 in 116)" in outcome.summary
    assert len(engines[-1].used) <= 2  # the windows are no longer than the longest of the others
    found = read(tmp_path / "e.h5")
    assert found.pop(20)[2].shape == (3600, 16)
    for one, other in zip(found, read(tmp_path / "alone/e.h5"), strict=True):
        assert_close(one[2], other[2], 1e-5)


@pytest.mark.slow
def test_a_titin_among_a_thousand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_close: Callable[..., None]
) -> None:
    """35,000 residues are done and listed, and the others cost what they cost without them."""
    esm2, short, computed = loaded("esm2"), proteins(1000, 20, 200), []
    monkeypatch.setattr(
        Engine,
        "_start",
        lambda s, batch, *a, run=Engine._start: computed.append(batch) or run(s, batch, *a),
    )
    (tmp_path / "alone").mkdir()
    embed(tmp_path / "alone", short, model=esm2, tokens_per_batch=2048)
    alone = sum(batch.shape.length for batch in computed)
    computed.clear()
    titin = "".join(np.random.default_rng(1).choice(list(AMINO_ACIDS), 35_000))
    records = [*short[:500], ("titin", titin), *short[500:]]
    outcome = embed(tmp_path, records, model=esm2, tokens_per_batch=2048, window=1022)
    assert outcome.failed == 0 and "titin (35,000 in 68)" in outcome.summary
    listed = json.loads((tmp_path / "e.h5.json").read_text())["windowed"]
    assert listed == [{"record": 500, "id": "titin", "residues": 35_000, "windows": 68}]
    together = sum(batch.shape.length for batch in computed)
    assert together <= alone + 68 * 1024 + 2 * 2048
    assert len({batch.shape for batch in computed}) == 1
    found = read(tmp_path / "e.h5")
    assert found.pop(500)[2].shape == (35_000, 16)
    for one, other in zip(found, read(tmp_path / "alone/e.h5"), strict=True):
        assert_close(one[2], other[2], 1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes_read_back(dtype: str, tmp_path: Path) -> None:
    records = proteins(3)
    embed(tmp_path, records, wanted=Wanted(LAST, ("residues",), dtype))
    for (_, _, array), (_, exact) in zip(
        read(tmp_path / "e.h5"), embed_sequences(loaded("bert"), dict(records)), strict=True
    ):
        assert array.dtype == {"bfloat16": np.float32, "float16": np.float16}[dtype]
        bound = 2.0**-8 if dtype == "bfloat16" else 2.0**-10
        np.testing.assert_allclose(array, exact, rtol=bound, atol=1e-6)
        assert np.any(array.astype(np.float32) != exact)


def test_parquet_has_a_row_for_each_protein(tmp_path: Path) -> None:
    records = [*proteins(5), ("bad", "M1"), ("p0", "MKV")]
    wanted = Wanted((1, 2), ("mean", "cls"), "float16")
    embed(tmp_path, records, "e.parquet", wanted)
    table = pyarrow.parquet.read_table(tmp_path / "e.parquet").to_pydict()
    assert list(table) == [
        "record", "id", "residues", "mean_layer_1", "mean_layer_2", "cls_layer_1", "cls_layer_2",
    ]  # fmt: skip
    assert table["record"] == [0, 1, 2, 3, 4, 6] and table["id"][-1] == "p0"
    assert table["residues"][-1] == 3
    embed(tmp_path, records, "e.h5", Wanted((1, 2), ("mean",), "float16"))
    means = np.stack([x for _, _, x in read(tmp_path / "e.h5")])
    np.testing.assert_array_equal(np.array(table["mean_layer_2"], np.float16), means[:, 1])


def test_numbers_that_do_not_fit_are_a_failure(tmp_path: Path) -> None:
    bert = loaded("bert")
    huge = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 1e6 if "mlp_norm" in jax.tree_util.keystr(path) else x, bert.params
    )
    model = LoadedModel(bert.model, huge, bert.vocabulary, "huge")
    outcome = embed(
        tmp_path, proteins(3), model=model, wanted=Wanted(LAST, ("residues",), "float16")
    )
    assert outcome.failed == 3 and "not all of its numbers are finite" in outcome.summary
    assert read(tmp_path / "e.h5") == []


@pytest.mark.parametrize(
    ("output", "vectors", "dtype", "message"),
    [
        ("e.npz", ("residues",), "float32", "choose one of .h5"),
        ("e.parquet", ("residues",), "float32", "write residues as .h5"),
        ("e.parquet", ("mean",), "bfloat16", "no bfloat16"),
    ],
)
def test_what_a_file_cannot_hold(
    output: str, vectors: Any, dtype: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ProtlmError, match=message):
        embed(tmp_path, proteins(2), output, Wanted(LAST, vectors, dtype))
    assert not list(tmp_path.glob("e.*"))


def test_a_full_disk_is_seen_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ProtlmError, match="1.0 kB free"):
        embed(tmp_path, proteins(9))


@pytest.mark.parametrize(("text", "code"), [(">a\nMKT\n", 0), (">a\nMKT\n>b\nM1\n", 3)])
def test_the_command_ends_with_what_was_done(
    text: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(huggingface, "load_model", lambda path: loaded("bert"))
    fasta, output = tmp_path / "x.fasta", tmp_path / "e.h5"
    fasta.write_text(text)
    command = ["embed", "--model", "m", "--input", str(fasta), "--output", str(output)]
    assert cli.main([*command, "--vectors", "mean", "--layers", "all", "--devices", "1"]) == code
    printed = capsys.readouterr().out
    assert printed.startswith("needs about") and "mean, 3 layers" in printed
    assert read(output)[0][2].shape == (3, 16)
    assert cli.main([*command, "--layers", "deepest"]) == 1
    assert "write last, all, or numbers" in capsys.readouterr().err


def changed(file: Path, at: int | None = None) -> bytes:
    """Flips a bit of a file, and returns what it was."""
    content = file.read_bytes()
    at = len(content) // 2 if at is None else at
    file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    return content


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
    manifest.write_text('{"format": 1, "settings": {"parameters": "0123"}}')  # of c732700
    with pytest.raises(ProtlmError, match=r"another version of protlm wrote it.*: delete"):
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
    assert len(kept) > 3
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
            assert f"{file} is damaged: its proteins are computed again" in caplog.text
        assert (tmp_path / "e.h5").read_bytes() == whole and not folder.exists()


def test_a_part_damaged_later_and_a_file_written_wrongly_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, wanted = proteins(4), Wanted(LAST, ("mean",))
    write_file = formats.write_file

    def zeros(path: Path, entries: Any, *more: Any) -> None:
        write_file(
            path, (e._replace(arrays={"mean": 0 * e.arrays["mean"]}) for e in entries), *more
        )

    for output in ("e.h5", "e.parquet"):
        with monkeypatch.context() as held:
            held.setattr(formats, "write_file", zeros)
            with pytest.raises(ProtlmError, match=r"not written as it was computed \(entry 1"):
                embed(tmp_path, records, output, wanted)
        assert not (tmp_path / output).exists()

    def late(path: Path, *more: Any) -> None:
        for part in path.parent.glob("part-*"):
            changed(part, part.stat().st_size - 1)
        write_file(path, *more)

    with monkeypatch.context() as held:
        held.setattr(formats, "write_file", late)
        with pytest.raises(ProtlmError, match="part-000000 is damaged: run the same command again"):
            embed(tmp_path, records, wanted=wanted)
    assert embed(tmp_path, records, wanted=wanted).failed == 0


def test_an_input_that_changes_meanwhile_is_seen(tmp_path: Path) -> None:
    fasta = tmp_path / "x.fasta"
    for later in (">p0\nMKV\n", ">p0\nMKV\n>p1\nMKVL\n>p2\nM\n", ">p0\nMKV\n>p1\nMKVV\n"):
        with pytest.raises(ProtlmError, match=r"x.fasta changed while it was read"):
            embed(
                tmp_path, [("p0", "MKV"), ("p1", "MKVL")],
                say=lambda _, later=later: fasta.write_text(later),
            )  # fmt: skip
        shutil.rmtree(tmp_path / "e.h5.work")


def test_keys_are_numbers_names_or_sums(tmp_path: Path) -> None:
    records = [("a", "MKV"), ("é|2", "MKVL"), ("bad", "M1"), ("c", "MKV")]
    embed(tmp_path, records, "n.h5")
    embed(tmp_path, records, "i.h5", keys="id")
    outcome = embed(tmp_path, records, "m.h5", keys="md5")
    assert [key for key, *_ in read(tmp_path / "n.h5")] == ["0", "1", "3"]
    assert [key for key, *_ in read(tmp_path / "i.h5")] == ["a", "é|2", "c"]
    sums = [hashlib.md5(s.encode()).hexdigest() for s in ("MKV", "MKVL")]
    assert [(k, name) for k, name, _ in read(tmp_path / "m.h5")] == [
        *zip(sums, ("a", "é|2"), strict=True)
    ]
    assert "1 proteins have the residues of an earlier one" in outcome.summary
    assert json.loads((tmp_path / "m.h5.json").read_text())["settings"]["keys"] == "md5"
    with pytest.raises(ProtlmError, match="keys was 'id' and is 'number'"):
        embed(tmp_path, records, "i.h5")
    for names, message in (
        (("a", "sp|P1/2"), "line 3: 'sp.P1/2' cannot be a key of HDF5"),
        (("a", "."), "line 3: '.' cannot be a key"),
        (("a", "b", "a"), "line 5: 'a' is also the name in line 1, .* --keys number or md5"),
    ):
        with pytest.raises(ProtlmError, match=message):
            embed(tmp_path, [(name, "MKV") for name in names], keys="id")
    with pytest.raises(ProtlmError, match="keys are of .h5"):
        embed(tmp_path, records, "e.parquet", Wanted(LAST, ("mean",)), keys="id")


def test_a_model_and_its_export_are_one(tmp_path: Path) -> None:
    records = proteins(3)
    embed(tmp_path, records)
    bert = loaded("bert")
    config = bert.config.replace(dropout_rate=0.4, initializer_range=1.0, remat="full")
    other = dataclasses.replace(bert, model=models.build(config), name="an export")
    assert embed(tmp_path, records, model=other).summary.startswith("nothing to do")
