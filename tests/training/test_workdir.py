"""A run's folder belongs to one config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protlm_jax.config.files import load_config, read_config
from protlm_jax.config.run import RunConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged
from protlm_jax.training.workdir import FREE_ON_RESUME, claim_workdir


def config(*overrides: str) -> RunConfig:
    return load_config("configs/tiny.py:bert", list(overrides))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder in which training has begun."""
    workdir = tmp_path / "runs" / "mine"
    claim_workdir(config(), workdir)
    (workdir / "metrics.jsonl").write_text("")
    return workdir


def test_a_claimed_folder_holds_its_resolved_config(run: Path) -> None:
    assert read_config(run) == config()
    claim_workdir(config(), run)
    assert read_config(run) == config()


def test_every_difference_is_named_and_nothing_is_changed(run: Path) -> None:
    with pytest.raises(ProtlmError) as caught:
        claim_workdir(config("train.seed=1", "model.d_model=64", "train.steps=9"), run)
    message = str(caught.value)
    assert f"{run} holds a run of another config" in message
    assert "train.seed: saved 0, asked 1" in message
    assert "model.d_model: saved 96, asked 64" in message
    assert "train.steps" not in message and "--workdir" in message
    assert read_config(run) == config()


OTHER = {"train.profile_steps": "3,5", "mesh.stream": "length", "mesh.auto": "True"}


@pytest.mark.parametrize("field", FREE_ON_RESUME)
def test_some_fields_may_change_between_the_parts_of_a_run(run: Path, field: str) -> None:
    changed = config(f"{field}={OTHER.get(field, 3)}")
    claim_workdir(changed, run)
    assert read_config(run) == changed != config()


def test_a_run_that_never_began_may_change_its_config(tmp_path: Path) -> None:
    claim_workdir(config("train.seed=1"), tmp_path)
    claim_workdir(config("train.seed=2"), tmp_path)
    assert read_config(tmp_path).train.seed == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model": ', "is not JSON"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
        (b'{"model": {}}', "config.objective is missing"),
        (None, "does not exist: not a run folder"),
    ],
)
def test_a_damaged_config_is_said_to_be_one(run: Path, content: bytes | None, message: str) -> None:
    (run / "config.json").unlink()
    if content is not None:
        (run / "config.json").write_bytes(content)
    with pytest.raises(ProtlmError, match=message):
        read_config(run)


def test_a_changed_config_is_said_to_be_damaged(run: Path) -> None:
    file = run / "config.json"
    text = file.read_text()
    file.write_text(text.replace('"seed": 0', '"seed": 4', 1))
    with pytest.raises(Damaged, match="config.json is not as it was written.*delete its line"):
        read_config(run)
    old = {name: value for name, value in json.loads(text).items() if name != "digest"}
    file.write_text(json.dumps(old, indent=2))  # as older versions wrote it
    assert read_config(run) == config()


def test_an_unknown_field_of_a_newer_version_is_named(run: Path) -> None:
    tree = config().to_dict()
    tree["model"]["sparsity"] = 1
    (run / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ProtlmError, match=r"newer version .*field model\.sparsity\): update"):
        claim_workdir(config(), run)
