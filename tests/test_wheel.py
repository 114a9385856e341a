"""What is built for the package index works from any folder of a fresh environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"


@pytest.mark.parametrize(
    "dependencies",
    [
        pytest.param("of these tests", marks=pytest.mark.slow),
        pytest.param("as declared", marks=pytest.mark.long),
    ],
)
def test_the_wheel_of_the_sdist_trains_from_an_empty_folder(
    dependencies: str, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python, protlm = (tmp_path / "venv/bin" / name for name in ("python", "protlm"))
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, "install", "setuptools>=77"], check=False).returncode:
        pytest.skip("no package index can be reached")
    source = tmp_path / "source"
    for folder in ("protlm_jax", "configs", "gin"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    _run([str(python), "-c", BUILD], source)
    (sdist,) = (source / "dist").iterdir()
    _run([*pip, "wheel", "--no-deps", "--no-build-isolation", str(sdist)], tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.rmtree(source)
    if dependencies == "as declared":
        _run([*pip, "install", str(wheel)], tmp_path)
    else:
        _run([*pip, "install", "--no-deps", str(wheel)], tmp_path)
        (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
        (site / "of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert '"init_from": null' in _run([str(protlm), "configs", "tiny:esm2"], empty)
    folders = _run([str(protlm), "configs", "--gin"], empty).strip().split(",")
    assert Path(folders[1]).is_relative_to(tmp_path / "venv")
    assert (Path(folders[1]) / "prot_t5_tiny.gin").is_file()
    assert (Path(folders[0]) / "gin/runs/pretrain.gin").is_file()
    steps = [
        "--config.train.steps=1",
        "--config.schedule.warmup_steps=0",
        "--config.train.evaluate_every=0",
        "--config.data.length=64",
    ]
    train = ["train", "--config", "tiny:esm2", "--workdir", "run", *steps]
    assert "done: 1 steps in run" in _run([str(protlm), *train], empty)


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=_environment(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    """Without what leads to the clone."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
