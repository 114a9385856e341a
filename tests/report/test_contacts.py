"""Contacts are reported from their numbers, by range and beside their controls."""

from __future__ import annotations

from typing import Any

import pytest
from report_pages import rows, specs

from protlm_jax.report.contacts import contacts


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "standard_error": 0.01, "low": 0.0, "high": 1.0, "proteins": 50}


@pytest.fixture
def result() -> dict[str, Any]:
    scores = {"regression": 0.3, "own_head": 0.28, "random": 0.05, "separation": 0.1}

    def by_range(score: float) -> dict[str, Any]:
        found = {"precision": {k: estimate(score) for k in ("L", "L/2", "L/5")}}
        return {r: {**found, "chance": estimate(0.025)} for r in ("short", "medium", "long")}

    return {
        "benchmark": {"title": "Contacts", "notes": ["A note."], "licence": "CC0", "source": "PDB"},
        "predictors": {way: by_range(score) for way, score in scores.items()},
        "model_minus": {
            way: {"long": {"L": estimate(0.3 - score)}, "short": {}, "medium": {"L": estimate(0.1)}}
            for way, score in scores.items()
            if way != "regression"
        },
        "regression": {"proteins": 20, "pairs": 9000, "contacts": 300, "heads": 120,
                       "heads_used": 30, "share_by_layer": [0.1, 0.2, 0.7]},
        "proteins": 50,
        "left_out": 3,
        "protocol": "Rao et al. 2021.",
    }  # fmt: skip


def test_headline_compares_with_the_strongest_control(result: dict[str, Any]) -> None:
    text = contacts(result).replace("\u00a0", " ")
    assert (
        "Of the L most probable long-range pairs, 30.0 ± 1.0 % are contacts (any pairs: 2.5 %), "
        "20.0 points above the strongest control, nearest pairs first (20 standard errors)."
    ) in text
    assert "3 test chains are longer" in text and "30 of 120 heads" in text


def test_all_ranges_and_predictors_are_drawn(result: dict[str, Any]) -> None:
    dots, weights = map(rows, specs(contacts(result)))
    assert len(dots) == 3 * 4 and len(weights) == 3
    one = next(d for d in dots if d["series"] == "regression over heads")
    assert (one["low"], one["value"], one["high"]) == pytest.approx((29, 30, 31))


def test_a_range_without_pairs_is_left_out(result: dict[str, Any]) -> None:
    for found in result["predictors"].values():
        found["long"] = {"precision": {}, "chance": None}
    text = contacts(result)
    assert "medium-range pairs" in text and "long, L" not in text
