"""What `protlm doctor` reports: packages that are missing, too old, or in each other's way."""

from __future__ import annotations

import importlib.util
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from protlm_jax.cli import main
from protlm_jax.verbs import doctor


def installed(site: Path, name: str, version: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def faults(feature: str) -> dict[str, str]:
    return doctor.faults(feature, "1 x cpu (cpu)")


def test_rivals_and_old_and_missing_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    installed(tmp_path, "tensorflow", "2.21.0")
    installed(tmp_path, "tensorflow-cpu", "2.20.0")
    installed(tmp_path, "flax", "0.1.0")
    installed(tmp_path, "libtpu", "0.0.1")
    known = metadata.version

    def version(name: str) -> str:
        if name == "optax":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)
    assert faults("train") == {
        "flax is 0.1.0, >=0.12 is needed": "pip install protlm-jax",
        "optax is missing": "pip install protlm-jax",
        "tensorflow and tensorflow-cpu write into one folder: each overwrites files of the other":
            "pip uninstall -y tensorflow tensorflow-cpu && pip install tensorflow",
    }  # fmt: skip
    # What an extra of another package requires: jax[tpu].
    [(what, remedy)] = faults("plan").items() - faults("train").items() - {
        (what, "pip install 'protlm-jax[plan]'") for what in faults("train")
    }  # fmt: skip
    assert what.startswith("libtpu is 0.0.1, ==0.0.")
    assert remedy == "pip install 'protlm-jax[plan]'"


def test_t5x_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = importlib.util.find_spec

    def find(name: str) -> object:
        return None if name in ("t5x", "airio", "jestimator") else known(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert main(["doctor", "--for", "t5x"]) == 1
    text = capsys.readouterr().out
    assert "t5x    no " in text and "t5x is missing; airio is missing; jestimator" in text
    assert text.count("remedy: ") == 1 and "--no-deps -r requirements/t5x.txt" in text
    assert main(["doctor"]) == 0  # no feature in particular


def test_an_import_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of T5X with the jestimator of the package index."""
    error = "Traceback:\nImportError: cannot import name 'PartitionSpec'\n"
    failed = SimpleNamespace(returncode=1, stderr=error)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    [(what, remedy)] = doctor.import_faults("t5x").items()
    assert what == "import t5x.train: ImportError: cannot import name 'PartitionSpec'"
    assert remedy.startswith("pip uninstall -y jestimator; pip install")


def test_the_exit_code_is_that_of_the_feature(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--for", "tpu"]) == 1
    assert "JAX sees no tpu" in capsys.readouterr().out
    assert main(["doctor", "--for", "train"]) == 0
    text = capsys.readouterr().out
    assert "train  ok" in text and f"jax {metadata.version('jax')}" in text
