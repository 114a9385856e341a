"""What a bar writes into a log."""

from __future__ import annotations

import pytest

from protlm_jax.process import progress


def test_a_log_gets_lines_and_short_work_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(progress.Bar(range(3), "embed", show=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    assert list(progress.Bar(range(3), "embed", show=True)) == [0, 1, 2]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) >= 3 and all(line.startswith("embed: ") for line in lines)
    assert "67%" in lines[-1] or "100%" in lines[-1]
    assert list(progress.Bar(range(3), show=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
