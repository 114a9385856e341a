"""The bootstrap against closed forms and by its coverage."""

from __future__ import annotations

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics


def test_equal_denominators_give_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    estimate = statistics.ratio(values, np.ones(400), seed=1, draws=20_000)
    closed_form = values.std(ddof=0) / np.sqrt(400)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.standard_error == pytest.approx(closed_form, rel=0.02)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * closed_form, rel=0.04)


def test_unequal_denominators_give_the_delta_method() -> None:
    generator = np.random.default_rng(0)
    bottoms = generator.integers(50, 500, size=800).astype(float)
    tops = bottoms * generator.beta(6, 4, size=800)
    estimate = statistics.ratio(tops, bottoms, seed=1, draws=10_000)
    residuals = tops - estimate.value * bottoms
    delta = np.sqrt((residuals**2).sum()) / bottoms.sum()
    assert estimate.value == pytest.approx(tops.sum() / bottoms.sum())
    assert estimate.standard_error == pytest.approx(delta, rel=0.03)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(300):
        bottoms = generator.integers(50, 300, size=80).astype(float)
        tops = bottoms * generator.beta(7, 3, size=80)
        estimate = statistics.ratio(tops, bottoms, seed=trial, draws=600)
        covered += estimate.low <= 0.7 <= estimate.high
    assert 0.90 <= covered / 300 <= 0.98


def test_pairing_removes_what_both_systems_share() -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 10, size=300)
    first, second = shared + 1.0, shared + generator.normal(0, 0.1, size=300)
    ones = np.ones(300)
    paired = statistics.paired_difference(first, second, ones, seed=0)
    assert paired.value == pytest.approx(1.0, abs=0.05)
    assert paired.standard_error < 0.02 < statistics.ratio(first, ones, seed=0).standard_error


def test_same_seed_same_draws_whatever_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    tops, bottoms = np.arange(1.0, 31.0), np.full(30, 40.0)
    whole = statistics.ratio(tops, bottoms, seed=5)
    assert statistics.ratio(tops, bottoms, seed=5) == whole
    assert statistics.ratio(tops, bottoms, seed=6) != whole
    monkeypatch.setattr(statistics, "_ELEMENTS_AT_ONCE", 100)
    assert statistics.ratio(tops, bottoms, seed=5) == whole


def test_proteins_without_a_scored_residue_take_no_part() -> None:
    with_empty = statistics.ratio([1, 0, 3], [2, 0, 4], seed=0)
    assert with_empty == statistics.ratio([1, 3], [2, 4], seed=0)
    assert with_empty.proteins == 2
    assert statistics.ratio([1], [2], seed=0) == statistics.Estimate(0.5, None, None, None, 1)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ProtlmError, match="nothing to score"):
        statistics.ratio([0.0], [0.0], seed=0)
    with pytest.raises(ProtlmError, match="equally long"):
        statistics.ratio([0.0, 1.0], [1.0], seed=0)


def test_spearman_as_scipy_has_it() -> None:
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    a = generator.integers(0, 8, 50)  # many ties
    b = a + generator.normal(size=50)
    assert statistics.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert statistics.spearman([1, 2, 3], [30, 20, 10]) == pytest.approx(-1.0)
    assert statistics.spearman([1, 1], [1, 2]) is None
    assert statistics.spearman([1], [1]) is None


def test_auroc_and_its_error_are_those_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(7)
    owners = np.repeat(np.arange(40), rng.integers(20, 60, 40))
    labels = rng.random(len(owners)) < 0.2
    scores = rng.normal(size=len(owners)) + 0.7 * labels + rng.normal(size=40)[owners]

    def area(scores: np.ndarray, labels: np.ndarray) -> float:
        above = scores[labels][:, None] - scores[~labels][None]
        return float(np.mean((above > 0) + 0.5 * (above == 0)))

    found = statistics.auroc(scores, labels, owners, seed=0)
    assert found.value == pytest.approx(area(scores, labels), abs=1e-3)
    drawn = []
    for _ in range(300):
        members = rng.integers(40, size=40)
        rows = np.concatenate([np.flatnonzero(owners == m) for m in members])
        drawn.append(area(scores[rows], labels[rows]))
    assert found.standard_error == pytest.approx(np.std(drawn), rel=0.15)
    assert found.low < found.value < found.high and found.proteins == 40
    tied = statistics.auroc(np.zeros(len(owners)), labels, owners, seed=0)
    assert (tied.value, tied.standard_error) == (0.5, None)  # in every draw
    assert statistics.auroc(scores, np.zeros(len(owners), bool), owners, seed=0) is None


def test_any_statistic_of_sums_is_drawn_like_a_ratio() -> None:
    generator = np.random.default_rng(1)
    bottoms = generator.integers(1, 30, 40)
    tops, others = generator.integers(0, bottoms + 1), generator.integers(0, bottoms + 1)

    def accuracy(right: np.ndarray) -> statistics.Bootstrapped:
        sums = np.stack([right, bottoms], axis=1)
        return statistics.of_sums(sums, lambda s: s[:, 0] / s[:, 1], seed=3)

    expected = statistics.ratio(tops, bottoms, seed=3)
    assert accuracy(tops).estimate().to_dict() == pytest.approx(expected.to_dict())
    paired = statistics.paired_difference(tops, others, bottoms, seed=3)
    found = accuracy(tops).minus(accuracy(others)).estimate()
    assert found.to_dict() == pytest.approx(paired.to_dict())


def test_rank_correlation_of_every_draw_is_that_of_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(2)
    owners = np.repeat(np.arange(12), generator.integers(1, 5, 12))
    truth = generator.integers(0, 6, owners.size).astype(float)  # ties
    predicted = np.round(truth + generator.normal(0, 2, owners.size), 1)
    found = statistics.rank_correlation(predicted, truth, owners, seed=5, draws=50)
    assert found is not None
    assert found.value == pytest.approx(scipy_stats.spearmanr(predicted, truth).statistic)
    rows = [np.repeat(np.arange(12), n.astype(int)) for n in statistics.resampled(12, 5, 50)]
    for drawn, row in zip(found.drawn, rows, strict=True):
        index = np.concatenate([np.flatnonzero(owners == protein) for protein in row])
        expected = scipy_stats.spearmanr(predicted[index], truth[index]).statistic
        assert drawn == pytest.approx(expected)
    assert statistics.rank_correlation(np.ones(4), truth[:4], np.arange(4), seed=0) is None


def test_intervals_hold_95_percent_of_the_draws() -> None:
    """Of about normal draws they are 3.92 standard errors wide; those of 90 % would be 3.29."""
    rng = np.random.default_rng(11)
    owners = np.repeat(np.arange(60), 20)
    labels = rng.random(owners.size) < 0.4
    scores = rng.normal(size=owners.size) + labels + rng.normal(size=60)[owners]
    ranked = statistics.rank_correlation(scores, labels + rng.normal(size=owners.size), owners,
                                         seed=0)  # fmt: skip
    assert ranked is not None
    for found in (
        statistics.ratio(scores[:60], np.ones(60), seed=0),
        statistics.auroc(scores, labels, owners, seed=0),
        ranked.estimate(),
    ):
        assert found is not None and found.standard_error is not None
        width = (found.high - found.low) / found.standard_error
        assert width == pytest.approx(3.92, rel=0.06)


def test_what_does_not_vary_has_no_error_bar() -> None:
    none = (None, None, None)
    for found in (
        statistics.ratio([0.1], [1.0], seed=0),
        statistics.ratio([0.3, 0.3], [3.0, 3.0], seed=0),
        statistics.ratio([0.1 * n for n in range(1, 9)], range(1, 9), seed=0),  # 0.1 but rounding
        statistics.paired_difference([0.1, 0.7], [0.1, 0.7], [1, 1], seed=0),
        statistics.paired_difference([1e3 + 1e-11, 5.0], [1e3, 5.0], [1, 1], seed=0),
    ):
        assert (found.standard_error, found.low, found.high) == none
    same = statistics.rank_correlation(np.arange(9.0), np.arange(9.0), np.arange(9), seed=0)
    assert same is not None and same.estimate() == statistics.Estimate(1.0, *none, 9)
    nothing = same.minus(same).estimate()
    assert nothing == statistics.Estimate(0.0, *none, 9)
    undefined = statistics.Bootstrapped(np.nan, np.full(9, np.nan), 2)
    assert undefined.estimate() is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    values = np.array([1.0, bad, 2.0])
    for call in (
        lambda: statistics.ratio(values, np.ones(3), seed=0),
        lambda: statistics.ratio(np.ones(3), values, seed=0),
        lambda: statistics.rank_correlation(values, np.arange(3.0), np.arange(3), seed=0),
        lambda: statistics.auroc(values, [True, False, True], [0, 1, 2], seed=0),
    ):
        with pytest.raises(ProtlmError, match="number 1 of 3 is"):
            call()
    assert statistics.spearman(values, [1, 2, 3]) is None


@hypothesis.given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from([0.0, 0.1, 1.0, -2.5]), st.floats(-1e6, 1e6)),
            st.sampled_from([0.0, 0.3, 1.0, 1e5]),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=8,
    )
)
@hypothesis.settings(deadline=None, max_examples=120, derandomize=True)
def test_of_few_values_all_is_finite_or_none(rows: list[tuple[float, float, int]]) -> None:
    first, second, owners = (np.array(column) for column in zip(*rows, strict=True))
    owners = np.unique(owners, return_inverse=True)[1]
    ones = np.ones(len(first))
    every = {"seed": 0, "draws": 200}
    ranked = statistics.rank_correlation(first, second, owners, **every)
    found = [
        statistics.ratio(first, ones, **every),
        statistics.paired_difference(first, second, ones, **every),
        statistics.auroc(first, second > 0.5, owners, **every),
        ranked and ranked.estimate(),
        ranked and ranked.minus(ranked).estimate(),
        statistics.of_sums(np.stack([first, ones], axis=1), lambda s: s[:, 0] / s[:, 1], **every)
        .estimate(),
    ]  # fmt: skip
    for one in found:
        if one is None:
            continue
        assert math.isfinite(one.value)
        if one.standard_error is None:
            assert one.low is None and one.high is None
            continue
        assert one.proteins > 1 and one.standard_error > 0
        assert one.low <= one.value <= one.high and one.low < one.high
        assert max(abs(one.low), abs(one.high)) < 1e12 * one.standard_error
    value = statistics.spearman(first, second)
    assert value is None or -1 <= value <= 1
