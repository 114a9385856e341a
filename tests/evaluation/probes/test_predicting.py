"""Saved heads predict for new proteins what they predicted before, and belong to one model."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

import jax
import numpy as np
import pytest
from probe_benchmarks import benchmark
from zoo import loaded

from protlm_jax import cli, huggingface, models
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.outcome import Outcome
from protlm_jax.evaluation.parts import Arrays
from protlm_jax.evaluation.probe_data import Target
from protlm_jax.evaluation.probes import saved
from protlm_jax.evaluation.probes.features import ModelReader
from protlm_jax.evaluation.probes.heads import kind
from protlm_jax.evaluation.probes.moments import Standard
from protlm_jax.evaluation.probes.predicting import predict, predict_file
from protlm_jax.evaluation.probes.run import run
from protlm_jax.evaluation.probes.trained import TrainedHeads
from protlm_jax.models.loaded import LoadedModel

FASTA = """>b second
MKDEKRAAGG
>a\tfirst
KKRRDDEE
>bad
MK*
>b again
DDDDKKKKAAAAGGGGDDDDKKKKAAAAGGGGDDDDKKKKAAAAGGGGDDDDKKKKAAAAGGGG
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Probes of residues and of proteins, trained as briefly as can be."""
    made = {}
    for level in ("residue", "protein"):
        probed = run(
            *(loaded("bert"), benchmark(level)), heads=["linear"], seeds=1, views=["test"],
            controls=[], window=30,
        )  # fmt: skip
        made[level] = tmp_path_factory.mktemp(level)
        saved.save(probed, loaded("bert"), made[level] / "probe")
    return made


def predicted(folder: Path, output: Path) -> Outcome:
    """What a probe predicts for FASTA, written to a file beside the input."""
    fasta = output.with_name("new.fasta")
    fasta.write_text(FASTA)
    return predict_file(loaded("bert"), saved.load(folder), fasta, output)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open() as text:
        return list(csv.DictReader(text))


def test_it_is_found_from_any_of_its_folders(folders: dict[str, Path]) -> None:
    whole = folders["residue"]
    for folder in (whole, whole / "probe", whole / "probe" / "linear"):
        probe = saved.load(folder)
        assert probe.about["layer"] == 2 and probe.about["window"] == 30
        assert probe.heads.targets == benchmark("residue").targets
    with pytest.raises(ProtlmError, match="holds no probe"):
        saved.load(whole.parent / "nothing")


def test_residues_get_probabilities_in_the_order_of_the_input(folders: dict[str, Path]) -> None:
    probe = saved.load(folders["residue"])
    proteins = benchmark("residue").splits["test"]()
    found = list(predict(loaded("bert"), probe, {p.id: p.sequence for p in proteins}))
    assert [name for name, _ in found] == [p.id for p in proteins]
    for protein, (_, answer) in zip(proteins, found, strict=True):
        assert answer["where"].shape == (len(protein.sequence), 3)
    probabilities = np.concatenate([answer["where"] for _, answer in found])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    truth = np.concatenate([p.labels["where"] for p in proteins])
    right = (probabilities.argmax(1) == truth)[truth >= 0]
    assert right.mean() > 0.7  # the most frequent class has 0.6
    assert list(predict(loaded("bert"), probe, {})) == []


def test_strings_of_residues(folders: dict[str, Path], tmp_path: Path) -> None:
    outcome = predicted(folders["residue"], tmp_path / "out.csv")
    assert outcome.failed == 1 and "read through windows" in outcome.summary
    rows = rows_of(tmp_path / "out.csv")
    assert [row["id"] for row in rows] == ["b", "a", "bad", "b"]
    assert [len(row["where"]) for row in rows] == [10, 8, 0, 64]
    assert set("".join(row["where"] for row in rows)) <= set("-0+")
    assert "position 3" in rows[2]["error"] and rows[2]["residues"] == ""
    predicted(folders["residue"], tmp_path / "out.fasta")
    lines = (tmp_path / "out.fasta").read_text().splitlines()
    assert lines[::2] == [">b where", ">a where", ">b where"]
    assert lines[1::2] == [row["where"] for row in rows if row["where"]]
    with pytest.raises(ProtlmError, match=r"out.txt: the suffix"):
        predicted(folders["residue"], tmp_path / "out.txt")


def test_a_protein_without_finite_embeddings_keeps_its_row(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ModelReader.read

    def overflowing(self: ModelReader, sequences: Sequence[str]) -> Iterator[tuple[int, Arrays]]:
        for index, arrays in read(self, sequences):
            factor = np.nan if len(sequences[index]) == 8 else 1.0
            yield index, {name: values * factor for name, values in arrays.items()}

    predicted(folders["residue"], tmp_path / "whole.csv")
    monkeypatch.setattr(ModelReader, "read", overflowing)
    outcome = predicted(folders["residue"], tmp_path / "out.csv")
    assert outcome.failed == 2 and "2 of 4 proteins" in outcome.summary
    rows, right = rows_of(tmp_path / "out.csv"), rows_of(tmp_path / "whole.csv")
    assert rows[1].pop("error").startswith("'a, line 3': the embedding is not finite")
    assert right[1].pop("error") == rows[1]["where"] == ""
    assert [row for row in rows if row["id"] != "a"] == [row for row in right if row["id"] != "a"]


def test_classes_and_numbers_of_proteins(folders: dict[str, Path], tmp_path: Path) -> None:
    predicted(folders["protein"], tmp_path / "out.csv")
    row = rows_of(tmp_path / "out.csv")[0]
    every = {name: float(row[f"where: {name}"]) for name in ("acid", "neutral", "basic")}
    assert sum(every.values()) == pytest.approx(1, abs=1e-5)
    assert row["where"] == max(every, key=lambda name: every[name])
    assert float(row["where probability"]) == max(every.values())
    probe = saved.load(folders["protein"])
    ((_, found),) = predict(loaded("bert"), probe, {"b": "MKDEKRAAGG"})
    assert float(row["share"]) == pytest.approx(float(found["share"][0]), rel=1e-4)
    with pytest.raises(ProtlmError, match="classes have letters"):
        predicted(folders["protein"], tmp_path / "out.fasta")


def test_the_verb_ends_with_3_when_a_record_is_bad(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fasta = tmp_path / "new.fasta"
    fasta.write_text(FASTA)
    monkeypatch.setattr(huggingface, "load_model", lambda *_: loaded("bert"))
    arguments = ["predict", "--model", str(tmp_path), "--probe", str(folders["protein"])]
    arguments += ["--input", str(fasta), "--output", str(tmp_path / "out.csv")]
    assert cli.main(arguments) == 3
    assert "3 of 4 proteins: where, share" in capsys.readouterr().out


def test_a_flipped_bit_of_a_probe_is_seen(folders: dict[str, Path], tmp_path: Path) -> None:
    """Wherever it is, but between the words of a JSON file."""
    whole = shutil.copytree(folders["protein"], tmp_path / "out")
    files = [file for file in whole.rglob("*") if file.is_file()]
    names = "probes.json probe.json heads.json heads.npz digests.json"
    assert {f.name for f in files} == set(names.split())
    rng = np.random.default_rng(0)
    for file in (*files, *rng.choice(files, 35)):
        content = file.read_bytes()
        damaged, at = bytearray(content), int(rng.integers(len(content)))
        damaged[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        try:
            saved.load(whole)
        except ProtlmError as error:
            assert "\n" not in str(error)
        else:
            assert json.loads(file.read_text()) == json.loads(content), f"{file}: {at}"
        file.write_bytes(content)
    saved.load(whole)


def of_format_1(folder: Path) -> None:
    """Makes a head's folder what c732700 wrote: no seal, names as they are, a sample's digest."""
    (folder / "digests.json").unlink()
    about = json.loads((folder / "probe.json").read_text())
    del about["digest"], about["identity"]
    about |= {"format": 1, "parameters": saved._sampled(loaded("bert"))}
    (folder / "probe.json").write_text(json.dumps(about))
    heads = json.loads((folder / "heads.json").read_text())
    del heads["digest"], heads["format"]
    (folder / "heads.json").write_text(json.dumps(heads))
    with np.load(folder / "heads.npz") as file:
        arrays = {unquote(name): file[name] for name in file.files}
    np.savez(folder / "heads.npz", **arrays)


def test_probes_of_older_versions_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    old = shutil.copytree(folders["protein"], tmp_path / "out")
    of_format_1(old / "probe" / "linear")
    said = predicted(old, tmp_path / "old.csv").summary
    assert "an older version wrote the probe: only a sample" in said
    assert "older version" not in predicted(folders["protein"], tmp_path / "new.csv").summary
    assert (tmp_path / "old.csv").read_bytes() == (tmp_path / "new.csv").read_bytes()


def test_a_probe_belongs_to_the_model_and_its_export_alone(
    folders: dict[str, Path], small_model: Callable[..., LoadedModel]
) -> None:
    probe, bert = saved.load(folders["protein"]), loaded("bert")
    config = bert.config.replace(initializer_range=0.7, dropout_rate=0.1)
    saved.require_model(probe, dataclasses.replace(bert, model=models.build(config), name="hf"))
    leaves, tree = jax.tree.flatten(bert.params)
    flat = np.array(leaves[-1])
    flat.reshape(-1)[-1] += 0.01
    edited = dataclasses.replace(bert, params=jax.tree.unflatten(tree, [*leaves[:-1], flat]))
    with pytest.raises(ProtlmError, match="has other parameters"):
        saved.require_model(probe, edited)
    with pytest.raises(ProtlmError, match="features mean something else"):
        next(predict(small_model("bert", seed=5), probe, {"a": "MK"}))


@pytest.mark.parametrize("head", ["linear", "cnn", "fnn"])
def test_labels_names_may_hold_any_character(head: str, tmp_path: Path) -> None:
    names = ("kcat/Km", "a.b", "shared", "Dropout_0", "é 1%", "valid/x", "%6b")
    targets = tuple(Target(name, "number") for name in names)
    network = kind(head).module(targets)
    x, protein = np.ones((6, 4), np.float32), np.zeros(6, np.int32)
    variables = network.init(jax.random.key(0), x, protein, 1, False)
    stacked = jax.tree.map(lambda a: np.asarray(a)[None, None], variables)
    scores = {name: np.full((1, 1), i / 8) for i, name in enumerate(names)}
    made = TrainedHeads(
        head, targets, (0,), stacked, Standard(np.zeros((1, 4)), np.ones((1, 4))),
        dict.fromkeys(names, (0.0, 1.0)), np.ones((1, 1)), np.ones((1, 1)), scores,
    )  # fmt: skip
    saved.save_heads(made, tmp_path)
    back = saved.load_heads(tmp_path)
    assert back.valid == scores and [t.name for t in back.targets] == list(names)
    before = network.apply(variables, x, protein, 1, False)
    after = network.apply(jax.tree.map(lambda a: a[0, 0], back.variables), x, protein, 1, False)
    assert set(after) == set(names)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    with pytest.raises(ProtlmError, match="a column of labels has no name"):
        kind(head).module((Target("", "number"),)).init(jax.random.key(0), x, protein, 1, False)
