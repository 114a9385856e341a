"""The sparse regression against scikit-learn, and attention maps of every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import contacts, results
from protlm_jax.evaluation.contacts import regression, run
from protlm_jax.evaluation.contacts.regression import maps, sparse_logistic
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein, Target, View

PROTEINS = {"a": "MKTAYIAKQRQISFVKSHFSRQ", "b": "GAVLIWCXKT"}


def problem(rows: int = 1500, features: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Two of the features say something; their scales differ a thousandfold."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, features)) @ (np.eye(features) + 0.3)
    logits = 1.5 * x[:, 2] - 2.0 * x[:, 7] - 2.0
    y = rng.random(rows) < 1 / (1 + np.exp(-logits))
    return (x * np.geomspace(0.03, 30, features)).astype(np.float32), y


@pytest.mark.parametrize("strength", [0.003, 0.15, 10.0])
def test_the_optimum_is_that_of_scikit_learn(strength: float) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = problem()
    # Its solvers want columns of like size; as the penalty is then on other weights, so is ours.
    x /= x.std(axis=0)
    w, bias, loss = sparse_logistic(x, y, strength)
    reference = LogisticRegression(
        l1_ratio=1.0, C=strength, solver="saga", tol=1e-9, max_iter=20_000
    ).fit(x.astype(np.float64), y)

    def objective(w: np.ndarray, b: float) -> float:
        logits = x.astype(np.float64) @ w + b
        return float(np.abs(w).sum() + strength * np.sum(np.logaddexp(0, logits) - y * logits))

    best = objective(reference.coef_[0], float(reference.intercept_[0]))
    assert objective(w, bias) <= best * (1 + 1e-6)
    np.testing.assert_allclose(w, reference.coef_[0], atol=2e-3 * np.abs(w).max() + 1e-6)
    assert loss == pytest.approx((objective(w, bias) - np.abs(w).sum()) / strength / len(y))


def test_weights_far_apart_in_scale_are_at_the_optimum() -> None:
    x, y = problem()
    strength = 0.15
    w, bias, _ = sparse_logistic(x, y, strength)
    z = x.astype(np.float64)
    residual = 1 / (1 + np.exp(-(z @ w + bias))) - y
    slope = strength * (z.T @ residual)  # of the smooth part: -sign(w) where w is not 0
    assert abs(residual.sum()) < 1e-3 * len(y)
    assert (np.abs(slope[w == 0]) <= 1 + 1e-2).all()
    np.testing.assert_allclose(slope[w != 0], -np.sign(w[w != 0]), atol=2e-2)
    assert w[2] != 0 and w[7] != 0


def test_a_strong_penalty_leaves_the_base_rate() -> None:
    x, y = problem(400)
    w, bias, _ = sparse_logistic(x, y, 1e-9)
    assert not w.any()
    assert 1 / (1 + np.exp(-bias)) == pytest.approx(y.mean(), rel=1e-4)


# Absolute positions, a bias, relative attention both ways, rotary in parallel blocks.
@pytest.mark.parametrize("family", ["bert", "t5", "transformer_xl", "xlnet", "progen2"])
def test_families_show_maps_that_do_not_depend_on_the_batch(
    small_model, assert_close, family: str
) -> None:
    loaded = small_model(family)
    shape = (loaded.config.num_layers, loaded.config.num_heads)
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weights = contacts.Weights(kernel, -0.5)
    together = dict(contacts.predict(loaded, PROTEINS, weights=weights, tokens_per_batch=128))
    for name, sequence in PROTEINS.items():
        found = maps(loaded, sequence)
        assert found.shape == (*shape, len(sequence), len(sequence)) and found.any()
        np.testing.assert_allclose(found, np.swapaxes(found, 2, 3), atol=1e-6)
        # What is left after the correction sums to zero over each residue's pairs.
        np.testing.assert_allclose(found.sum(axis=-1), 0, atol=1e-5)
        logits = np.einsum("NHij,NH->ij", found, kernel) - 0.5
        assert_close(together[name], 1 / (1 + np.exp(-logits)), 1e-4, name)


def benchmark(longest: int = 30) -> Benchmark:
    rng = np.random.default_rng(0)

    def chains(count: int) -> list[LabelledProtein]:
        found = []
        for c in range(count):
            sequence = "".join(rng.choice(list("ACDEFGHIKL"), longest - c))
            i, j = np.triu_indices(len(sequence), 6)
            touching = rng.random(len(i)) < 0.2
            pairs = np.stack([i[touching], j[touching]], axis=1)
            found.append(LabelledProtein(f"c{c}", sequence, {"contact": pairs}))
        return found

    splits = {"train": chains(3), "valid": chains(1), "test": chains(5)}
    return Benchmark(
        name="pairs",
        title="Pairs",
        level="pair",
        targets=(Target("contact", "classes", ("apart", "touching")),),
        splits={name: lambda proteins=p: proteins for name, p in splits.items()},
        views={"test": View("test", "test")},
        licence="none",
        source="drawn",
        notes=("Drawn at random.",),
    )


def test_a_run_has_every_predictor_and_pairs_its_differences(small_model, tmp_path: Path) -> None:
    loaded, data = small_model("esm2"), benchmark()
    result = run.run(loaded, data, train_proteins=2)
    ways = ["regression", "own_head", "random", "separation"]
    assert result["predictor"].values.tolist() == ways
    assert result.sizes["protein"] == 5 and result.attrs["left_out"] == 0
    assert result.attrs["train_proteins"] == 2
    test = {p.id: p for p in data.splits["test"]()}
    own = contacts.evaluate(
        loaded,
        {name: p.sequence for name, p in test.items()},
        {name: p.labels["contact"] for name, p in test.items()},
    )
    for kind, found in own["ranges"].items():
        for count, expected in {**found["precision"], "chance": found["chance"]}.items():
            mean = run.estimate(result, "mean", "own_head", kind, count)
            assert {**mean, "proteins": expected["proteins"]} == expected
            assert result["chains"].sel(range=kind) == expected["proteins"]
    mean = result["mean"].sel(estimate="value")
    gap = result["difference"].sel(estimate="value", predictor="separation", count="L")
    apart = mean.sel(predictor="regression") - mean.sel(predictor="separation")
    np.testing.assert_allclose(gap, apart.sel(count="L"), atol=1e-12)
    again = results.read(results.save(result, tmp_path / "results.nc"))
    assert run.summary(again) == run.summary(result)
    assert "P@L in percent, 5 chains" in run.summary(result)


def test_chains_that_do_not_fit_are_counted(small_model) -> None:
    loaded = small_model("bert", max_positions=30)  # 28 residues and two special tokens
    result = run.run(loaded, benchmark())
    assert result.attrs["left_out"] == 2 and result.sizes["protein"] == 3
    assert "2 test chains are longer" in run.summary(result)
    assert "own_head" not in result["predictor"]
    with pytest.raises(ProtlmError, match="takes 10 residues, and no chain"):
        run.run(small_model("bert", max_positions=12), benchmark())


def test_validation_chooses_the_penalty(small_model, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    chains = benchmark().splits["test"]()
    truth = {p.sequence: p.labels["contact"] for p in chains}

    def planted(_: object, sequence: str) -> np.ndarray:
        """One head of four that sees the contacts through noise, on a scale of its own."""
        found = rng.normal(size=(2, 2, len(sequence), len(sequence)))
        i, j = truth[sequence].T
        found[1, 0, i, j] += 2
        return (0.01 * found).astype(np.float32)

    monkeypatch.setattr(regression, "maps", planted)
    fitted = regression.fit(small_model("bert"), chains[:2], chains[2:])
    assert fitted.strength == min(fitted.valid, key=fitted.valid.__getitem__) != 0.15
    assert fitted.valid[fitted.strength] < fitted.valid[0.015]
    assert np.abs(fitted.weights.kernel).argmax() == 2
    assert regression.fit(small_model("bert"), chains[:2]).strength == 0.15


def test_what_cannot_be_fitted_is_refused(small_model) -> None:
    empty = LabelledProtein("x", "MKVLAAGIKQ", {"contact": np.zeros((0, 2), int)})
    with pytest.raises(ProtlmError, match="of the 10 pairs of 1 chains 0 touch"):
        contacts.fit(small_model("esm2"), [empty])
