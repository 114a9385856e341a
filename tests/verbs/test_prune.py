"""`protlm prune`: chooses layers, removes them, and writes a run and a folder of transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from zoo import loaded

from protlm_jax import models
from protlm_jax.cli import main
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.huggingface import export, load_model
from protlm_jax.models.pruning import pruned
from protlm_jax.storage.json_files import read_json
from protlm_jax.verbs.prune import layers_of

PROTEINS = {"a": "MKTAYIAKQRQISFVKSHFSRQ", "b": "MLEERLGLIEVQAPILSRVGDG", "c": "MKVLAAGWQDPN"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of four layers in Hugging Face's format, and proteins.fasta."""
    place = tmp_path_factory.mktemp("prune")
    whole = loaded("bert")
    model = models.build(whole.config.replace(num_layers=4))
    params = models.init_params(model, 5)
    export(dataclasses.replace(whole, model=model, params=params), place / "whole")
    text = "".join(f">{name}\n{sequence}\n" for name, sequence in PROTEINS.items())
    (place / "proteins.fasta").write_text(text)
    return place


def _prune(folder: Path, output: Path, *more: str) -> int:
    return main(
        ["prune", "--model", str(folder / "whole"), "--input", str(folder / "proteins.fasta"),
         "--output", str(output), *more]
    )  # fmt: skip


def test_the_layer_that_costs_least_is_removed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _prune(folder, tmp_path / "p", "--drop", "auto", "--layers", "2") == 0
    found = read_json(tmp_path / "p" / "prune.json")
    whole = load_model(folder / "whole")
    rises = analyse(whole, PROTEINS, metrics=["skips"], length=64)["encoder"]["skip_delta_nll"]
    first = found["steps"][0]
    assert first["layer"] == int(rises.values.argmin())
    assert first["rise in all"] == pytest.approx(float(rises.min()), rel=1e-4)
    assert found["pruned"]["loss"] == pytest.approx(found["steps"][1]["loss"], rel=1e-5)
    expected = pruned(whole, {"encoder": found["dropped"]})
    for written in ("pruned", "huggingface"):
        small = load_model(tmp_path / "p" / written)
        assert small.config.num_layers == 2
        kernel = small.params["encoder"]["mlp"]["wi"]["kernel"]
        assert np.array_equal(kernel, expected.params["encoder"]["mlp"]["wi"]["kernel"])
    before = capsys.readouterr().out
    assert _prune(folder, tmp_path / "p", "--drop", "auto", "--layers", "2") == 0  # nothing to do
    assert capsys.readouterr().out == before
    assert _prune(folder, tmp_path / "p", "--drop", "1") == 1
    assert "other settings" in capsys.readouterr().err
    file = tmp_path / "p" / "huggingface" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert _prune(folder, tmp_path / "p", "--drop", "auto", "--layers", "2") == 1
    assert "huggingface is not as it was written" in capsys.readouterr().err


def test_other_files_in_the_folder_are_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "p" / "pruned" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert _prune(folder, tmp_path / "p", "--drop", "1") == 1
    assert "holds other files" in capsys.readouterr().err and mine.read_text() == "mine"


def test_a_killed_command_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("protlm_jax.huggingface.import_model", killed)
        assert _prune(folder, tmp_path / "p", "--drop", "1") == 130
    assert _prune(folder, tmp_path / "p", "--drop", "1") == 0
    assert load_model(tmp_path / "p" / "pruned").config.num_layers == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--drop", "auto"], "--drop auto needs --layers N or --budget NATS"),
        (["--drop", "1", "--layers", "2"], "--drop auto needs"),
        (["--drop", "7"], "has no layer 7 in its encoder: its layers are 0 to 3"),
        (["--drop", "0-3"], "would be left without layers"),
        (["--drop", "x"], "name layers as in 4 or 20-28,30"),
        (["--drop", "auto", "--budget", "0.1", "--by", "last"], "needs --by effect"),
        (["--drop", "1", "--heal", "5"], "belong together"),
        (["--drop", "1", "--stack", "decoder"], "has no stack 'decoder'"),
        (["--drop", "auto", "--layers", "1", "--stack", "decoder"], "has no stack 'decoder'"),
        (["--drop", "auto", "--layers", "4"], "has 4 layers: at most 3 can be removed"),
    ],
)
def test_what_cannot_be_done_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list, message: str
) -> None:
    assert _prune(folder, tmp_path / "p", *words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "p" / "prune.json").exists()


def test_layers_are_named_by_numbers_and_ranges() -> None:
    assert layers_of("4, 20-22,30") == [4, 20, 21, 22, 30]
    for text in ("", "4-", "5-3", "-1", "4;5", "4.5"):
        with pytest.raises(ProtlmError, match="name layers"):
            layers_of(text)


@pytest.mark.slow
def test_a_pruned_model_heals_and_transformers_computes_it(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from protlm_jax.huggingface.verify import verify

    rng = np.random.default_rng(0)
    proteins = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 40)) for _ in range(80)]
    fasta = str(tmp_path / "heal.fasta")
    Path(fasta).write_text("".join(f">{i}\n{protein}\n" for i, protein in enumerate(proteins)))
    assert _prune(folder, tmp_path / "p", "--drop", "1,2") == 0
    small = load_model(tmp_path / "p" / "pruned")
    assert verify(small, tmp_path / "p" / "huggingface", PROTEINS)["max_difference"] < 1e-5
    assert _prune(folder, tmp_path / "p", "--drop", "1,2", "--heal", "3", "--fasta", fasta) == 0
    healed = load_model(tmp_path / "p" / "healed")
    assert verify(healed, tmp_path / "p" / "huggingface", PROTEINS)["max_difference"] < 1e-5
    kernels = [model.params["encoder"]["mlp"]["wi"]["kernel"] for model in (healed, small)]
    assert not np.array_equal(*kernels)
    before = read_json(tmp_path / "p" / "prune.json")
    assert before["healed"]["steps"] == 3
    words = ["--drop", "1,2", "--heal", "3", "--fasta"]
    assert _prune(folder, tmp_path / "p", *words, fasta) == 0  # nothing to do
    assert read_json(tmp_path / "p" / "prune.json") == before
    assert _prune(folder, tmp_path / "p", *words, str(folder / "proteins.fasta")) == 1
