"""What a discriminator finds of what its generator replaced, and what it is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zoo

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import detection, heldout, verbs
from protlm_jax.models.loaded import parts_of
from protlm_jax.vocabularies import AMINO_ACIDS

RNG = np.random.default_rng(0)
LENGTHS = (2, 30, 41, 57, 75, 90)  # tokens of the longest go beyond the specimen's 64 positions
PROTEINS = {
    f"protein{i}": "".join(RNG.choice(list(AMINO_ACIDS), n)) for i, n in enumerate(LENGTHS)
} | {"rare": "MXXKAV"}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return detection.evaluate(zoo.loaded("electra"), PROTEINS, seed=3, rate=0.3)


def test_a_draw_is_the_inverse_of_the_distribution_function() -> None:
    logits = np.log(np.array([[0.5, 1e-12, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]], np.float32))
    assert detection.draw(
        np.repeat(logits[:1], 4, 0), np.array([0.0, 0.49, 0.51, 0.99])
    ).tolist() == [0, 0, 2, 3]
    uniform = np.random.default_rng(1).random(40_000)
    drawn = detection.draw(np.repeat(logits[1:], 40_000, 0), uniform)
    share = np.bincount(drawn, minlength=4) / 40_000
    assert np.abs(share - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 40_000)


def test_all_standard_residues_but_the_first_are_asked_about(result: dict[str, Any]) -> None:
    assert result["proteins"] == len(PROTEINS)
    assert result["residues"] == sum(LENGTHS) - len(LENGTHS) + 3
    assert 0.15 < result["replaced"] <= 0.31


def test_losses_are_those_of_the_definition(result: dict[str, Any]) -> None:
    """One protein at a time, from the residues that are shown."""
    loaded = zoo.loaded("electra")
    generator = parts_of(loaded)["generator"]
    shown, labels, losses = [], [], []
    for name in ("protein1", "protein2"):
        hidden = heldout.hide(PROTEINS[name], 3, 0.3)
        found = detection._detect(loaded, generator, [hidden], 3, None, 256, False)[0]
        row = loaded.vocabulary.encode(PROTEINS[name])
        row[2:-1] = found.tokens
        batch = {
            "input_tokens": row[None],
            "segment_ids": np.ones_like(row)[None],
            "positions": np.arange(len(row), dtype=np.int32)[None],
        }
        logits = loaded.model.apply({"params": loaded.params}, batch)[0, 2:-1, 0]
        np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
        true = loaded.vocabulary.encode(PROTEINS[name])[2:-1]
        assert np.array_equal(found.replaced, row[2:-1] != true)
        targets = np.isin(np.arange(1, len(true) + 1), hidden.targets)
        assert not found.replaced[~targets].any(), "what was not asked stays as it is"
        probability = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
        losses.append(-np.log(np.where(found.replaced, probability, 1 - probability)))
        shown.append(found.tokens)
        labels.append(found.replaced)
    two = {name: PROTEINS[name] for name in ("protein1", "protein2")}
    scored = detection.evaluate(loaded, two, seed=3, rate=0.3)
    pooled = np.concatenate(losses).mean()
    assert scored["model"]["nll"]["value"] == pytest.approx(pooled, rel=1e-4)
    tokens, replaced = np.concatenate(shown), np.concatenate(labels)
    entropy = 0.0
    for token in np.unique(tokens):
        for label in (False, True):
            count = np.sum((tokens == token) & (replaced == label))
            if count:
                entropy -= count / len(tokens) * np.log(count / np.sum(tokens == token))
    given = scored["baselines"]["label_entropy_given_residue"]["nll"]["value"]
    assert given == pytest.approx(entropy, rel=1e-6)
    assert given <= scored["baselines"]["label_entropy"]["nll"]["value"]


def test_batches_and_order_change_nothing(result: dict[str, Any]) -> None:
    backwards = dict(reversed(PROTEINS.items()))
    again = detection.evaluate(
        zoo.loaded("electra"), backwards, seed=3, rate=0.3, tokens_per_batch=80
    )
    assert again["replaced"] == result["replaced"]
    for measure in ("nll", "auroc"):
        there, here = (r["model"][measure]["value"] for r in (again, result))
        assert there == pytest.approx(here, rel=1e-5)
    other = detection.evaluate(zoo.loaded("electra"), PROTEINS, seed=4, rate=0.3)
    assert other["model"]["nll"]["value"] != result["model"]["nll"]["value"]


def test_the_summary_names_model_baselines_and_rates(result: dict[str, Any]) -> None:
    text = detection.summary(result)
    for words in ("discriminator", "label entropy given residue", "AUROC", "recall"):
        assert words in text


def test_a_discriminator_alone_has_nothing_to_detect() -> None:
    alone = parts_of(zoo.loaded("electra"))["discriminator"]
    with pytest.raises(ProtlmError, match="is a discriminator alone"):
        detection.evaluate(alone, PROTEINS, seed=0)
    with pytest.raises(ProtlmError, match="no protein has a standard residue"):
        detection.evaluate(zoo.loaded("electra"), {"short": "M"}, seed=0)


def test_the_rate_is_the_runs(tmp_path: Any) -> None:
    assert verbs.rate_of(tmp_path) == heldout.RATE
    (tmp_path / "config.json").write_text('{"objective": {"name": "replaced_token", "rate": 0.25}}')
    assert verbs.rate_of(tmp_path) == 0.25
