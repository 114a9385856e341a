"""What `protlm doctor` says of packages that are missing, too old, or in each other's way."""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path

import pytest

from protlm_jax.cli import main
from protlm_jax.verbs import doctor


def installed(site: Path, name: str, version: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that are found before all others."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def found(road: str) -> dict[str, str]:
    """What is wrong, and what mends it."""
    return {finding.what: finding.mend for finding in doctor.examine(road, "1 x cpu (cpu)")}


def test_two_packages_in_one_folder(site: Path) -> None:
    installed(site, "tensorflow", "2.21.0")
    installed(site, "tensorflow-cpu", "2.20.0")
    [(what, mend)] = [pair for pair in found("train").items() if "one folder" in pair[0]]
    assert what.startswith("tensorflow and tensorflow-cpu write")
    assert mend == "pip uninstall -y tensorflow tensorflow-cpu && pip install tensorflow"


def test_missing_and_old(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(site, "flax", "0.1.0")
    known = metadata.version

    def version(name: str) -> str:
        if name == "optax":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)
    assert found("train") == {
        "flax is 0.1.0, >=0.12 is needed": "pip install protlm-jax",
        "optax is missing": "pip install protlm-jax",
    }


def test_what_an_extra_of_another_package_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    known = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "0.0.1" if n == "libtpu" else known(n))
    [(what, mend)] = found("plan").items()
    assert what.startswith("libtpu is 0.0.1, ==0.0.") and mend == "pip install 'protlm-jax[plan]'"


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("from jax.experimental.pjit import PartitionSpec", True),
        ("from jax.experimental.pjit import pjit, PartitionSpec", True),
        ("import jax", False),
    ],
)
def test_the_jestimator_that_breaks_t5x(
    line: str, broken: bool, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("t5x", "airio", "jestimator"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # where the real one is installed
        (site / name).mkdir()
        (site / name / "__init__.py").touch()
        importlib.util.find_spec(name)
    (site / "jestimator/amos.py").write_text(line + "\n")
    lines = [what for what in found("t5x") if "jestimator" in what]
    assert lines == ["jestimator is the one of the package index, of 2022: T5X imports it, and it "
                     "fails"] * broken  # fmt: skip


def test_t5x_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = importlib.util.find_spec

    def find(name: str) -> object:
        return None if name in ("t5x", "airio", "jestimator") else known(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert main(["doctor", "--for", "t5x"]) == 1
    said = capsys.readouterr().out
    assert "t5x    no " in said and "t5x is missing; airio is missing; jestimator" in said
    assert said.count("mend: ") == 1 and "--no-deps -r requirements/t5x.txt" in said
    assert main(["doctor"]) == 0  # nothing in particular was asked for


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--for", "tpu"]) == 1
    assert "JAX sees no tpu" in capsys.readouterr().out


def test_a_road_that_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--for", "train"]) == 0
    said = capsys.readouterr().out
    assert "train  ok" in said and f"jax {metadata.version('jax')}" in said
