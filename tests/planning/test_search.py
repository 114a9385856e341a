"""A search over settings: what it leaves out, what it compiles first, and its report."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import pytest

from protlm_jax.cli import main
from protlm_jax.config.files import load_config
from protlm_jax.config.recipes import Phase
from protlm_jax.config.run import RunConfig
from protlm_jax.planning import search
from protlm_jax.planning.compile import Plan
from protlm_jax.planning.search import Setting
from protlm_jax.planning.topologies import Topology

CONFIG = load_config("configs/tiny.py:bert", ["train.batch_size=32", "model.num_heads=2"])
FIELDS = {field.name: None for field in dataclasses.fields(Plan)}


def pod(hbm: int = 10**9) -> Topology:
    return Topology("eight of a test", jax.devices(), hbm)


def a_plan(config: RunConfig, peak: int, seconds: float, available: int = 100) -> Plan:
    speed = {"step_seconds": seconds, "mfu": 0.5, "binds": "compute"} if peak <= available else {}
    memory = {"peak_bytes": peak, "available_bytes": available, "fits": peak <= available}
    return Plan(**{**FIELDS, **memory, **speed})


class Compiler:
    """Stands for the compiler: memory and time by formulas, and the settings it was given."""

    def __init__(self, available: int) -> None:
        self.available = available
        self.given: list[tuple[Any, ...]] = []

    def __call__(self, config: RunConfig, topology: Topology, phase: str) -> Plan:
        mesh, parts, remat = config.mesh, config.train.accumulate, config.model.remat
        self.given.append((mesh.fsdp, mesh.tensor, parts, remat))
        if mesh.tensor == 2 and remat == "none":
            raise jax.errors.JaxRuntimeError("INTERNAL: it broke\nhere")
        memory = {"none": 320, "minimal": 160, "full": 80}[remat] // parts + 80 // mesh.fsdp
        seconds = {"none": 3.0, "minimal": 3.2, "full": 4.0}[remat] + parts + mesh.tensor
        return a_plan(config, memory, seconds + 0.1 * mesh.fsdp, self.available)


def found(monkeypatch: pytest.MonkeyPatch, most: int, available: int) -> tuple[Any, ...]:
    compiler, lines = Compiler(available), []
    monkeypatch.setattr(search, "plan", compiler)
    tried = search.search(Phase("", CONFIG, Path()), pod(), most, lines.append)
    return compiler.given, lines, tried


def test_all_settings_are_those_that_rows_heads_and_devices_allow() -> None:
    every = list(search.settings(CONFIG, devices=8, slices=1))
    assert len(every) == len(set(every))
    assert {(s.data * s.fsdp * s.tensor) for s in every} == {8}
    assert {s.tensor for s in every} == {1, 2}, "of two heads"
    assert {s.fsdp for s in every if s.tensor == 2} == {1, 2, 4}
    assert {s.accumulate for s in every if s.tensor == 1} == {1, 2, 4}  # of four rows
    odd = dataclasses.replace(CONFIG, model=CONFIG.model.replace(d_model=100))
    assert {s.fsdp for s in search.settings(odd, devices=8, slices=1)} == {1, 2, 4}
    assert {s.accumulate for s in every if s.tensor == 2} == {1, 2, 4, 8}
    two = list(search.settings(CONFIG, devices=4, slices=2))
    assert {s.data * s.fsdp * s.tensor for s in two} == {4}
    assert {s.accumulate for s in two if s.tensor == 1} == {1, 2, 4}


def test_the_best_that_fits_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brute force over the same formulas knows which it is."""
    given, lines, tried = found(monkeypatch, most=100, available=150)
    compiler = Compiler(150)
    best = min(
        plan.step_seconds
        for setting in search.settings(CONFIG, 8, 1)
        if setting.tensor == 1 or setting.remat != "none"
        if (plan := compiler(setting.applied(CONFIG), pod(), "")).fits
    )
    assert tried[0].seconds == best
    assert [done.seconds for done in tried] == sorted(done.seconds for done in tried)
    assert len(lines) == 1 + len(tried) and len(given) == len(set(given)) == len(tried)
    assert len(tried) < 0.7 * len(compiler.given), "the rest is excluded by what was tried before"
    assert given[0] == (1, 1, 1, "none"), "the config's own"
    failed = [done for done in tried if done.failure]
    assert failed and all(done.failure == "INTERNAL: it broke" for done in failed)


def test_only_so_many_and_none_far_too_large_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    given, lines, tried = found(monkeypatch, most=3, available=150)
    assert len(given) == len(tried) == 3 and lines[-1].startswith("3/3: data ")
    compiler, lines = Compiler(0), []
    monkeypatch.setattr(search, "plan", compiler)
    tried = search.search(Phase("", CONFIG, Path()), pod(hbm=1), 9, lines.append)
    assert len(tried) == 1 and lines[0].startswith("0 settings may fit")
    assert search.report(tried).endswith(
        "none of these settings fits; try a larger pod, or more settings"
    )


def test_a_report_gives_the_options_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = found(monkeypatch, most=100, available=150)[2]
    lines = search.report(tried, "length512").splitlines()
    assert lines[0] == "phase length512:" and len(lines) == 2 + search.SHOWN
    setting = tried[0].setting
    overrides = lines[-1].removeprefix("best: ").split()
    assert all(text.startswith("--config.phases.length512.") for text in overrides)
    plain = [text.removeprefix("--config.") for text in setting.overrides().split()]
    own = ["train.batch_size=32", "model.num_heads=2"]
    again = load_config("configs/tiny.py:bert", [*own, *plain])
    assert again == dataclasses.replace(
        setting.applied(CONFIG), mesh=dataclasses.replace(again.mesh, data=-1)
    )


def test_estimates_move_as_memory_and_time_do() -> None:
    """Less with more parts, with more made again, with more devices; at a price."""

    def memory(**changes: Any) -> int:
        setting = dataclasses.replace(Setting(4, 2, 1, 1, "none"), **changes)
        return search.activation_bytes(CONFIG, setting, slices=1)

    def time(**changes: Any) -> float:
        setting = dataclasses.replace(Setting(4, 2, 1, 1, "none"), **changes)
        return search.relative_time(CONFIG, setting, parameters=500_000, slices=1)

    assert memory() > memory(remat="minimal") > memory(remat="full")
    assert memory(accumulate=4) * 4 == memory()
    assert memory(data=2, tensor=2) < 2 * memory()
    assert time() < time(remat="minimal") < time(remat="full")
    assert time(data=8, fsdp=1) < time() < time(accumulate=4)
    assert time(data=2, tensor=2) > time()


@pytest.mark.libtpu
@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_search_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = "plan --config configs/tiny.py:bert --topology v3:2x2 --search 2 --output"
    assert main([*command.split(), str(tmp_path / "plan.json"), "--config.data.length=128"]) == 0
    out, err = capsys.readouterr()
    assert "best: --config.mesh.data=-1" in out and "2/2: data" in err
    assert (tmp_path / "plan.json").exists()
