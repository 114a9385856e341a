"""One protein, or copies of one, have values and no intervals, and nothing is told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from zoo import loaded

from protlm_jax import report
from protlm_jax.evaluation.depth import files
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.claims import claims, headlines
from protlm_jax.evaluation.depth.results import Quantity, interval

SEQUENCE = "MKTAYIAKQRQISFVKSHF"


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("names", ["p", "pq"])
def test_values_come_without_intervals(names: str, tmp_path: Path) -> None:
    (found,) = analyse(loaded("bert"), dict.fromkeys(names, SEQUENCE)).values()
    heads = headlines(found)
    for head in heads.values():
        assert np.isfinite(head.value) and np.isnan(head.interval()).all()
    assert {"loss", "depth_score", "late_contribution"} <= set(heads)
    twin = found.assign_attrs(control_of=found.attrs["model"], model="twin")
    for claim in claims(found, twin):
        assert claim.verdict in ("", "undecided") and claim.low is None, claim
    text = files.text(found)
    assert ("only one protein: there are no intervals" in text) == (names == "p")
    assert "nan" not in text
    page = report.render({"depth": [found, twin]})
    assert ">nan" not in page and "nan " not in page
    files.write([found, twin], tmp_path)
    for name in ("depth.csv", "claims.csv"):
        assert ",nan" not in (tmp_path / name).read_text()


def test_an_interval_needs_proteins_that_differ() -> None:
    def low(totals: list[float], counts: list[float]) -> float:
        return float(interval(Quantity((), np.array(totals), np.array(counts)))[0])

    assert np.isfinite(low([1.0, 3.0], [2.0, 2.0]))
    assert np.isnan(low([1.0], [2.0]))  # one protein
    assert np.isnan(low([1.0, 0.0], [2.0, 0.0]))  # one that counts
    assert np.isnan(low([1.0, 1.0 + 1e-9], [2.0, 2.0]))  # two copies of one
    assert np.isnan(low([2.0, 5.0], [2.0, 5.0]))  # 1 in every draw
