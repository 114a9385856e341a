"""The support matrix: each "yes" is shown by a test that is there, over that family."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from zoo import ZOO

from protlm_jax.cli import main
from protlm_jax.models.registry import FAMILIES
from protlm_jax.verbs import matrix

ROOT = Path(__file__).parents[2]
EVERY = ("published", "fused attention")  # their tests are over something else than families
ROWS = matrix.rows()


def module_of(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"named_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown_by(test: str) -> set[str]:
    """Families that are parameters of a test, or of its fixture `family`."""
    file, _, name = test.partition("::")
    module = module_of(ROOT / file)
    marks = getattr(getattr(module, name), "pytestmark", [])
    for mark in marks:
        if mark.name == "parametrize" and mark.args[0] == "family":
            return {getattr(value, "values", (value,))[0] for value in mark.args[1]}
    conftest = (ROOT / file).parent / "conftest.py"
    if marks or file != "tests/huggingface/test_logits.py":
        return set()
    made = module_of(conftest)
    return {made.PARTS.get(family, (family,))[0] for family in made.FAMILIES}


@pytest.mark.parametrize("title", matrix.COLUMNS)
def test_each_yes_has_a_test(title: str) -> None:
    yes = {row["family"] for row in ROWS if row[title]}
    shown = shown_by(matrix.COLUMNS[title].test)
    assert title in EVERY or yes <= shown, f"not shown: {sorted(yes - shown)}"


def test_families_and_cells(capsys: pytest.CaptureFixture[str]) -> None:
    cells = {row["family"]: row for row in ROWS}
    families = {specimen.config.family for specimen in ZOO.values()}
    assert set(cells) == {name for name in families if FAMILIES[name].presets}
    assert cells["electra"]["score, evaluate"] == cells["electra"]["prune"] == ""
    assert cells["t5"]["fused attention"] == "cudnn (NVIDIA)"
    assert cells["gpt2"]["score variants"] == "likelihood-ratio"
    assert cells["progen2"]["score, evaluate"] == "autoregressive likelihood, both directions"
    assert main(["doctor", "--matrix"]) == 0
    printed = capsys.readouterr().out
    assert "dplm\n  published              dplm_150m, " in printed
    assert matrix.markdown().count("\n| ") == len(cells)
