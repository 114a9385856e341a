"""Denoising: the loss over all targets, the metrics over hidden residues, against NumPy.

What is hidden is decided by the data (tests/data/test_denoising.py).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protlm_jax.objectives import DenoisingObjective
from protlm_jax.vocabularies import PROT_T5

AMINO = np.asarray(PROT_T5.amino_acid_ids)
VOCAB = 128
LENGTHS = np.array([20, 13, 0, 16])


class Given:
    """A model whose logits are its parameters."""

    def apply(self, variables: Any, batch: Any, deterministic: bool, rngs: Any) -> jax.Array:
        return variables["params"]


def example() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rows of residues, some of them X, and </s>; a whole row is padding."""
    rng = np.random.default_rng(0)
    columns = np.arange(20)[None]
    real = columns < LENGTHS[:, None]
    targets = rng.choice(np.append(AMINO, PROT_T5.encode("X", specials=False)), real.shape)
    targets = np.where(columns == LENGTHS[:, None] - 1, PROT_T5.suffix_ids[0], targets)
    targets = np.where(real, targets, 0).astype(np.int32)
    shown = np.where((rng.random(real.shape) < 0.5), PROT_T5.mask_id, targets)
    batch = {
        "encoder_input_tokens": shown.astype(np.int32),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": real.astype(np.int32),
    }
    return batch, rng.normal(size=(4, 20, VOCAB)).astype(np.float32)


def score(batch: dict[str, np.ndarray], logits: Any):
    return DenoisingObjective(PROT_T5)(Given(), logits, batch, jax.random.key(0))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def test_scores_are_those_of_numpy() -> None:
    batch, logits = example()
    found = score(batch, logits)
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    chosen = np.take_along_axis(log_softmax(logits), targets[..., None], -1)[..., 0]
    assert float(found.loss_sum) == pytest.approx(-(chosen * weights).sum(), rel=1e-5)
    assert float(found.weight_sum) == LENGTHS.sum() == float(found.metrics["asked/count"])
    hits = (logits.argmax(-1) == targets) & (weights > 0)
    assert float(found.metrics["asked/accuracy_sum"]) == hits.sum()
    shown_as_mask = batch["encoder_input_tokens"] == PROT_T5.mask_id
    hidden = shown_as_mask & (weights > 0) & np.isin(targets, AMINO)
    assert 0 < hidden.sum() < (shown_as_mask & (weights > 0)).sum() < shown_as_mask.sum()
    order = np.sort(AMINO)
    among = log_softmax(logits[..., order])[hidden]
    columns = np.searchsorted(order, targets[hidden])
    assert float(found.metrics["hidden/count"]) == hidden.sum()
    assert float(found.metrics["hidden/nll_sum"]) == pytest.approx(
        -among[np.arange(len(columns)), columns].sum(), rel=1e-5
    )
    assert float(found.metrics["hidden/accuracy_sum"]) == (among.argmax(-1) == columns).sum()


def test_padding_has_no_gradient() -> None:
    batch, logits = example()
    gradient = np.asarray(jax.grad(lambda p: score(batch, p).loss_sum)(jnp.asarray(logits)))
    real = batch["decoder_loss_weights"] > 0
    expected = np.exp(log_softmax(logits)) - np.eye(VOCAB)[batch["decoder_target_tokens"]]
    np.testing.assert_allclose(gradient, expected * real[..., None], atol=1e-6)
    assert not gradient[~real].any()


def test_sums_of_the_parts_are_the_sums_of_the_whole() -> None:
    batch, logits = example()
    whole = score(batch, logits)
    parts = [
        score({k: v[half] for k, v in batch.items()}, logits[half])
        for half in (slice(0, 1), slice(1, 4))
    ]
    total = jax.tree.map(lambda a, b: a + b, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), total, whole)
