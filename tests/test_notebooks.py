"""The notebooks run, show what they say they show, and were stored with their outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from notebooks import run_notebook

NOTEBOOKS = Path(__file__).parents[1] / "docs/notebooks"
CHARTS = {"classifier": 0, "depth": 3, "variants": 1}


@pytest.mark.slow
def test_the_notebook_of_depth_runs() -> None:
    outputs = run_notebook(NOTEBOOKS / "depth.ipynb", {"STEPS": 2, "PROTEINS": 8})
    charts = [value for _, value in outputs if hasattr(value, "_repr_svg_")]
    assert len(charts) == 3
    for chart in charts:
        assert chart._repr_svg_().startswith("<svg xmlns")
    assert len(charts[0].rows) == 28  # 8 layers, those after another


@pytest.mark.slow
def test_the_notebooks_of_embeddings_and_variants_run() -> None:
    changes = {"STEPS": 2, "PROTEINS": 90}
    *_, (printed, found) = run_notebook(NOTEBOOKS / "classifier.ipynb", changes)
    assert printed.startswith("standard error at most 0.09")
    assert set(found) == {"most frequent class", "composition", "embedding"}
    assert all(0 < value < 1 for value in found.values())
    *_, (_, correlations), (_, chart) = run_notebook(NOTEBOOKS / "variants.ipynb", changes)
    assert set(correlations) == {"model", "number of mutations"}
    assert len(chart.rows) == 4 * 20


def test_all_are_known() -> None:
    assert {file.stem for file in NOTEBOOKS.glob("*.ipynb")} == set(CHARTS)


@pytest.mark.parametrize("name", CHARTS)
def test_it_was_stored_with_outputs_and_without_paths(name: str) -> None:
    text = (NOTEBOOKS / f"{name}.ipynb").read_text()
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] == number for number, cell in enumerate(code, 1))
    shown = [output for cell in code for output in cell["outputs"]]
    assert sum("image/svg+xml" in output.get("data", {}) for output in shown) == CHARTS[name]
    assert not [output for output in shown if output["output_type"] == "error"]
    assert not re.search(r"(/tmp|/home|/root|/work|/Users|[A-Z]:\\)", text)
