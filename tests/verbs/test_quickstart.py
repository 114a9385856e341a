"""What the quickstart keeps of its stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray

from protlm_jax.verbs.quickstart import _kept


def test_a_damaged_result_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, made = tmp_path / "results" / "heldout.json", []

    def stage() -> dict[str, float]:
        made.append(1)
        return {"score": 0.25}

    first = _kept(file, stage)
    assert _kept(file, stage) == first and len(made) == 1
    file.write_text(file.read_text().replace("0.25", "0.75"))
    assert _kept(file, stage)["score"] == 0.25 and len(made) == 2
    assert "heldout is damaged: it is made again" in caplog.text
    file.write_text('{"score": 0.5, "seconds": 1}')  # of c732700
    assert _kept(file, stage)["score"] == 0.25 and len(made) == 3


def test_a_file_of_results_that_is_damaged_or_missing_is_made_again(tmp_path: Path) -> None:
    file, made = tmp_path / "depth.json", []

    def stage() -> dict[str, object]:
        made.append(1)
        return {"dataset": xarray.Dataset({"loss": ("layer", [0.5, 0.25])}), "summary": ""}

    def kept() -> list[float]:
        return _kept(file, stage)["dataset"]["loss"].values.tolist()

    array_file = file.with_suffix(".nc")
    assert kept() == kept() == [0.5, 0.25] and len(made) == 1
    content = bytearray(array_file.read_bytes())
    content[-1] ^= 1
    array_file.write_bytes(bytes(content))
    assert kept() == [0.5, 0.25] and len(made) == 2
    array_file.unlink()
    assert kept() == [0.5, 0.25] and len(made) == 3
    file.write_text('{"stacks": {}, "seconds": 1}')  # of c732700
    assert kept() == [0.5, 0.25] and len(made) == 4
