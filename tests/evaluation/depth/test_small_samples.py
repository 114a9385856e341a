"""One protein, or copies of one, have values and no intervals, and nothing is told apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from zoo import loaded

from protlm_jax import report
from protlm_jax.evaluation import summaries
from protlm_jax.evaluation.depth import files
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.plain import plain
from protlm_jax.evaluation.depth.results import Quantity
from protlm_jax.evaluation.depth.study import Member, study
from protlm_jax.evaluation.depth.summary import summary

SEQUENCE = "MKTAYIAKQRQISFVKSHF"


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("names", ["p", "pq"])
def test_values_come_without_intervals(names: str, tmp_path: Path) -> None:
    analysis = analyse(loaded("bert"), dict.fromkeys(names, SEQUENCE))
    result, short = plain(analysis), summary(analysis, "")
    stack = result["stacks"]["encoder"]
    for head in stack["headlines"].values():
        assert np.isfinite(head["value"]) and head["low"] is None and head["high"] is None
    assert {"loss", "depth_score", "late_contribution"} <= set(stack["headlines"])
    assert ("Only one protein: there are no intervals" in stack["reading"][0]) == (names == "p")
    assert "not below a blind guess" not in " ".join(stack["reading"])
    beside = study([Member("a", "f", analysis), Member("b", "f", analysis, control_of="a")])
    (said,) = beside["models"]["a"]["beside_control"]["encoder"]
    assert said.startswith("Not told from the control")
    json.dumps([result, short, beside], allow_nan=False)
    assert "nan" not in summaries.depth(short)
    page = report.render({"depth": result, "depths": beside})
    assert ">nan" not in page and "nan " not in page
    files.write({"a": analysis}, tmp_path)
    assert ",nan" not in (tmp_path / "depth.csv").read_text()


def test_an_interval_needs_proteins_that_differ() -> None:
    def low(totals: list[float], counts: list[float]) -> float:
        return float(Quantity((), np.array(totals), np.array(counts)).interval()[0])

    assert np.isfinite(low([1.0, 3.0], [2.0, 2.0]))
    assert np.isnan(low([1.0], [2.0]))  # one protein
    assert np.isnan(low([1.0, 0.0], [2.0, 0.0]))  # one that counts
    assert np.isnan(low([1.0, 1.0 + 1e-9], [2.0, 2.0]))  # two copies of one
    assert np.isnan(low([2.0, 5.0], [2.0, 5.0]))  # 1 in every draw
