"""Replaced-token detection: labels by hand, sums and rates against NumPy and SciPy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from scipy.stats import mannwhitneyu

from protlm_jax.objectives import build_objective
from protlm_jax.objectives.replaced_token import (
    ReplacedTokenObjective,
    label_entropy,
    logit_histogram,
    rates,
    token_counts,
)
from protlm_jax.vocabularies import PROT_BERT

AMINO = np.asarray(PROT_BERT.amino_acid_ids)
OBJECTIVE = ReplacedTokenObjective(PROT_BERT)
A, C, D = (int(PROT_BERT.encode(letter, specials=False)[0]) for letter in "ACD")


class Given:
    """A model whose answers are its parameters, and that remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: dict[str, np.ndarray] = {}

    def apply(
        self, variables: Any, batch: Any, deterministic: bool, rngs: Any, method: str
    ) -> jax.Array:
        self.shown[method] = np.asarray(batch["input_tokens"])
        return variables["params"][method]


def rows(number: int = 8, length: int = 64) -> dict[str, np.ndarray]:
    """Rows of [CLS] residues [SEP] padding; the padding holds residue ids."""
    tokens = np.random.default_rng(0).choice(AMINO, (number, length))
    tokens[:, 0], tokens[:, length - 9] = 2, 3
    segments = np.tile(np.arange(length) < length - 8, (number, 1))
    return {"input_tokens": tokens.astype(np.int32), "segment_ids": segments.astype(np.int32)}


def answers(batch: dict[str, np.ndarray], seed: int = 1) -> dict[str, np.ndarray]:
    """Logits of a generator over the residues A, C and D, and of a discriminator."""
    rng = np.random.default_rng(seed)
    shape = batch["input_tokens"].shape
    generator = np.full((*shape, 30), -1e9, np.float32)
    generator[..., [A, C, D]] = rng.normal(size=(*shape, 3))
    detector = rng.normal(size=(*shape, 1)).astype(np.float32)
    return {"generate": generator, "__call__": detector}


def test_a_draw_of_the_true_residue_is_no_replacement() -> None:
    tokens = jnp.asarray([[A, A, C, D]])
    asked = jnp.asarray([[True, True, True, False]])
    logits = np.full((1, 4, 30), -1e9, np.float32)
    logits[0, 0, A] = logits[0, 1, C] = logits[0, 2, C] = logits[0, 3, A] = 0.0
    shown, replaced = OBJECTIVE.replace(tokens, asked, jnp.asarray(logits), jax.random.key(0))
    assert shown.tolist() == [[A, C, C, D]]
    assert replaced.tolist() == [[False, True, False, False]]


def test_replacements_are_drawn_from_the_generators_softmax() -> None:
    shape = (64, 256)
    logits = np.full((*shape, 30), -1e9, np.float32)
    logits[..., A], logits[..., C], logits[..., D] = np.log([0.5, 0.3, 0.2])
    tokens, asked = jnp.full(shape, A), jnp.ones(shape, bool)
    shown, replaced = OBJECTIVE.replace(tokens, asked, jnp.asarray(logits), jax.random.key(2))
    for token, expected in ((A, 0.5), (C, 0.3), (D, 0.2)):
        error = np.sqrt(expected * (1 - expected) / shown.size)
        assert abs((np.asarray(shown) == token).mean() - expected) < 4 * error
    assert np.array_equal(replaced, np.asarray(shown) != A)


def test_the_generator_sees_masks_and_the_discriminator_what_was_drawn() -> None:
    batch, model = rows(), Given()
    score = OBJECTIVE(model, answers(batch), batch, jax.random.key(3))
    masked = model.shown["generate"] == PROT_BERT.mask_id
    assert 0.05 < masked.mean() < 0.25
    drawn = model.shown["__call__"]
    assert set(drawn[masked]) == {A, C, D}
    assert np.array_equal(drawn[~masked], batch["input_tokens"][~masked])
    assert float(score.metrics["hidden/count"]) == masked.sum()


def test_the_loss_is_that_of_numpy() -> None:
    batch, model = rows(), Given()
    given = answers(batch)
    score = OBJECTIVE(model, given, batch, jax.random.key(3))
    tokens, real = batch["input_tokens"], batch["segment_ids"] > 0
    asked = model.shown["generate"] == PROT_BERT.mask_id
    replaced = model.shown["__call__"] != tokens
    logits = given["generate"].astype(np.float64)
    guess = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    generator = -np.take_along_axis(guess, tokens[..., None], axis=-1)[..., 0][asked].sum()
    probability = 1 / (1 + np.exp(-given["__call__"][..., 0].astype(np.float64)))
    wrong = -np.log(np.where(replaced, probability, 1 - probability))
    np.testing.assert_allclose(score.loss_sum, generator / 0.15 + 50 * wrong[real].sum(), rtol=1e-5)
    assert float(score.weight_sum) == real.sum(), "special tokens count, padding does not"
    residues = real & np.isin(tokens, AMINO)
    np.testing.assert_allclose(score.metrics["detection/nll_sum"], wrong[residues].sum(), rtol=1e-5)
    assert float(score.metrics["detection/count"]) == residues.sum()


def test_scores_of_parts_add_up_and_are_read_as_one() -> None:
    """As accumulation, data parallelism and held-out batches add them, each part with its draws."""
    batch = rows(16)
    given = answers(batch)
    halves = []
    for index, half in enumerate((slice(0, 8), slice(8, 16))):
        part = {name: x[half] for name, x in batch.items()}
        own = {name: x[half] for name, x in given.items()}
        halves.append((OBJECTIVE(Given(), own, part, jax.random.key(index)), Given()))
    total = jax.tree.map(jnp.add, halves[0][0].metrics, halves[1][0].metrics)
    read = OBJECTIVE.summary(jax.tree.map(lambda x: np.asarray(x, np.float64), total))
    assert {np.ndim(value) for value in read.values()} == {0}
    pooled = sum(float(half.metrics["detection/nll_sum"]) for half, _ in halves)
    assert float(read["detection/nll"]) == pytest.approx(pooled / (16 * 54), rel=1e-5)
    assert 0 < float(read["detection/replaced"]) < 0.15


def detector(spread: float, size: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    labels = rng.random(size) < 0.12
    return (rng.normal(-2.0, 1.0, size) + labels) * spread, labels


@pytest.mark.parametrize("spread", [1.0, 0.05, 20.0])
def test_rates_from_a_histogram_are_those_of_all_pairs(spread: float) -> None:
    """Also of an untrained detector, whose logits fill few bins, and of a sure one."""
    logits, labels = detector(spread)
    histogram = logit_histogram(
        jnp.asarray(logits, jnp.float32), jnp.asarray(labels), jnp.ones(labels.shape, bool)
    )
    found = {name: float(value) for name, value in rates(histogram).items()}
    pairs = labels.sum() * (~labels).sum()
    auroc = mannwhitneyu(logits[labels], logits[~labels]).statistic / pairs
    assert found["auroc"] == pytest.approx(auroc, abs=2e-3)
    said = logits.astype(np.float32) >= 0
    assert found["accuracy"] == pytest.approx((said == labels).mean(), abs=1e-6)
    assert found["precision"] == pytest.approx((labels & said).sum() / max(said.sum(), 1))
    assert found["recall"] == pytest.approx((labels & said).sum() / labels.sum())
    assert found["replaced"] == pytest.approx(labels.mean())


def test_rates_without_any_replacement() -> None:
    histogram = logit_histogram(jnp.zeros(5), jnp.zeros(5, bool), jnp.ones(5, bool))
    assert float(rates(histogram)["auroc"]) == 0.5
    assert float(label_entropy(jnp.asarray([[5.0, 0.0]]))) == 0.0


def test_entropy_given_the_token_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(6)
    tokens = rng.integers(0, 6, 4000)
    labels = rng.random(4000) < np.linspace(0.05, 0.6, 6)[tokens]
    scored = rng.random(4000) < 0.9
    counts = token_counts(jnp.asarray(tokens), jnp.asarray(labels), jnp.asarray(scored), 30)
    assert float(counts.sum()) == scored.sum()
    expected = 0.0
    for token in range(6):
        here = labels[scored & (tokens == token)]
        p = here.mean()
        expected -= len(here) / scored.sum() * (p * np.log(p) + (1 - p) * np.log(1 - p))
    assert float(label_entropy(counts)) == pytest.approx(expected, rel=1e-5)


@jax.jit
def gradients(batch: dict[str, jax.Array], weight: float) -> tuple[Any, Any]:
    """Of the specimen's loss with this weight of the discriminator's, and the score."""
    specimen, loaded = zoo.ZOO["electra"], zoo.loaded("electra")
    objective = dataclasses.replace(specimen.build_objective(), detection_weight=weight)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        score = objective(loaded.model, params, batch, jax.random.key(4))
        return score.loss_sum, score

    return jax.grad(loss, has_aux=True)(loaded.params)


def test_padding_changes_no_gradient_and_the_draw_passes_none(assert_close) -> None:
    batch = zoo.training_batch("electra", seed=0)
    grads, score = gradients(batch, 50.0)
    padding = batch["segment_ids"] == 0
    filled = np.where(padding, AMINO[3], batch["input_tokens"]).astype(np.int32)
    positions = np.where(padding, 7, batch["positions"]).astype(np.int32)
    again, same = gradients({**batch, "input_tokens": filled, "positions": positions}, 50.0)
    assert float(score.loss_sum) == pytest.approx(float(same.loss_sum), rel=1e-6)
    assert_close(again, grads, 1e-5)
    # Without the discriminator's loss nothing reaches it, and the generator's part is as it was:
    # what is drawn passes no gradient back.
    alone, _ = gradients(batch, 0.0)
    assert all(np.abs(g).max() == 0 for g in jax.tree.leaves(alone["encoder"]))
    assert_close(alone["generator"], grads["generator"], 1e-5)


def test_options_are_those_of_the_dataclass() -> None:
    made = build_objective("replaced_token", PROT_BERT, rate=0.25, detection_weight=10.0)
    assert (made.rate, made.mask_fraction, made.random_fraction) == (0.25, 1.0, 0.0)
