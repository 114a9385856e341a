"""Denoising: the loss over all targets, the metrics over hidden residues, against NumPy.

What is hidden is decided by the data (tests/data/test_denoising.py, test_spans.py).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from objective_sums import Given, assert_hidden_sums, assert_target_sums

from protlm_jax import models
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.objectives import DenoisingObjective
from protlm_jax.vocabularies import PROT_T5

AMINO = np.asarray(PROT_T5.amino_acid_ids)
VOCAB = 128
LENGTHS = np.array([20, 13, 0, 16])


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


def test_scores_are_those_of_numpy() -> None:
    batch, logits = example()
    found = score(batch, logits)
    targets, asked = batch["decoder_target_tokens"], batch["decoder_loss_weights"] > 0
    assert_target_sums(found, logits, targets, asked)
    shown_as_mask = batch["encoder_input_tokens"] == PROT_T5.mask_id
    hidden = shown_as_mask & asked
    assert_hidden_sums(found, logits, targets, hidden, AMINO)
    assert 0 < np.isin(targets[hidden], AMINO).sum() < hidden.sum() < shown_as_mask.sum()


def joined(parts: list[str], length: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and segment ids [1, length] of some examples; digits stand for sentinels."""
    sentinels = {str(i): PROT_T5.sentinel_ids[i] for i in range(10)}
    made = [
        [sentinels.get(c) or PROT_T5.letter_table[ord(c)] for c in p] + [*PROT_T5.suffix_ids]
        for p in parts
    ]
    row = np.zeros((2, 1, length), np.int32)
    row[0, 0, : sum(map(len, made))] = np.concatenate(made)
    row[1, 0, : sum(map(len, made))] = np.repeat(range(1, len(made) + 1), [len(m) for m in made])
    return row[0], row[1]


def packed(inputs: list[str], targets: list[str]) -> dict[str, np.ndarray]:
    """A row of encoder-decoder features, written out by hand."""
    encoder, encoder_segments = joined(inputs)
    decoder, decoder_segments = joined(targets)
    starts = np.diff(decoder_segments, prepend=0) != 0
    return {
        "encoder_input_tokens": encoder,
        "encoder_segment_ids": encoder_segments,
        "decoder_target_tokens": decoder,
        "decoder_input_tokens": np.where(starts, 0, np.roll(decoder, 1, axis=1)),
        "decoder_segment_ids": decoder_segments,
        "decoder_loss_weights": (decoder_segments > 0).astype(np.int32),
    }


SPANS = packed(["MK0IAK1", "WQ0"], ["0TAY1QX", "0SS"])  # MKTAYIAKQX and WQSS


def test_all_residues_between_sentinels_are_hidden() -> None:
    whole = packed(["MK0A", "A0"], ["MKTA", "AX"])
    batch = {name: np.concatenate([SPANS[name], whole[name]]) for name in SPANS}
    found = np.asarray(DenoisingObjective(PROT_T5).hidden(batch))
    expected = np.zeros((2, 24), bool)
    expected[0, : len("0TAY1QX.0SS.")] = True
    expected[1, [2, 6]] = True
    assert np.array_equal(found, expected)
    logits = np.random.default_rng(1).normal(size=(2, 24, VOCAB)).astype(np.float32)
    found, targets = score(batch, logits), batch["decoder_target_tokens"]
    assert_hidden_sums(found, logits, targets, expected, AMINO)
    # T, A, Y, Q, S, S and the T of the whole sequence: X is none of the 20.
    assert float(found.metrics["hidden/count"]) == 7
    assert float(found.metrics["asked/count"]) == 12 + 8


def test_weightless_positions_change_no_gradient() -> None:
    sizes = {"d_model": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    model = models.build(t5_config(**sizes, head_dim=8, d_ff=32))
    params = models.init_params(model, seed=0)
    objective = DenoisingObjective(PROT_T5)

    @jax.jit
    def gradient(batch: dict[str, Any]) -> Any:
        return jax.grad(lambda p: objective(model, p, batch, jax.random.key(1)).loss_sum)(params)

    def difference(a: Any, b: Any) -> float:
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return max(float(jnp.abs(x - y).max()) for x, y in pairs)

    def changed(batch: dict[str, Any], segment: int) -> dict[str, Any]:
        """Other residues and sentinels wherever the segment is: encoder and decoder, both."""
        rng = np.random.default_rng(segment)
        other = dict(batch)
        for name in ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens"):
            here = batch[f"{name[:7]}_segment_ids"] == segment
            other[name] = np.where(here, rng.integers(3, 128, here.shape), batch[name])
        return other

    full = gradient(SPANS)
    assert difference(gradient(changed(SPANS, 0)), full) == 0, "padding"
    assert difference(gradient(changed(SPANS, 2)), full) > 0.1
    # The first protein alone: whatever stands in the second, on either side, is out of reach.
    first = {**SPANS, "decoder_loss_weights": (SPANS["decoder_segment_ids"] == 1).astype(int)}
    assert difference(gradient(changed(first, 2)), gradient(first)) == 0
    assert difference(gradient(changed(first, 1)), gradient(first)) > 0.1
