"""What is said of a probe follows from its numbers, and its pictures show them."""

from __future__ import annotations

from typing import Any

import pytest
from report_pages import part, rows, specs

from protlm_jax.report import verdict
from protlm_jax.report.probe import probe


def test_headline_names_head_layer_control_and_errors(probed: dict[str, Any]) -> None:
    assert verdict.headline(probed) == (
        "With the CNN head, Q3 is right for 73.0 ± 0.4\u00a0% of the residues of TS115, read from "
        "layer 4 of 6 (chosen on validation): 8.0 points above BLOSUM62 rows, the strongest "
        "control (16 standard errors). Counted in standard errors, this model leads the strongest "
        "control on TS115 (16), and cannot be told from it on CASP12 (1.3)."
    )


def test_headline_says_when_a_control_wins(probed: dict[str, Any]) -> None:
    minus = probed["heads"]["cnn"]["model_minus"]["one_hot"]
    minus["ts115"]["q3"] |= {"value": -0.031, "standard_error": 0.01}
    text = verdict.headline(probed)
    assert "3.1 points below one-hot residues, the strongest control (3.1 standard errors)" in text
    assert "trails the strongest control on TS115 (3.1), and cannot be told from it on" in text


def test_validation_decides_which_head_is_shown(probed: dict[str, Any]) -> None:
    assert verdict.preferred_head(probed, "q3") == "cnn"
    linear = probed["heads"]["linear"]["inputs"]["model"]
    linear["valid"]["q3"][4] = [0.9, None, 0.9]
    for by_target in linear["tests"].values():  # what the tests say does not count
        by_target["q3"]["pooled"]["value"] = 0.1
    assert verdict.preferred_head(probed, "q3") == "linear"


@pytest.mark.parametrize(
    ("value", "error", "apart"), [(0.2, 0.1, 2.0), (-1.0, 0.0, None), (-1.0, None, None)]
)
def test_errors_apart(value: float, error: float | None, apart: float | None) -> None:
    assert verdict.errors_apart({"value": value, "standard_error": error}) == apart


def test_numbers_are_correlations(probed: dict[str, Any]) -> None:
    probed["benchmark"]["targets"]["q3"] = {"kind": "number", "classes": []}
    for outcome in probed["heads"].values():
        for found in outcome["inputs"].values():
            for by_target in found["tests"].values():
                del by_target["q3"]["confusion"]
    assert "Q3 of TS115 has a rank correlation of 0.730 ± 0.004" in verdict.headline(probed)
    assert "0.080 above BLOSUM62 rows" in verdict.headline(probed)
    assert "Rank correlation of all labelled residues" in probe(probed)
    (first, *_) = verdict.leads(probed)
    assert first == ("+0.100", "Q3, Spearman over random weights, linear head, TS115")


def test_layers_are_drawn_with_errors_and_the_chosen_one(probed: dict[str, Any]) -> None:
    chart = specs(part(probe(probed), "Q3 by layer"))[0]
    points = rows(chart)
    assert [p["x"] for p in points if p["chosen"]] == [4, 4]  # the model's, and random weights'
    best = next(p for p in points if p["series"] == "this model" and p["x"] == 4)
    assert (best["y"], best["error"]) == pytest.approx((73, 0.4))
    flat = {p["series"] for p in points if p["dashed"]}
    assert flat == {"one-hot residues", "BLOSUM62 rows", "commonest class"}


def test_one_layer_needs_no_curve(probed: dict[str, Any]) -> None:
    probed["layers"] = [6]
    for head in probed["heads"].values():
        for found in head["inputs"].values():
            found["valid"] = {t: v[:1] for t, v in found["valid"].items()}
            found["best_layer"] = {"index": 0, "layer": 6}
    text = probe(probed)
    assert "by layer" not in text and "read from layer 6 of 6:" in text


def test_confusion_is_by_row_with_counts_on_hover(probed: dict[str, Any]) -> None:
    counts = [[90, 10, 0], [0, 0, 0], [30, 30, 60]]
    probed["heads"]["cnn"]["inputs"]["model"]["tests"]["ts115"]["q3"]["confusion"] = counts
    text = probe(probed)
    (chart, *_) = specs(part(text, "Q3, what is mistaken for what"))
    cells = {(c["true"], c["predicted"]): (c["count"], c["percent"]) for c in rows(chart)}
    assert cells["helix", "strand"] == (10, pytest.approx(10.0))
    assert cells["other", "other"] == (60, pytest.approx(50.0))
    assert "strand" not in {truth for truth, _ in cells}  # none is there


def test_what_is_missing_is_a_dash_or_left_out(probed: dict[str, Any]) -> None:
    for outcome in probed["heads"].values():
        for found in outcome["inputs"].values():
            found["tests"]["casp12"].pop("q8")
            found["tests"]["ts115"]["q3"] |= {"confusion": None, "per_protein": None}
            found["by_layer"]["casp12"].pop("q8")
        for by_view in outcome["model_minus"].values():
            by_view["casp12"].pop("q8")
    text = probe(probed)
    after = text[text.index("Q8, CNN head") :]
    assert "CASP12" not in after[: after.index("Q8 by layer")]
    assert "ts115" not in text  # titles, not names


def test_literature_stands_below_with_the_papers_head(probed: dict[str, Any]) -> None:
    text = probe(probed)
    beside = text[text.index("Q3 beside the literature") :]
    assert beside.index("this model, CNN head") < beside.index("ProtBert") < beside.index("83")
    assert "the head of this model on 2,500" in beside
    assert "Published: A paper, 2021." in beside and "Another protocol: no number." in beside
