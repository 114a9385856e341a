"""The claims on a probe follow from its numbers, and its pictures show them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray
from report_pages import part, rows, specs, words

from protlm_jax.evaluation.probes.results import ProbeResult
from protlm_jax.report.probe import first_numbers, preferred_head, probe


def claimed(data: xarray.Dataset) -> list[str]:
    """The rows of the table of claims."""
    text = words(probe(ProbeResult(data)).split("<tbody>", 1)[1].split("</tbody>")[0])
    return [" ".join(row.split()) for row in text.split("Q") if row.strip()]


def test_claims_compare_the_preferred_head_with_the_strongest_control(
    probed: xarray.Dataset,
) -> None:
    gap = "3, CNN head, {}: this model minus {}, the strongest control, points {}"
    assert claimed(probed)[:2] == [
        gap.format("TS115", "BLOSUM62 rows", "8 7 to 9 0 higher"),
        gap.format("CASP12", "BLOSUM62 rows", "8 -4 to 20 0 undecided"),
    ]
    probed["difference"].loc["cnn", "one_hot", "ts115", "q3"] = [-0.031, 0.01, -0.05, -0.01]
    probed["difference"].loc["cnn", "one_hot", "casp12", "q3"] = [-0.031, *[np.nan] * 3]
    assert claimed(probed)[:2] == [
        gap.format("TS115", "one-hot residues", "-3.1 -5 to -1 0 lower"),
        gap.format("CASP12", "one-hot residues", "-3.1 - 0 undecided"),
    ]


def test_validation_decides_which_head_is_shown(probed: xarray.Dataset) -> None:
    assert preferred_head(ProbeResult(probed), "q3") == "cnn"
    probed["valid"].loc["linear", "model", 4, "q3"] = [0.9, np.nan, 0.9]
    probed["score"].loc["linear", "model", :, "q3", "pooled", "value"] = 0.1  # does not count
    assert preferred_head(ProbeResult(probed), "q3") == "linear"


def test_numbers_are_correlations(probed: xarray.Dataset) -> None:
    about = json.loads(probed.attrs["benchmark"])
    about["targets"]["q3"] = {"kind": "number", "classes": []}
    probed.attrs["benchmark"] = json.dumps(about)
    probed["confusion"].loc[:, :, :, "q3"] = np.nan
    result = ProbeResult(probed)
    assert claimed(probed)[0].endswith("the strongest control 0.08 0.07 to 0.09 0 higher")
    assert "Rank correlation of all labelled residues" in probe(result)
    (first, *_) = first_numbers(result)
    assert first == ("+0.100", "Q3, Spearman over random weights, linear head, TS115")


def test_layers_are_drawn_with_errors_and_the_chosen_one(probed: xarray.Dataset) -> None:
    chart = specs(part(probe(ProbeResult(probed)), "Q3 by layer"))[0]
    points = rows(chart)
    assert [p["x"] for p in points if p["chosen"]] == [4, 4]  # the model's, and random weights'
    best = next(p for p in points if p["series"] == "this model" and p["x"] == 4)
    assert (best["low"], best["y"], best["high"]) == pytest.approx((72.6, 73, 73.4))
    flat = {p["series"] for p in points if p["dashed"]}
    assert flat == {"one-hot residues", "BLOSUM62 rows", "commonest class"}


def test_one_layer_needs_no_curve(probed: xarray.Dataset) -> None:
    probed = probed.sel(layer=[6])
    probed["chosen"][:] = 0
    text = probe(ProbeResult(probed))
    assert "by layer" not in text and "from layer 6 (this model), 6 (random" in text


def test_confusion_is_by_row_with_counts_on_hover(probed: xarray.Dataset) -> None:
    counts = [[90, 10, 0], [0, 0, 0], [30, 30, 60]]
    probed["confusion"].loc["cnn", "model", "ts115", "q3"][:3, :3] = counts
    text = probe(ProbeResult(probed))
    (chart, *_) = specs(part(text, "Q3, what is mistaken for what"))
    cells = {(c["true"], c["predicted"]): (c["count"], c["percent"]) for c in rows(chart)}
    assert cells["helix", "strand"] == (10, pytest.approx(10.0))
    assert cells["other", "other"] == (60, pytest.approx(50.0))
    assert "strand" not in {truth for truth, _ in cells}  # none is there


def test_what_is_missing_is_a_dash_or_left_out(probed: xarray.Dataset) -> None:
    for name in ("score", "difference", "by_seed", "confusion"):
        probed[name].loc[:, :, "casp12", "q8"] = np.nan
    probed["by_layer"].loc[:, :, :, "casp12", "q8"] = np.nan
    probed["n"].loc["casp12", "q8"] = 0
    probed["confusion"].loc[:, :, "ts115", "q3"] = np.nan
    probed["score"].loc[:, :, "ts115", "q3", "per_protein"] = np.nan
    text = probe(ProbeResult(probed))
    after = text[text.index("<h3>Q8, CNN head") :]
    assert "CASP12" not in after[: after.index("Q8 by layer")]
    assert "ts115" not in text.split("Every score")[0]  # titles, not names


def test_literature_stands_below_with_the_papers_head(probed: xarray.Dataset) -> None:
    text = probe(ProbeResult(probed))
    beside = text[text.index("Q3 beside the literature") :]
    assert beside.index("this model, CNN head") < beside.index("ProtBert") < beside.index("83")
    assert "the head of this model on 2,500" in beside
    assert "Published: A paper, 2021." in beside and "Another protocol: no number." in beside
