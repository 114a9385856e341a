"""Recipes of phases through the command itself: whole, stopped anywhere, changed, misplaced."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from runs import metrics, write_fasta

from protlm_jax.cli import main
from protlm_jax.config.files import read_config
from protlm_jax.config.folders import newest_run
from protlm_jax.config.recipes import load_recipe
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import verbs
from protlm_jax.huggingface import load_model, load_source, provenance
from protlm_jax.storage.owner import owned
from protlm_jax.training import loop, phases
from protlm_jax.training.checkpoints import restore_params, restore_part, saved_steps
from protlm_jax.training.phases import train_phases

RECIPE = """
import runpy
from ml_collections import ConfigDict
from zoo import ZOO

def get_config():
    specimen = ZOO["bert"]
    config = ConfigDict()
    config.model = ConfigDict(specimen.config.replace(max_positions=48).to_dict())
    config.objective = ConfigDict({"name": "masked"})
    config.data = ConfigDict({"fasta": "FASTA", "length": 24, "heldout_percent": 20.0})
    config.optimizer = ConfigDict({"name": "lamb"})
    config.schedule = ConfigDict({"name": "linear", "learning_rate": 1e-2, "warmup_steps": 2})
    config.train = ConfigDict({"steps": 4, "batch_size": 8, "log_every": 1, "evaluate_every": 4,
        "evaluate_batches": 1, "checkpoint_every": 2})
    config.mesh = ConfigDict({"data": 1})
    config.phases = [
        {"name": "short", "config": {}},
        {"name": "long", "config": {"data": {"length": 48}, "train": {"batch_size": 4}},
         "optimizer": "keep", "schedule": "continue"},
        {"name": "other", "config": {"data": {"fasta": "OTHER"}, "schedule": {"warmup_steps": 1}},
         "optimizer": "reset", "schedule": "restart"},
    ]
    return config
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    first = write_fasta(folder / "first.fasta")
    other = write_fasta(folder / "other.fasta", 1, "ACD")
    file = folder / "recipe.py"
    file.write_text(RECIPE.replace("FASTA", str(first)).replace("OTHER", str(other)))
    return file


def train(recipe: Path, workdir: Path, *overrides: str) -> int:
    return main(["train", "--config", str(recipe), "--workdir", str(workdir), *overrides])


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert train(recipe, workdir) == 0
    return workdir


def records(workdir: Path) -> list[dict[str, Any]]:
    return json.loads((workdir / "phases.json").read_text())["phases"]


def test_one_command_makes_all_phases(whole: Path) -> None:
    runs = [whole / name for name in ("1-short", "2-long", "3-other")]
    assert [saved_steps(run / "checkpoints")[-1] for run in runs] == [4, 4, 4]
    rates = [[line["learning_rate"] for line in metrics(run) if "loss" in line] for run in runs]
    # Warmup of 2 and 8 steps in all for the first two; 1 and 4 for the third.
    np.testing.assert_allclose(rates[0], [0, 0.5e-2, 1e-2, 5 / 6 * 1e-2], rtol=1e-5)
    np.testing.assert_allclose(rates[1], [4e-2 / 6, 3e-2 / 6, 2e-2 / 6, 1e-2 / 6], rtol=1e-5)
    np.testing.assert_allclose(rates[2], [0, 1e-2, 2e-2 / 3, 1e-2 / 3], rtol=1e-5)
    counts = [int(restore_part(run / "checkpoints/4", "opt_state")[0]["count"]) for run in runs]
    assert counts == [4, 8, 4], "moments are kept, and then start anew"


def test_the_change_of_phase_is_said_and_kept(whole: Path) -> None:
    first, second, third = records(whole)
    assert "change" not in first and "before" not in first
    assert (
        "the moments of lamb are kept; the linear schedule goes on at its step 4"
        in (second["change"])
    )
    assert (
        "lamb starts anew with empty moments; the linear schedule starts again at step 0"
        in (third["change"])
    )
    short, long, other = (
        "first.fasta, rows of 24",
        "first.fasta, rows of 48",
        "other.fasta, rows of 24",
    )
    assert list(first["after"]) == [short]
    assert list(second["before"]) == list(second["after"]) == [short, long]
    assert list(third["before"]) == list(third["after"]) == [long, other]


def test_the_losses_are_those_of_the_runs_themselves(whole: Path) -> None:
    """Before: the first evaluation of the new run. After: its last one, where batches are alike."""
    for number, name in ((1, "2-long"), (2, "3-other")):
        record, logged = records(whole)[number], metrics(whole / name)
        source = list(record["before"])[-1]
        for when, step in (("before", 0), ("after", 4)):
            line = next(x for x in logged if x["step"] == step and "heldout/nll" in x)
            assert record[when][source]["heldout/nll"] == line["heldout/nll"]
    assert records(whole)[2]["before"] != records(whole)[2]["after"]


def test_the_folder_stands_for_its_last_phase(whole: Path, tmp_path: Path) -> None:
    assert newest_run(whole) == whole / "3-other"
    loaded = load_model(whole)
    assert loaded.name == "3-other, step 4"
    assert loaded.config == read_config(whole / "3-other").model
    assert Path(verbs.data_of(whole).fasta or "").name == "other.fasta"
    said = provenance(whole)["training"]
    assert "for 4 steps" in said and "It started from 2-long." in said


class Stopped(KeyboardInterrupt):
    """Stands for a machine that is taken away."""


def test_stopped_anywhere_the_same_command_ends_as_one_that_never_was(
    recipe: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped four times around the second phase, in the order in which it gets there."""
    workdir = tmp_path / "run"
    for where in ("between", "measuring", "inside", "after"):
        with monkeypatch.context() as patch:
            stop_at(patch, where)
            assert train(recipe, workdir) == 130, where
    assert "before" in records(workdir)[1] and "after" not in records(workdir)[1]
    assert train(recipe, workdir) == 0
    for name in ("1-short", "2-long", "3-other"):
        assert metrics(workdir / name) == metrics(whole / name)
        params = [restore_params(run / name / "checkpoints/4") for run in (workdir, whole)]
        jax.tree.map(np.testing.assert_array_equal, *params)
    assert records(workdir) == records(whole)


def stop_at(patch: pytest.MonkeyPatch, where: str) -> None:
    """In the second phase: before it begins, its measurements before or after, its third step."""
    if where == "inside":
        calls = iter(range(100))
        counted = loop.count_tokens

        def count(batch: Any) -> int:
            if next(calls) == 2:
                raise Stopped
            return counted(batch)

        patch.setattr(loop, "count_tokens", count)
    elif where == "between":
        claimed = phases.claim_workdir

        def claim(config: Any, folder: Path) -> None:
            if folder.name == "2-long":
                raise Stopped
            claimed(config, folder)

        patch.setattr(phases, "claim_workdir", claim)
    else:
        scored = loop.Run.score_heldout
        calls = iter(range(100))
        last = 1 if where == "measuring" else 0  # what was measured before is on record by then

        def score(self: loop.Run, data: Any) -> Any:
            if next(calls) == last:
                raise Stopped
            return scored(self, data)

        patch.setattr(loop.Run, "score_heldout", score)


def test_a_complete_recipe_has_nothing_to_do(
    recipe: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*.jsonl")}
    assert train(recipe, whole) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*.jsonl")} == before
    moved = whole.rename(whole.with_name("moved"))
    try:
        assert train(recipe, moved) == 0, "the paths of a moved folder are not its config"
    finally:
        moved.rename(whole)


def test_one_process_at_a_time_trains_the_phases(
    recipe: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    with owned(whole, inside=True):
        assert train(recipe, whole, "--config.train.steps=9") == 1
    assert f"error: {whole} is being written by process {os.getpid()} " in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.short.train.seed=9", "train.seed: saved 0, asked 9"),
        ("phases.long.train.steps=6", "schedule.total_steps: saved 8, asked 10"),
        ("phases.other.data.length=30", "data.length: saved 24, asked 30"),
        ("phases.third.train.steps=9", "no such phase; there are short, long, other"),
    ],
)
def test_another_recipe_in_the_folder_is_refused(
    recipe: Path, whole: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert train(recipe, whole, f"--config.{override}") == 1
    assert message in capsys.readouterr().err


def test_a_phase_that_another_began_from_does_not_grow(recipe: Path, whole: Path) -> None:
    short, *others = load_recipe(str(recipe), [], whole)
    longer = dataclasses.replace(short.config.train, steps=6)
    short = dataclasses.replace(short, config=dataclasses.replace(short.config, train=longer))
    with pytest.raises(
        ProtlmError, match="phase short is asked for 6 .* long began from its step 4"
    ):
        train_phases([short, *others], whole, load_source)


def test_plain_runs_and_phases_do_not_share_a_folder(
    recipe: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ["train", "--config", "configs/tiny.py:bert", "--workdir"]
    assert main([*plain, str(whole)]) == 1
    assert "holds a run made in phases" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert train(recipe, tmp_path) == 1
    assert "holds a run without phases" in capsys.readouterr().err
