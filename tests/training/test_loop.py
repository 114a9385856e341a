"""Whole runs: complete, interrupted, killed, diverged, misplaced."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from runs import assert_same_run, metrics, tree
from zoo import ZOO, kinds_first

from protlm_jax.config.run import RunConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.owner import Occupied, owned
from protlm_jax.training import assembly, checkpoints, loop
from protlm_jax.training.assembly import Assembly
from protlm_jax.training.checkpoints import restore_params, restore_part, saved_steps
from protlm_jax.training.metrics import read_metrics


def config(fasta: Path, family: str = "bert", **train: Any) -> RunConfig:
    """A short run of a specimen, with dropout, so that keys are part of what must come back."""
    settings = {"steps": 10, "evaluate_every": 5, "checkpoint_every": 4, **train}
    sections = {"data": {"fasta": str(fasta)}, "model": {"dropout_rate": 0.1}, "train": settings}
    return RunConfig.from_dict(tree(family, **sections))


@pytest.mark.parametrize("family", kinds_first(exact=("bert",)))
def test_an_interrupted_run_goes_on_bit_for_bit(
    fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    run = config(fasta, family)
    assert loop.train(run, tmp_path / "whole") == 10
    assert [line["step"] for line in metrics(tmp_path / "whole") if "loss" in line] == list(
        range(1, 11)
    )
    with monkeypatch.context() as patch:
        # Stops while step 7 is under way: step 4 is on disk, 5 and 6 are logged.
        counts = iter(range(100))
        counted = loop.count_tokens

        def stop(batch: Any) -> int:
            if next(counts) == 6:
                raise KeyboardInterrupt
            return counted(batch)

        patch.setattr(loop, "count_tokens", stop)
        with pytest.raises(KeyboardInterrupt):
            loop.train(run, tmp_path / "parts")
    assert loop.train(run, tmp_path / "parts") == 6
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert loop.train(run, tmp_path / "parts") == 0, "a complete run has nothing to do"


def test_a_memory_is_saved_or_forgotten_as_the_config_says(fasta: Path, tmp_path: Path) -> None:
    whole = config(fasta, "transformer_xl", steps=6, evaluate_every=0)
    loop.train(whole, tmp_path / "whole")
    saved = restore_part(tmp_path / "whole" / "checkpoints" / "6", "carry")
    assert saved["past"].shape == (4, 2, 12, 16) and saved["past"].any(axis=-1).all()
    assert (saved["past_segments"] > 0).all()

    losses = {}
    for carry in ("save", "reset"):
        folder = tmp_path / carry
        loop.train(config(fasta, "transformer_xl", steps=4, evaluate_every=0, carry=carry), folder)
        loop.train(config(fasta, "transformer_xl", steps=6, evaluate_every=0, carry=carry), folder)
        losses[carry] = [line["loss"] for line in metrics(folder)]
    assert losses["save"] == [line["loss"] for line in metrics(tmp_path / "whole")]
    assert losses["reset"][:4] == losses["save"][:4]
    assert losses["reset"][4] != losses["save"][4], "without its memory the model knows less"
    assert not restore_part(tmp_path / "reset" / "checkpoints" / "6", "carry")


def test_a_diverged_run_stops_with_its_step_and_keeps_good_checkpoints(
    fasta: Path, tmp_path: Path
) -> None:
    run = config(fasta, checkpoint_every=1)
    run = dataclasses.replace(
        run,
        schedule=dataclasses.replace(
            run.schedule, name="linear", learning_rate=1e38, warmup_steps=3
        ),
    )
    with pytest.raises(ProtlmError, match=r"step \d+"):
        loop.train(run, tmp_path)
    for step in saved_steps(tmp_path / "checkpoints"):
        params = restore_params(tmp_path / "checkpoints" / str(step))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_run_may_leave_out_updates_but_not_for_ever(
    fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config(fasta, steps=12, skip_limit=3, checkpoint_every=2, profile_steps=(2, 3))
    schedule = dataclasses.replace(run.schedule, name="linear", learning_rate=1e16, warmup_steps=3)
    with pytest.raises(ProtlmError, match=r"updates \d+ to \d+ had .* train.skip_limit is 3"):
        loop.train(dataclasses.replace(run, schedule=schedule), tmp_path)
    assert "the update was left out, 3 in a row" in capsys.readouterr().err
    rows = [line["skipped/in_a_row"] for line in metrics(tmp_path) if "loss" in line]
    assert rows[-3:] == [1, 2, 3] and not any(rows[:-3])
    for step in saved_steps(tmp_path / "checkpoints"):
        params = restore_params(tmp_path / "checkpoints" / str(step))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert list((tmp_path / "plugins" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("name", ["gradient_norm", "update_norm"])
def test_what_is_not_finite_beside_the_loss_is_not_saved(
    fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A finite loss says nothing about the update that was made after it."""
    assemble = loop.assemble

    def broken(run: RunConfig) -> Assembly:
        parts = assemble(run)
        copy, steps = dataclasses.replace(parts), itertools.count(1)

        def update(*arguments: Any) -> Any:
            state, metrics = parts.update(*arguments)
            bad = {name: float("nan")} if next(steps) == 3 else {}
            return state, {**metrics, **bad}

        vars(copy)["update"] = update
        return copy

    monkeypatch.setattr(loop, "assemble", broken)
    with pytest.raises(ProtlmError, match=f"{name} is nan at step 3"):
        loop.train(config(fasta, checkpoint_every=1, keep=9, evaluate_every=0), tmp_path)
    assert saved_steps(tmp_path / "checkpoints") == [1, 2]


@pytest.fixture(scope="module")
def two_checkpoints(fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 5 steps with checkpoints of 4 and 5."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    loop.train(config(fasta, steps=5, evaluate_every=0), workdir)
    assert saved_steps(workdir / "checkpoints") == [4, 5]
    return workdir


FAILURES = {
    "device memory": (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB"), "too little memory"),
    "TensorStore's": (ValueError("RESOURCE_EXHAUSTED: no memory"), "too little memory"),
    "memory": (MemoryError(), "too little memory"),
    "permission": (PermissionError(13, "Permission denied"), "Permission denied"),
    "interruption": (KeyboardInterrupt(), None),
    "a bug": (AttributeError("no such field"), None),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_that_is_no_damage_moves_nothing(
    fasta: Path, two_checkpoints: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    error, message = FAILURES[failure]

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoints, "_restore", fail)
    seal = two_checkpoints / "checkpoints" / "5" / "files.json"
    files = [p for p in (two_checkpoints / "checkpoints").rglob("*") if p.is_file() and p != seal]
    before, content = [p.stat().st_mtime_ns for p in files], seal.read_bytes()
    for sealed in (True, False):
        if not sealed:
            seal.unlink()
        with pytest.raises(ProtlmError if message else type(error), match=message):
            loop.train(config(fasta, steps=6, evaluate_every=0), two_checkpoints)
        assert [p.stat().st_mtime_ns for p in files] == before
        assert not (two_checkpoints / "damaged").exists()
    seal.write_bytes(content)


def test_a_damaged_data_iterator_takes_the_checkpoint_before(
    fasta: Path, two_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    with pytest.MonkeyPatch.context() as patch:  # a checkpoint that is sealed, and holds rubbish
        patch.setattr(loop, "state_of_all", lambda _: b"rubbish")
        loop.train(config(fasta, steps=6, evaluate_every=0), workdir)
    capsys.readouterr()
    assert loop.train(config(fasta, steps=7, evaluate_every=0), workdir) == 2
    said = capsys.readouterr().err
    assert "WARNING: the checkpoint is damaged: the state of its data iterator" in said
    assert "going on from step 5 instead" in said
    assert (workdir / "damaged" / "6" / "data").is_dir()


def test_a_run_of_an_older_version_goes_on(
    fasta: Path, two_checkpoints: Path, tmp_path: Path
) -> None:
    """Sizes in place of digests, no checksums in metrics.jsonl, no digest in config.json."""
    for name in ("new", "old"):
        shutil.copytree(two_checkpoints, tmp_path / name)
    old = tmp_path / "old"
    for folder in (old / "checkpoints").iterdir():
        sealed = json.loads((folder / "files.json").read_text())
        sizes = {name: size for name, (size, _) in sealed.items()}
        (folder / "files.json").write_text(json.dumps(sizes))
    lines = "".join(json.dumps(line) + "\n" for line in read_metrics(old / "metrics.jsonl"))
    (old / "metrics.jsonl").write_text(lines)
    fields = json.loads((old / "config.json").read_text())
    del fields["digest"]
    (old / "config.json").write_text(json.dumps(fields, indent=2))
    for name in ("new", "old"):
        assert loop.train(config(fasta, steps=6, evaluate_every=0), tmp_path / name) == 1
    assert_same_run(tmp_path / "new", old)


def test_a_run_ends_early_with_its_best_checkpoint(
    fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses as given; interrupted once after the best one, and again when it is complete."""
    losses = {0: 1.0, 2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5, 10: 3.2, 12: 1.0}
    seen: list[int] = []

    def scores(self: loop.Run, batches: Any) -> dict[str, float]:
        seen.append(int(self.state.step))
        if seen.count(8) == 1 and seen[-1] == 8:
            raise KeyboardInterrupt
        return {"heldout/nll": losses[seen[-1]]}

    monkeypatch.setattr(loop.Run, "_scores", scores)
    run = config(fasta, steps=20, evaluate_every=2, checkpoint_every=1, patience=3)
    with pytest.raises(KeyboardInterrupt):
        loop.train(run, tmp_path)
    assert loop.train(run, tmp_path) == 6  # from the best one, step 4, to step 10
    assert seen == [0, 2, 4, 6, 8, 6, 8, 10]
    assert saved_steps(tmp_path / "checkpoints") == [2, 4]
    assert loop.train(run, tmp_path) == 0
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == [*range(1, 11)]
    more = config(fasta, steps=20, evaluate_every=2, checkpoint_every=1, patience=4)
    losses |= dict.fromkeys(range(14, 21, 2), 2.0)
    assert loop.train(more, tmp_path) == 16 and saved_steps(tmp_path / "checkpoints") == [4, 12]


def test_readers_and_evaluations_take_the_average(
    fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {"data": {"fasta": str(fasta)}, "optimizer": {"ema": 0.8}}
    run = RunConfig.from_dict(tree("bert", **sections))
    loop.train(run, tmp_path)
    checkpoint = tmp_path / "checkpoints" / "4"
    average = restore_part(checkpoint, "opt_state")[0]["average"]
    jax.tree.map(np.testing.assert_array_equal, restore_params(checkpoint), average)
    last = restore_part(checkpoint, "params")
    pairs = zip(jax.tree.leaves(last), jax.tree.leaves(average), strict=True)
    assert not all(np.array_equal(*pair) for pair in pairs)
    with contextlib.closing(loop.Run(run, tmp_path)) as again:
        (scored,) = [
            line for line in metrics(tmp_path) if line["step"] == 4 and "heldout/nll" in line
        ]
        mean = again._scores(again.heldout)
        monkeypatch.setattr(assembly, "averaged", lambda opt_state, params: params)
        own = again._scores(again.heldout)
    assert mean["heldout/nll"] == scored["heldout/nll"] != own["heldout/nll"]


def test_a_folder_has_one_owner(fasta: Path, tmp_path: Path) -> None:
    with (
        owned(tmp_path, inside=True),
        pytest.raises(Occupied, match=f"{tmp_path} is being written by process"),
    ):
        loop.train(config(fasta), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_of_another_config_is_refused_and_untouched(fasta: Path, tmp_path: Path) -> None:
    loop.train(config(fasta, steps=4), tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    run = config(fasta, steps=4)
    other = dataclasses.replace(run, model=run.model.replace(d_ff=48))
    with pytest.raises(ProtlmError, match=r"model\.d_ff: saved 32, asked 48"):
        loop.train(other, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


KILLS = {"bert": 3, "transformer_xl": 1}  # in CI; once each for the others


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.slow if f in KILLS else pytest.mark.long) for f in ZOO],
)
def test_killed_at_any_moment_a_run_ends_as_if_it_never_was(
    fasta: Path, tmp_path: Path, family: str
) -> None:
    """SIGKILL at random moments of a real process, start-up, saving and logging included."""
    run = config(fasta, family, steps=60, checkpoint_every=7, evaluate_every=10)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(run.to_dict()))
    script = (
        "import json, sys; from pathlib import Path;"
        "from protlm_jax.config.run import RunConfig;"
        "from protlm_jax.training.loop import train;"
        "train(RunConfig.from_dict(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]))"
    )
    # All compile, so that all take as long as the first one. The worker's own devices: a compiled
    # program differs between device counts.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}

    def start(workdir: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", script, str(file), str(workdir)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    whole = time.monotonic() - began
    rng = random.Random(1)
    kills = KILLS.get(family, 1)
    for kill in range(kills):
        process = start(tmp_path / "killed")
        # Later kills come later, so that each finds more on disk.
        wait = 0.3 * whole if kill == 0 and kills > 1 else rng.uniform(0.4, 0.9) * whole
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert start(tmp_path / "killed").wait() == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
