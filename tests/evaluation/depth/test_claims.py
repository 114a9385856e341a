"""The right verdict for numbers of which it is known, and none where there is no ground for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray
from depth_made import by_noise, everything, measured, quantity

from protlm_jax.evaluation.depth.claims import (
    Claim,
    claims,
    headlines,
    leader,
    noise_claims,
    table,
    tail,
    trends,
)
from protlm_jax.evaluation.depth.results import Quantity
from protlm_jax.evaluation.depth.scores import GUESS


def only(found: xarray.Dataset, name: str) -> Claim:
    (claim,) = [row for row in claims(found) if row.name == name]
    return claim


def absent(found: xarray.Dataset, name: str) -> bool:
    return name not in {row.name for row in claims(found)}


def skips(kl: list[float], spread: float = 0.01) -> xarray.Dataset:
    return measured(len(kl), {"skip_kl": quantity(("skipped",), kl, spread)})


def losses(rises: list[float], spread: float = 0.0) -> xarray.Dataset:
    base, layers = quantity((), 2.0, 0.3), quantity(("skipped",), rises, spread, seed=1)
    nll = Quantity(layers.dims, layers.total + base.total, layers.count)  # shared by both
    return measured(len(rises), {"base_nll": base, "skip_nll": nll})


def lens(nll: list[float], base: float, spread: float = 0.02) -> xarray.Dataset:
    curve = quantity(("depth",), nll, spread)
    return measured(len(nll) - 1, {"base_nll": quantity((), base, spread), "lens_nll": curve})


def test_late_layers_are_counted_from_the_end() -> None:
    row = only(skips([1.0, 0.01, 0.5, 0.02, 0.01]), "skip_kl")
    assert "the last 2 of 5 layers (from 3 on)" in row.claim and row.verdict == "yes"
    assert row.value == pytest.approx(0.02) and row.threshold == 0.05
    assert 0.02 < row.high < 0.03  # 1.96 standard errors of 0.01 / sqrt(40) above 0.02
    assert "the last 4 of 4" in only(skips([0.01] * 4), "skip_kl").claim
    assert only(skips([1, 1, 0.2]), "skip_kl").verdict == "no"
    assert only(skips([1.0, 1.0, 0.045], spread=0.1), "skip_kl").verdict == "undecided"


def test_a_run_has_to_hold_as_a_whole() -> None:
    """Each of many entries is below the bound with 97.5 %, but not all of them together."""
    draws = np.random.default_rng(0).normal(0.0, 1.0, (1000, 40))
    assert (np.quantile(draws, 0.975, axis=0) < 2.4).all()
    assert tail(draws, 2.4) < 10
    assert tail(np.full((10, 3), np.nan), 1.0) == 0


def test_the_dearest_layer_is_named_when_it_stands_out() -> None:
    row = only(losses([0.1, 0.3, 0.9, 0.0], 0.05), "skip_delta_nll")
    assert "skipping layer 2 raises the loss most: 0.9 nats; difference to 1" in row.claim
    assert row.verdict == "yes" and row.value == pytest.approx(0.6)
    row = only(losses([0.50, 0.1, 0.49, 0.0], 0.3), "skip_delta_nll")
    assert "layer 0 or 2 raises" in row.claim and row.verdict == "undecided"
    row = only(losses([0.5] * 8, 0.3), "skip_delta_nll")
    assert "or 4 others" in row.claim and row.verdict == "undecided"


def test_early_exits_are_shares_of_the_layers() -> None:
    gain = GUESS - 2.0
    found = headlines(lens([GUESS, GUESS, GUESS - 0.6 * gain, GUESS - 0.97 * gain, 2.0], 2.0))
    assert (found["half_depth"].value, found["exit_depth"].value) == (2 / 4, 3 / 4)
    # What is reached and lost again was not reached.
    found = headlines(lens([2.0, GUESS, GUESS, GUESS, 2.0], 2.0))
    assert (found["half_depth"].value, found["exit_depth"].value) == (1.0, 1.0)


def test_a_model_that_knows_nothing_has_no_early_exit() -> None:
    guess = lens([GUESS] * 4 + [GUESS - 0.001], GUESS - 0.001, spread=0.1)
    assert absent(guess, "half_depth") and only(guess, "knows").verdict == "undecided"
    assert only(lens([3.0] * 4 + [2.0], 2.0), "knows").verdict == "yes"


def test_centre_halves_and_direction() -> None:
    later = np.triu(np.ones((4, 4)), 1)

    def effects(weights: list[float], spread: float) -> xarray.Dataset:
        values = later * np.array(weights)[:, None]
        return measured(4, {"skip_effect": quantity(("skipped", "affected"), values, spread)})

    assert only(effects([8, 2, 1, 0], 0.01), "early_centre").verdict == "yes"
    assert only(effects([1, 1, 4, 0], 2.0), "early_centre").verdict == "undecided"
    parts = np.array([[np.nan, 0.8, 0.2, 0.2]] * 3)
    size = measured(4, {"relative_contribution": quantity(("part", "layer"), parts, 0.05)})
    row = only(size, "halves")
    assert row.value == pytest.approx(-0.6) and row.verdict == "lower"
    turn = [[-0.2, 0.0, 0.3, 0.2]] * 3
    row = only(measured(4, {"cosine": quantity(("part", "layer"), turn, 0.05)}), "cosine")
    assert "the last 2 of 4 layers add along" in row.claim and row.verdict == "yes"
    assert absent(measured(4, {"cosine": quantity(("part", "layer"), turn, 5.0)}), "cosine")


def test_parts_blocks_and_what_is_needed() -> None:
    row = only(everything(), "sublayer_skip_kl")
    assert "silencing the attention changes" in row.claim and row.verdict == "yes"
    kl = quantity(("sublayer", "skipped"), [[0.5] * 3, [0.49] * 3], 1.0)
    assert only(measured(3, {"sublayer_skip_kl": kl}), "sublayer_skip_kl").verdict == "undecided"
    kl = quantity(("size", "first"), [[0.5, 0.01, 0.02], [0.4, 0.3, math.nan]], 0.001)
    row = only(measured(5, {"delete_kl": kl}), "delete_kl")
    assert "layers 1 to 2" in row.claim and row.value == pytest.approx(0.01)
    big = quantity(("size", "first"), [[0.5], [0.5]])
    assert absent(measured(5, {"delete_kl": big}), "delete_kl")
    assert (
        "at the last 1 of 3 depths looked at (from 5 on)" in only(everything(), "erasure_kl").claim
    )
    row = only(everything(), "context_share")
    assert row.value == pytest.approx(-0.8) and row.verdict == "lower"


def test_nothing_measured_claims_nothing() -> None:
    assert claims(measured(6, {})) == []


def test_a_control_stands_beside_and_differences_are_paired() -> None:
    ours, theirs = everything(6), everything(6, 0.01, name="made-reinitialised")
    rows = {row.name: row for row in claims(ours, theirs)}
    assert rows["control_small_share"].value == pytest.approx(1 / 6 - 1)
    assert rows["control_small_share"].verdict == "lower"
    assert all(r.verdict in ("the same", "undecided")
               for r in claims(ours, ours) if r.name.startswith("control"))  # fmt: skip
    made = table(claims(ours), claims(theirs))
    assert made.columns[3] == "re-initialised" and made.rows[0][3] == pytest.approx(2.0)


def test_trends_go_from_the_shallowest_to_the_deepest_model() -> None:
    stacks = [
        everything(4, name="small"),
        everything(4, 0.01, name="control").assign_attrs(control_of="small"),
        everything(8, name="large"),
        everything(6, name="other").assign_attrs(family="bert"),
    ]
    ((where, rows),) = trends(stacks)
    assert where == "esm2, encoder" and "8 layers - 4 layers" in rows[0].claim
    share = next(row for row in rows if row.name == "small_share")
    # 2^-l < 0.05 from layer 5 on: none of 4, 3 of 8.
    assert share.value == pytest.approx(3 / 8) and share.verdict == "higher"
    assert trends([everything(4), everything(4, 0.5)]) == []


def test_levels_of_noise_are_compared_at_their_ends() -> None:
    rows = {row.name: row for row in noise_claims(by_noise())}
    assert rows["late_contribution"].verdict == "higher"
    assert "0.9 hidden - 0.1 hidden" in rows["late_contribution"].claim
    assert rows["depth_score"].verdict == "undecided"


def test_the_leader_and_its_rivals() -> None:
    draws = np.random.default_rng(0).normal([3.0, 1.0, 2.95], 0.1, (500, 3))
    assert leader(np.array([3.0, 1.0, 2.95]), draws) == (0, [2])


def test_headlines_are_those_of_the_means() -> None:
    found = headlines(everything(6))
    fall = 2.0 ** -np.arange(6)
    later = fall[:5]
    expected = (np.arange(5) * later).sum() / later.sum() / 5
    assert found["depth_score"].value == pytest.approx(expected)
    assert found["small_share"].value == pytest.approx(1 / 6)
    late = found["late_contribution"]
    assert late.value == pytest.approx(fall[3:].mean())
    assert late.interval()[0] < late.value < late.interval()[1]
    assert found["loss"].interval()[0] == pytest.approx(2.0 - 1.96 * 0.1 / 40**0.5, abs=0.01)
