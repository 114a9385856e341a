"""What the quickstart keeps of its stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from protlm_jax.verbs.quickstart import _kept


def test_a_damaged_result_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, made = tmp_path / "results" / "probe.json", []

    def stage() -> dict[str, float]:
        made.append(1)
        return {"score": 0.25}

    first = _kept(file, stage)
    assert _kept(file, stage) == first and len(made) == 1
    file.write_text(file.read_text().replace("0.25", "0.75"))
    assert _kept(file, stage)["score"] == 0.25 and len(made) == 2
    assert f"{file} is not as it was written: it is made again" in capsys.readouterr().out
    file.write_text('{"score": 0.5, "seconds": 1}')  # of c732700
    assert _kept(file, stage)["score"] == 0.5
