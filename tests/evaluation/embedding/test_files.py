"""`protlm embed`: every record in its place, whatever happens on the way."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pyarrow.parquet
import pytest
from embedded import LAST, Records, embed, proteins, read
from zoo import loaded

from protlm_jax import cli, huggingface
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import parts
from protlm_jax.evaluation.embedding.embedder import Embedder
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.embedding.spec import EmbeddingSpec
from protlm_jax.models import LoadedModel


def test_a_file_has_what_the_api_gives(tmp_path: Path, assert_close: Callable[..., None]) -> None:
    records = [*proteins(11), ("sp|P1/2", "MKTAYIAKQR"), ("p3", "MKV"), ("long", "MKLVW" * 30)]
    spec = EmbeddingSpec((0, 2), ("residues", "mean"))
    outcome = embed(tmp_path, records, spec=spec)
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
import embedded as here
from protlm_jax.evaluation import parts
from protlm_jax.evaluation.embedding import formats

parts.PART_BYTES = 1
take = parts.Parts._take
def take_some(self, *what):
    take(self, *what)
    if len(self._parts) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
parts.Parts._take = take_some
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
    assert not (killed / "e.h5").exists() and len(list(killed.glob("e.h5.work/part-*.json"))) == 4

    # A file that was not written to its end is not taken for a part.
    (killed / "e.h5.work" / "part-000004").write_bytes(b"half")
    computed = []
    kept = parts.Parts.add
    monkeypatch.setattr(
        parts.Parts,
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
        embed(tmp_path, records, "f.h5", EmbeddingSpec(LAST, ("residues",), "float16"))


def test_a_very_long_protein_among_short_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_close: Callable[..., None]
) -> None:
    """It is embedded and listed, and the others cost what they cost without it."""
    esm2, short, computed = loaded("esm2"), proteins(40), []
    monkeypatch.setattr(
        Embedder,
        "_inputs",
        lambda s, batch, *a, run=Embedder._inputs: computed.append(batch) or run(s, batch, *a),
    )
    (tmp_path / "alone").mkdir()
    embed(tmp_path / "alone", short, model=esm2, window=62)
    alone = sum(batch.shape.length for batch in computed)
    computed.clear()
    records = [*short[:20], ("long", "MKTAYIAKQRLW" * 300), *short[20:]]
    outcome = embed(tmp_path, records, model=esm2, window=62)
    assert outcome.failed == 0 and "long (3,600 in 116)" in outcome.summary
    listed = json.loads((tmp_path / "e.h5.json").read_text())["windowed"]
    assert listed == [{"record": 20, "id": "long", "residues": 3600, "windows": 116}]
    assert len({batch.shape for batch in computed}) == 1
    assert sum(batch.shape.length for batch in computed) <= alone + 116 * 64 + 2 * 256
    found = read(tmp_path / "e.h5")
    assert found.pop(20)[2].shape == (3600, 16)
    for one, other in zip(found, read(tmp_path / "alone/e.h5"), strict=True):
        assert_close(one[2], other[2], 1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes_read_back(dtype: str, tmp_path: Path) -> None:
    records = proteins(3)
    embed(tmp_path, records, spec=EmbeddingSpec(LAST, ("residues",), dtype))
    for (_, _, array), (_, exact) in zip(
        read(tmp_path / "e.h5"), embed_sequences(loaded("bert"), dict(records)), strict=True
    ):
        assert array.dtype == {"bfloat16": np.float32, "float16": np.float16}[dtype]
        bound = 2.0**-8 if dtype == "bfloat16" else 2.0**-10
        np.testing.assert_allclose(array, exact, rtol=bound, atol=1e-6)
        assert np.any(array.astype(np.float32) != exact)


def test_parquet_has_a_row_for_each_protein(tmp_path: Path) -> None:
    records = [*proteins(5), ("bad", "M1"), ("p0", "MKV")]
    spec = EmbeddingSpec((1, 2), ("mean", "cls"), "float16")
    embed(tmp_path, records, "e.parquet", spec)
    table = pyarrow.parquet.read_table(tmp_path / "e.parquet").to_pydict()
    assert list(table) == [
        "record", "id", "residues", "mean_layer_1", "mean_layer_2", "cls_layer_1", "cls_layer_2",
    ]  # fmt: skip
    assert table["record"] == [0, 1, 2, 3, 4, 6] and table["id"][-1] == "p0"
    assert table["residues"][-1] == 3
    embed(tmp_path, records, "e.h5", EmbeddingSpec((1, 2), ("mean",), "float16"))
    means = np.stack([x for _, _, x in read(tmp_path / "e.h5")])
    np.testing.assert_array_equal(np.array(table["mean_layer_2"], np.float16), means[:, 1])


def test_numbers_that_do_not_fit_are_a_failure(tmp_path: Path) -> None:
    bert = loaded("bert")
    huge = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 1e6 if "mlp_norm" in jax.tree_util.keystr(path) else x, bert.params
    )
    model = LoadedModel(bert.model, huge, bert.vocabulary, "huge")
    outcome = embed(
        tmp_path, proteins(3), model=model, spec=EmbeddingSpec(LAST, ("residues",), "float16")
    )
    assert outcome.failed == 3 and "values exceed the range of float16" in outcome.summary
    assert read(tmp_path / "e.h5") == []
    broken = jax.tree.map(np.array, bert.params)
    broken["encoder"]["mlp"]["wo"]["kernel"][1].flat[0] = np.nan
    model = LoadedModel(bert.model, broken, bert.vocabulary, "broken")
    outcome = embed(tmp_path, proteins(3), "n.h5", model=model)
    assert outcome.failed == 3 and "the embedding is not finite: the parameter" in outcome.summary
    assert "(block 1)" in outcome.summary and "bf16" not in outcome.summary


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
        embed(tmp_path, proteins(2), output, EmbeddingSpec(LAST, vectors, dtype))
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
    monkeypatch.setattr(huggingface, "load_model", lambda *_: loaded("bert"))
    fasta, output = tmp_path / "x.fasta", tmp_path / "e.h5"
    fasta.write_text(text)
    command = ["embed", "--model", "m", "--input", str(fasta), "--output", str(output)]
    assert cli.main([*command, "--vectors", "mean", "--layers", "all", "--devices", "1"]) == code
    printed = capsys.readouterr().out
    assert printed.startswith("needs about") and "mean, 3 layers" in printed
    assert read(output)[0][2].shape == (3, 16)
    assert cli.main([*command, "--layers", "deepest"]) == 1
    assert "write last, all, or numbers" in capsys.readouterr().err
