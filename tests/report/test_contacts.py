"""Contacts are reported from their numbers, by range and beside their controls."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray
from report_pages import rows, specs, words

from protlm_jax.evaluation.contacts.precision import COUNTS, RANGES
from protlm_jax.evaluation.probes.results import ESTIMATE
from protlm_jax.report.contacts import contacts


@pytest.fixture
def result() -> xarray.Dataset:
    scores = {"regression": 0.3, "own_head": 0.28, "random": 0.05, "separation": 0.1}
    coords = {
        "predictor": list(scores), "range": list(RANGES), "count": list(COUNTS),
        "estimate": list(ESTIMATE), "protein": [f"p{i}" for i in range(50)],
    }  # fmt: skip
    value = np.array(list(scores.values()))
    mean, difference = (np.zeros((4, 3, 4, 4)) + [0, 0.01, 0, 1] for _ in range(2))
    mean[..., 0] = value[:, None, None]
    mean[:, :, 3, 0] = 0.025
    difference[..., 0] = (0.3 - value)[:, None, None]
    difference[0] = np.nan
    kernel = np.zeros((3, 40))
    kernel[:, :10] = 1
    about = {"title": "Contacts", "notes": ["A note."], "licence": "CC0", "source": "PDB"}
    dims = ("predictor", "range", "count", "estimate")
    return xarray.Dataset(
        {
            "mean": (dims, mean),
            "difference": (dims, difference),
            "kernel": (("layer", "head"), kernel),
            "share": (("layer", "head"), np.outer([0.1, 0.2, 0.7], np.full(40, 1 / 40))),
        },
        coords,
        {"benchmark": json.dumps(about), "train_proteins": 20, "pairs": 9000, "contacts": 300,
         "left_out": 3, "protocol": "Rao et al. 2021."},
    )  # fmt: skip


def test_claims_compare_the_regression_with_each_control(result: xarray.Dataset) -> None:
    result["difference"].loc[{"estimate": "low"}] = -0.01
    result["difference"].loc[{"range": "long", "estimate": "low"}] = 0.19
    text = " ".join(words(contacts(result)).split())
    assert "long range: regression minus nearest pairs first, points 20 19 to 100 0 higher" in text
    assert "short range: regression minus nearest pairs first, points 20 -1 to 100 0 und" in text
    assert "3 test chains are longer" in text and "30 of 120 heads" in text


def test_all_ranges_and_predictors_are_drawn(result: xarray.Dataset) -> None:
    dots, weights = map(rows, specs(contacts(result)))
    assert len(dots) == 3 * 4 and len(weights) == 3
    one = next(d for d in dots if d["series"] == "regression over heads")
    assert (one["low"], one["value"], one["high"]) == pytest.approx((29, 30, 31))


def test_a_range_without_pairs_is_left_out(result: xarray.Dataset) -> None:
    result["mean"].loc[{"range": "long"}] = np.nan
    text = contacts(result)
    assert "medium, L" in text and "long, L" not in text
