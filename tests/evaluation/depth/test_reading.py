"""The right sentence for numbers of which it is known, and none where there is no ground for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from depth_made import analysis, everything, measured, quantity

from protlm_jax.evaluation.depth.evidence import interval, leader, side, tail, written
from protlm_jax.evaluation.depth.headlines import GUESS, Headline, headlines
from protlm_jax.evaluation.depth.reading import reading
from protlm_jax.evaluation.depth.results import Measured
from protlm_jax.evaluation.depth.study import Member, beside_control, study, tidy, trend


def said(found: Measured, words: str, proteins: int = 40) -> str:
    """The one sentence with these words; "" for none."""
    (*others, sentence) = ["", *(s for s in reading(found, proteins) if words in s)]
    assert len(others) < 2, others
    return sentence


def skips(kl: list[float], spread: float = 0.01) -> Measured:
    return measured(len(kl), {"skip_kl": quantity(("skipped",), kl, spread)})


def losses(rises: list[float], spread: float | list[float] = 0.0) -> Measured:
    base, layers = quantity((), 2.0, 0.3), quantity(("skipped",), rises, spread, seed=1)
    shared = layers.totals + base.totals  # the same residues are hard with and without a layer
    nll = type(layers)(layers.dims, shared, layers.counts)
    return measured(len(rises), {"base_nll": base, "skip_nll": nll})


def test_late_layers_are_counted_from_the_end() -> None:
    text = said(skips([1.0, 0.01, 0.5, 0.02, 0.01]), "answer by less than")
    assert text.startswith("Each of the last 2 of 5 layers changes the answer by less than 0.05")
    bound = float(text.rsplit(" ", 1)[1].rstrip(")."))
    assert 0.02 < bound < 0.03  # 1.96 standard errors of 0.01 / sqrt(40) above 0.02
    assert "Each of the 4 layers" in said(skips([0.01] * 4), "answer by less than")
    assert said(skips([1.0, 1.0, 0.01]), "less than").startswith("The last of 3 layers changes")


def test_late_layers_that_matter_are_not_called_idle() -> None:
    assert "without the last, the answer changes by 0.20" in said(skips([1, 1, 0.2]), "idle")
    unsure = said(skips([1.0, 1.0, 0.045], spread=0.1), "less than")
    assert unsure.startswith("Whether the last layer") and "cannot be told" in unsure
    assert not any("Each of the last" in s for s in reading(skips([1, 1, 0.045], 0.1), 40))


def test_a_run_has_to_hold_as_a_whole() -> None:
    """Each of many entries is below the bound with 97.5 %, but not all of them together."""
    rng = np.random.default_rng(0)
    draws = rng.normal(0.0, 1.0, (1000, 40))
    assert (np.quantile(draws, 0.975, axis=0) < 2.4).all()
    assert tail(draws, 2.4)[0] < 10
    assert tail(np.full((10, 3), np.nan), 1.0)[0] == 0


def test_the_dearest_layer_is_named_when_it_stands_out() -> None:
    text = said(losses([0.9, 0.1, 0.3, 0.0], 0.05), "costs most")
    assert text.startswith("Leaving out layer 0 costs most: the loss rises by 0.900 (0.88")
    assert "next is layer 2 with 0.300" in text
    text = said(losses([0.1, 0.3, 0.9, 0.0], 0.05), "costs most")
    assert "layer 2 costs most" in text and "next is layer 1 with 0.300" in text


def test_layers_that_are_close_are_not_ranked() -> None:
    text = said(losses([0.50, 0.1, 0.49, 0.0], 0.3), "costs most")
    assert "layer 0 or 2 costs most; which of them cannot be told" in text
    flat = said(losses([0.5] * 8, 0.3), "costs most")
    assert flat.startswith("Which layer costs most cannot be told") and "7 others" in flat
    few = said(losses([0.5, 0.5, 0.5, 0.4], 0.5), "costs most")
    assert "layer 0 raises" not in few and "3 others" in few
    nothing = said(losses([0.01, 0.0, -0.01], 0.5), "raises the loss")
    assert nothing.startswith("No layer raises the loss by an amount that can be told from 0")
    assert said(losses([0.01, 0.0, -0.01], 0.5), "costs most") == ""


def lens(nll: list[float], base: float, spread: float = 0.02) -> Measured:
    curve = quantity(("depth",), nll, spread)
    return measured(len(nll) - 1, {"base_nll": quantity((), base, spread), "lens_nll": curve})


def test_early_exits_are_counted_in_layers() -> None:
    gain = GUESS - 2.0
    text = said(
        lens([GUESS, GUESS, GUESS - 0.6 * gain, GUESS - 0.97 * gain, 2.0], 2.0), "Read early"
    )
    assert "is there after 2 (2 to 2) of 4 layers, and 95 % after 3 (3 to 3)" in text
    # What is reached and lost again was not reached.
    text = said(lens([2.0, GUESS, GUESS, GUESS, 2.0], 2.0), "Read early")
    assert "after 4 (4 to 4) of 4 layers, and 95 % after 4" in text


def test_a_model_that_knows_nothing_is_not_read_early() -> None:
    guess = lens([GUESS] * 4 + [GUESS - 0.001], GUESS - 0.001, spread=0.1)
    assert said(guess, "Read early") == ""
    assert "not below a blind guess" in said(guess, "loss is")
    assert "below a blind guess among" in said(lens([3.0] * 4 + [2.0], 2.0), "loss is 2.0")


def test_centre_halves_and_direction() -> None:
    later = np.triu(np.ones((4, 4)), 1)
    early = measured(
        4, {"skip_effect": quantity(("skipped", "affected"), later * [[8], [2], [1], [0]], 0.01)}
    )
    assert "in the first half" in said(early, "centre")
    even = measured(
        4, {"skip_effect": quantity(("skipped", "affected"), later * [[1], [1], [4], [0]], 2.0)}
    )
    assert "cannot be told from the middle" in said(even, "centre")
    parts = np.array([[np.nan, 0.8, 0.2, 0.2]] * 3)
    size = measured(4, {"relative_contribution": quantity(("part", "layer"), parts, 0.05)})
    text = said(size, "stream's norm")
    assert (
        "second half adds 0.20" in text and "first half 0.80" in text and text.endswith(": less.")
    )
    turn = measured(4, {"cosine": quantity(("part", "layer"), [[-0.2, 0.0, 0.3, 0.2]] * 3, 0.05)})
    assert said(turn, "along the stream").startswith("The last 2 of 4 layers add along")
    wild = measured(4, {"cosine": quantity(("part", "layer"), [[-0.2, 0.0, 0.3, 0.2]] * 3, 5.0)})
    assert said(wild, "the stream (") == ""


def test_parts_blocks_order_and_what_is_needed() -> None:
    text = said(everything(), "Silencing")
    assert text.startswith("Silencing attention of a layer changes the answer most")
    kl = quantity(("sublayer", "skipped"), [[0.5] * 3, [0.49] * 3], 1.0)
    assert "cannot be told" in said(measured(3, {"sublayer_skip_kl": kl}), "part of a layer")
    kl = quantity(("size", "layer"), [[0.5, 0.01, 0.02], [0.4, 0.3, math.nan]], 0.001)
    text = said(measured(5, {"delete_kl": kl}), "blocks")
    assert "is layers 1 to 2: 0.010" in text
    assert (
        said(measured(5, {"delete_kl": quantity(("size", "layer"), [[0.5], [0.5]])}), "blocks")
        == ""
    )
    assert "neighbours exchanged in any of the last 1 of 5 places" not in said(
        everything(), "places"
    )
    text = said(everything(), "visible residue")
    assert text.startswith("From depth 5 of 6 on")
    assert "falls from 0.90" in said(everything(), "attribution")


def test_few_proteins_come_with_a_warning() -> None:
    assert said(skips([1.0, 1.0, 1.0]), "Only 8 proteins", 8)
    assert not said(skips([1.0, 1.0, 1.0]), "Only", 30)


def test_nothing_measured_says_nothing() -> None:
    assert reading(measured(6, {}), 100) == []


def test_controls_take_the_credit_that_is_theirs() -> None:
    """Late layers that are idle without training too are no sign of it."""
    ours, theirs = skips([1.0, 0.2, 0.01]), skips([0.01, 0.01, 0.01])
    assert "is no sign of training" in beside_control(ours, theirs)[-1]
    text = beside_control(ours, skips([1.0, 1.0, 1.0]))[-1]
    assert text.startswith("In the control none of 3 layers") and "not there before" in text
    assert any(s.startswith("Not told from the control") for s in beside_control(ours, ours))


def head(value: float, error: float = 0.01, seed: int = 0) -> Headline:
    return Headline(value, np.random.default_rng(seed).normal(value, error, 1000))


def test_trends_are_said_as_far_as_intervals_part() -> None:
    falls = {6: [head(0.5)], 12: [head(0.4, seed=1)], 33: [head(0.3, seed=2)]}
    text = trend("the score", falls)
    assert text.startswith("From 6 to 33 layers the score falls from 0.50") and "every step" in text
    dips = {**falls, 12: [head(0.2, seed=1)]}
    assert trend("the score", dips).endswith("not at every step.")
    assert "cannot be told" in trend("the score", {6: [head(0.5, 0.1)], 33: [head(0.45, 0.1, 1)]})
    assert "stays at 1.00" in trend("the score", {6: [head(1.0, 0.0)], 33: [head(1.0, 0.0)]})


def test_several_runs_of_a_depth_are_judged_by_their_range() -> None:
    runs = {6: [head(0.5), head(0.3, seed=1)], 12: [head(0.4, seed=2), head(0.35, seed=3)]}
    assert "cannot be told" in trend("the score", runs)
    assert "rises from 0.10 to 0.20 (2 models)" in trend(
        "the score", {6: [head(0.1), head(0.2, seed=1)], 12: runs[12]}
    )


def test_a_study_has_trends_of_families_and_tidy_rows() -> None:
    members = [
        Member("small", "esm2", analysis(everything(4))),
        Member("small-control", "esm2", analysis(everything(4, 0.01)), control_of="small"),
        Member("large", "esm2", analysis(everything(8))),
        Member("other", "bert", analysis(everything(6))),
    ]
    found = study(members)
    (only,) = found["trends"]
    assert only["family"] == "esm2" and [r["layers"] for r in only["rows"]] == [4, 4, 8]
    assert [r["control"] for r in only["rows"]] == [False, True, False]
    assert any(
        "From 4 to 8 layers the share of layers" in s and "rises" in s for s in only["reading"]
    )
    assert found["models"]["small"]["beside_control"]["encoder"]
    rows = [r for r in tidy(members) if r["quantity"] == "small_share"]
    assert [(r["model"], r["layers"]) for r in rows] == [
        ("small", 4), ("small-control", 4), ("large", 8), ("other", 6),
    ]  # fmt: skip
    # 2^-l < 0.05 from layer 5 on: none of 4, 3 of 8.
    assert [r["value"] for r in rows] == [0.0, 1.0, 3 / 8, 1 / 6]


def test_pieces_of_evidence() -> None:
    assert interval(np.array([np.nan] * 6 + [1.0] * 94)) == pytest.approx(
        (math.nan,) * 2, nan_ok=True
    )
    assert side(np.array([1.0, 2.0])) == 1 and side(np.array([-1.0, 2.0])) == 0
    assert side(np.array([np.nan])) == 0
    draws = np.random.default_rng(0).normal([3.0, 1.0, 2.95], 0.1, (500, 3))
    assert leader(np.array([3.0, 1.0, 2.95]), draws) == (0, [2])
    assert written(0.3141, np.linspace(0.28, 0.34, 100)) == "0.314 (0.282 to 0.339)"
    assert written(2.0) == "2.00" and written(123.456) == "123.5"


def test_headlines_are_those_of_the_means() -> None:
    found = headlines(everything(6))
    fall = 2.0 ** -np.arange(6)
    later = fall[:5]
    assert found["depth_score"].value == pytest.approx(
        (np.arange(5) * later).sum() / later.sum() / 5
    )
    assert found["small_share"].value == pytest.approx(1 / 6)
    assert found["late_contribution"].value == pytest.approx(fall[3:].mean())
    assert found["late_contribution"].low < fall[3:].mean() < found["late_contribution"].high
    assert found["loss"].low == pytest.approx(2.0 - 1.96 * 0.1 / 40**0.5, abs=0.01)
