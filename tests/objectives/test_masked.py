"""Masked language modelling: what is hidden by statistics, how it is scored by NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_sums import Given, assert_hidden_sums, assert_target_sums, log_softmax

from protlm_jax.errors import ProtlmError
from protlm_jax.objectives import MaskedObjective, Score, build_objective
from protlm_jax.vocabularies import AMINO_ACIDS, PROT_BERT

AMINO = np.asarray(PROT_BERT.amino_acid_ids)
X = int(PROT_BERT.encode("X", specials=False)[0])


def rows(number: int, length: int = 128) -> dict[str, np.ndarray]:
    """Rows of [CLS] residues [SEP] padding, a twentieth of the residues X.

    The padding holds residue ids: what counts as padding is said by the segments alone.
    """
    rng = np.random.default_rng(0)
    tokens = rng.choice(AMINO, (number, length))
    tokens = np.where(rng.random(tokens.shape) < 0.05, X, tokens)
    segments = np.tile(np.arange(length) < length - 16, (number, 1))
    tokens[:, 0], tokens[:, length - 17] = 2, 3
    return {"input_tokens": tokens.astype(np.int32), "segment_ids": segments.astype(np.int32)}


def corrupt(objective: MaskedObjective, batch: Any, seed: int = 0, evaluation: bool = False):
    seen = objective.corrupt(
        jnp.asarray(batch["input_tokens"]),
        jnp.asarray(batch["segment_ids"]),
        jax.random.key(seed),
        evaluation=evaluation,
    )
    return tuple(np.asarray(part) for part in seen)


def residues(batch: dict[str, np.ndarray]) -> np.ndarray:
    return (batch["segment_ids"] > 0) & (batch["input_tokens"] >= AMINO.min())


def within(count: int, total: int, rate: float) -> bool:
    """Four standard deviations of a binomial count."""
    return abs(count - total * rate) < 4 * (total * rate * (1 - rate)) ** 0.5


def test_fifteen_percent_are_asked_and_shown_eighty_ten_ten() -> None:
    batch = rows(512)
    tokens = batch["input_tokens"]
    shown, asked, masked = corrupt(MaskedObjective(PROT_BERT), batch)
    total = int(asked.sum())
    assert within(total, int(residues(batch).sum()), 0.15)
    swapped = asked & (shown != tokens) & (shown != PROT_BERT.mask_id)
    assert within(int(masked.sum()), total, 0.8)
    assert within(int(swapped.sum()), total, 0.1)
    assert within(int((asked & (shown == tokens)).sum()), total, 0.1)
    assert np.array_equal(masked, asked & (shown == PROT_BERT.mask_id))


def test_specials_and_padding_are_never_asked_or_changed() -> None:
    batch = rows(64)
    objective = MaskedObjective(PROT_BERT, rate=1.0)
    for evaluation in (False, True):
        shown, asked, _ = corrupt(objective, batch, evaluation=evaluation)
        assert np.array_equal(asked, residues(batch))
        assert np.array_equal(shown[~residues(batch)], batch["input_tokens"][~residues(batch)])
    shown, asked, _ = corrupt(MaskedObjective(PROT_BERT), batch)
    assert np.array_equal(shown[~asked], batch["input_tokens"][~asked])


def test_a_random_residue_is_uniform_over_the_nineteen_others() -> None:
    batch = rows(512)
    objective = MaskedObjective(PROT_BERT, rate=1.0, mask_fraction=0.0, random_fraction=1.0)
    shown, asked, _ = corrupt(objective, batch)
    tokens = batch["input_tokens"]
    for original in AMINO:
        drawn = shown[asked & (tokens == original)]
        others = np.setdiff1d(AMINO, original)
        counts = np.array([(drawn == other).sum() for other in others])
        assert counts.sum() == len(drawn), "the residue itself, or something else, was drawn"
        # Chi-square with 18 degrees of freedom: 60 is beyond one in a million.
        expected = len(drawn) / 19
        assert ((counts - expected) ** 2 / expected).sum() < 60
    drawn = shown[asked & (tokens == X)]
    assert set(drawn) == set(AMINO) and len(AMINO) == len(AMINO_ACIDS)


def test_evaluation_shows_every_asked_residue_as_mask() -> None:
    shown, asked, masked = corrupt(MaskedObjective(PROT_BERT), rows(64), evaluation=True)
    assert np.array_equal(asked, masked) and asked.any()
    assert (shown[asked] == PROT_BERT.mask_id).all()


def test_the_key_alone_decides_what_is_hidden() -> None:
    objective, batch = MaskedObjective(PROT_BERT), rows(16)
    first, again, other = (corrupt(objective, batch, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first[1] != other[1]).mean() > 0.1
    assert not np.array_equal(first[1][0], first[1][1]), "rows must not share their masks"


def score(batch: Any, logits: np.ndarray, evaluation: bool, rate: float = 0.15) -> Score:
    objective = MaskedObjective(PROT_BERT, rate=rate)
    return objective(Given(), logits, batch, jax.random.key(3), evaluation=evaluation)


@pytest.mark.parametrize("evaluation", [False, True])
def test_scores_are_those_of_numpy(evaluation: bool) -> None:
    batch = rows(8)
    logits = np.random.default_rng(1).normal(size=(8, 128, 30)).astype(np.float32)
    found = score(batch, logits, evaluation)
    tokens = jnp.asarray(batch["input_tokens"])
    key = jax.random.split(jax.random.key(3))[0]
    seen = MaskedObjective(PROT_BERT).corrupt(
        tokens, jnp.asarray(batch["segment_ids"]), key, evaluation=evaluation
    )
    asked, masked = np.asarray(seen.asked), np.asarray(seen.shown_as_mask)
    targets = batch["input_tokens"]
    assert_target_sums(found, logits, targets, asked)
    assert_hidden_sums(found, logits, targets, masked, AMINO)
    assert not np.isin(targets[masked], AMINO).all(), "X is none of the 20"


def test_only_asked_positions_have_a_gradient() -> None:
    batch = rows(4)
    logits = np.random.default_rng(1).normal(size=(4, 128, 30)).astype(np.float32)
    gradient = jax.grad(lambda p: score(batch, p, evaluation=True).loss_sum)(jnp.asarray(logits))
    key = jax.random.split(jax.random.key(3))[0]
    _, asked, _ = MaskedObjective(PROT_BERT).corrupt(
        *map(jnp.asarray, batch.values()), key, evaluation=True
    )
    asked = np.asarray(asked)
    expected = np.exp(log_softmax(logits)) - np.eye(30)[batch["input_tokens"]]
    np.testing.assert_allclose(gradient, expected * asked[..., None], atol=1e-6)
    assert not np.asarray(gradient)[~asked].any() and asked.any()


def test_sums_of_the_parts_are_the_sums_of_the_whole() -> None:
    """With every residue asked, so that the draw does not depend on the batch's shape."""
    batch = rows(8)
    logits = np.random.default_rng(1).normal(size=(8, 128, 30)).astype(np.float32)
    whole = score(batch, logits, evaluation=True, rate=1.0)
    parts = [
        score({k: v[half] for k, v in batch.items()}, logits[half], evaluation=True, rate=1.0)
        for half in (slice(0, 3), slice(3, 8))
    ]
    total = jax.tree.map(lambda a, b: a + b, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), total, whole)


def test_nothing_asked_is_nothing_lost() -> None:
    padding = {**rows(2), "segment_ids": np.zeros((2, 128), np.int32)}
    found = score(padding, np.zeros((2, 128, 30), np.float32), evaluation=False)
    assert float(found.loss_sum) == float(found.weight_sum) == 0


def test_unknown_objectives_and_options_are_refused() -> None:
    with pytest.raises(ProtlmError, match=r"unknown objective 'span'; .*diffusion, labels, masked"):
        build_objective("span", PROT_BERT)
    with pytest.raises(ProtlmError, match=r"'masked' does not take these options: .*speed"):
        build_objective("masked", PROT_BERT, speed=1.0)
