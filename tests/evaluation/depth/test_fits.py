"""What is fitted over a frozen model: linear maps between models, and the tuned lens."""

from __future__ import annotations

import numpy as np
import pytest
from depth_rows import proteins
from sklearn.linear_model import Ridge
from zoo import loaded

from protlm_jax.evaluation.depth import tuned_lens as lens
from protlm_jax.evaluation.depth.batches import prepare
from protlm_jax.evaluation.depth.linear_maps import PENALTY, _add, explained, linear_maps
from protlm_jax.evaluation.depth.sweep import Sweep


def test_the_map_is_the_ridge_regression_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 400, 5)) + 3
    y = x[:1] @ rng.normal(size=(5, 7)) + rng.normal(size=(1, 400, 7)) - 2
    halves: list[dict] = [{}, {}]
    for start in range(0, 400, 100):  # moments of several batches
        part = slice(start, start + 100)
        _add(halves[start // 100 % 2], x[:, part], y[:, part])
    fitted = np.arange(400) // 100 % 2 == 0
    found = explained(halves[0], halves[1])
    for i in range(2):
        a, b = x[i][fitted], y[0][fitted]
        penalty = PENALTY * a.var(axis=0).mean() * len(a)
        error = y[0][~fitted] - Ridge(penalty).fit(a, b).predict(x[i][~fitted])
        test = y[0][~fitted]
        expected = 1 - (error**2).sum() / ((test - test.mean(0)) ** 2).sum()
        assert found[i, 0] == pytest.approx(expected, abs=1e-9)
    assert found[0, 0] > 0.7 > 0.1 > found[1, 0]


def test_a_model_is_a_linear_map_of_itself_and_of_families_with_other_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ESM-2 has a token before the protein, and T5 has none: residues are what is paired."""
    seen: list[dict] = []

    def recorded(fitted: dict, held_out: dict) -> np.ndarray:
        seen.extend([fitted, held_out])
        return explained(fitted, held_out)

    monkeypatch.setattr("protlm_jax.evaluation.depth.linear_maps.explained", recorded)
    same = linear_maps(loaded("bert"), loaded("bert"), proteins(64))
    assert same.dims == ("depth", "other_depth") and same.values.shape == (3, 3)
    assert (np.diag(same.values) > 0.99).all() and same.values[0, 2] < 0.98
    fitted, held_out = seen
    assert fitted["n"] == held_out["n"] == 32 * 21, "half of the proteins each"
    assert not np.allclose(fitted["xx"], held_out["xx"]), "scored on what was fitted"
    other = linear_maps(loaded("esm2"), loaded("t5"), proteins(64), depths=[1, 2])
    assert other.values.shape == (2, 3) and np.isfinite(other.values).all()
    assert other.values[0, 0] > 0.25, "both know what a residue is; chance is 0"
    with pytest.raises(ValueError, match="more proteins"):
        linear_maps(loaded("bert"), loaded("bert"), proteins(8))


def test_a_tuned_lens_is_nearer_to_the_answer_than_the_logit_lens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = loaded("bert")
    made = prepare(model, proteins(96, 41), None, seed=0)
    sweep = Sweep(model, made, "encoder")
    found, maps = lens.trained_lens(sweep, steps=100)
    used: set[bytes] = set()
    points = lens._points

    def recorded(sweep: Sweep, batches: list) -> tuple:
        used.update(row.tobytes() for batch in batches for row in batch.true)
        return points(sweep, batches)

    monkeypatch.setattr(lens, "_points", recorded)
    untrained, zero = lens.trained_lens(sweep, steps=0)
    assert not np.asarray(zero["A"]).any() and np.asarray(maps["A"]).any()
    trained, start = (x["tuned_lens_kl_reverse"].mean for x in (found, untrained))
    assert trained.shape == (2,) and (trained < 0.9 * start).all()
    held_out = found["tuned_lens_nll"].count[0] > 0
    rows = [model.vocabulary.encode(protein.sequence).tobytes() for protein in made.hidden]
    others = {row for row, judged in zip(rows, held_out, strict=True) if not judged}
    assert len(others) == 72 and used == others, "what fits or chooses does not judge"
