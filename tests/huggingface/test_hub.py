"""A model by its id is what the same model is as a folder; without a network it is said why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import zoo

from protlm_jax import cli
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import export, hub, load_model

huggingface_hub = pytest.importorskip("huggingface_hub")
ID = "someone/tiny_bert"


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with more than a model needs, in a folder beside a cache that it is put into."""
    repository = export(zoo.loaded("bert"), tmp_path / "far")
    (repository / "pytorch_model.bin").write_bytes(b"the same weights again")
    (repository / "onnx").mkdir()
    (repository / "onnx" / "config.json").write_text("{}")
    cache = tmp_path / "models--someone--tiny_bert" / "snapshots" / ("0" * 40)

    def snapshot(model: str, allow_patterns: Any = None, local_files_only: bool = False) -> str:
        assert model == ID
        if not local_files_only:
            cache.mkdir(parents=True, exist_ok=True)
            for name in allow_patterns:
                shutil.copy(repository / name, cache / name)
        elif not cache.exists():
            raise FileNotFoundError("not in the cache")
        return str(cache)

    def names(model: str) -> list[str]:
        files = (f for f in repository.rglob("*") if f.is_file())
        return [str(f.relative_to(repository)) for f in files]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", names)
    return cache


def no_network(*arguments: Any, **more: Any) -> Any:
    raise ConnectionError("no route to host\nand a long story")


def raising(error: Exception) -> Callable[..., Any]:
    def raised(*arguments: Any, **more: Any) -> Any:
        raise error

    return raised


def test_an_id_is_a_folder(
    far: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_model(ID)
    assert loaded.name == ID
    jax.tree.map(np.testing.assert_array_equal, loaded.params, zoo.loaded("bert").params)
    kept = {file.name for file in far.iterdir()}
    assert "model.safetensors" in kept and not kept & {"pytorch_model.bin", "onnx", "README.md"}
    monkeypatch.setattr(huggingface_hub, "list_repo_files", no_network)  # it is in the cache now
    assert load_model(ID).name == ID
    assert "cannot be reached (no route to host): using someone/tiny_bert as it was" in caplog.text
    gone = PermissionError("the model is gated now")
    monkeypatch.setattr(huggingface_hub, "list_repo_files", raising(gone))
    with pytest.raises(ProtlmError, match="the model is gated now"):
        load_model(ID)


def test_without_a_network_it_says_what_to_do(
    far: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(huggingface_hub, "list_repo_files", no_network)
    fasta = tmp_path / "x.fasta"
    fasta.write_text(">a\nMKV\n")
    output = str(tmp_path / "e.h5")
    assert cli.main(["embed", "--model", ID, "--input", str(fasta), "--output", output]) == 1
    said = capsys.readouterr().err
    for part in (ID, "no route to host)", "hf download", "name that folder"):
        assert part in said
    assert "long story" not in said


def test_a_folder_that_is_not_there_is_not_looked_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Callable[..., Any] = pytest.fail
    monkeypatch.setattr(huggingface_hub, "list_repo_files", asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in ("runs/mine", "mine", "../a/b", str(tmp_path / "mine"), "a/b/c"):
        with pytest.raises(ProtlmError, match="is not a folder on this machine"):
            load_model(path)


def test_what_is_needed_of_a_repository() -> None:
    common = ["config.json", "spiece.model", "tokenizer_config.json"]
    pickled = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    other = ["README.md", "tf_model.h5", "training_args.bin", "onnx/model.safetensors"]
    assert hub.needed([*common, *pickled, *other]) == [*pickled, *common]
    safe = ["model.safetensors"]
    assert hub.needed([*common, *pickled, *safe, *other]) == [*safe, *common]
