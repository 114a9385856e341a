"""`protlm plan --gin_file`: T5X's own train step, compiled for a pod."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from protlm_jax.cli import main

TINY = ["plan", "--gin_file", "gin/prot_t5_tiny.gin", "--topology", "v3:2x2"]


def test_without_t5x_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "t5x" else known(n))
    assert main(TINY) == 1
    assert "protlm doctor --for t5x says how" in capsys.readouterr().err
    assert main([*TINY, "--phase", "length512"]) == 1
    assert "--phase is of --config's recipes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.libtpu
def test_a_recipe_is_compiled(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("t5x", reason="T5X is not installed: requirements/t5x.txt")
    pytest.importorskip("libtpu")
    more = ["--gin", "BATCH_SIZE=16", "--gin", "models.architecture.d_model=128"]
    assert main([*TINY, *more, "--output", str(tmp_path / "plan.json")]) == 0
    [plan] = json.loads((tmp_path / "plan.json").read_text())["phases"]
    assert (plan["mesh"], plan["rows"]) == ({"data": 8, "model": 1}, 16)
    assert plan["fits"] and plan["unsplit"] == []
    # Encoder, decoder and token table of width 128, and moments and parameters alike split.
    assert plan["state_bytes"] * 8 == pytest.approx(3 * 4 * plan["parameters"], rel=0.05)
    assert "peak HBM per core" in capfd.readouterr().out
    assert main([*TINY, "--gin", "models.architecture.d_modle=1"]) == 1
    assert "gin/prot_t5_tiny.gin" in capfd.readouterr().err
