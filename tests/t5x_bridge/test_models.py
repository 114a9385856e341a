"""What T5X asks of our models: variables, losses, scores and predictions."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("t5x", reason="T5X is not installed: requirements/t5x.txt")

import zoo
from flax.core import unfreeze
from flax.linen.partitioning import get_axis_names
from flax.traverse_util import flatten_dict
from t5x import decoding
from t5x.utils import DatasetConfig, verify_matching_vocabs

from protlm_jax import models
from protlm_jax.data import seqio_tasks  # noqa: F401 (registers tasks)
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.scoring.score import likelihoods
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.t5x_bridge import models as bridge
from protlm_jax.vocabularies import AMINO_ACIDS

CLASSES = {
    "t5": bridge.EncoderDecoderModel,
    "bert": bridge.EncoderModel,
    "albert": bridge.EncoderModel,
    "esm2": bridge.EncoderModel,
    "electra": bridge.EncoderModel,
    "xlnet": bridge.EncoderModel,
    "gpt2": bridge.DecoderModel,
}


def bridged(family: str) -> bridge.BridgedModel:
    specimen = zoo.ZOO[family]
    return CLASSES[family](specimen.config, specimen.objective, None, specimen.options)


def batch_of(family: str, rows: int = 2) -> dict[str, jax.Array]:
    made = zoo.training_batch(family, seed=3, rows=rows)
    return {name: jnp.asarray(feature) for name, feature in made.items()}


@pytest.mark.parametrize("family", CLASSES)
def test_variables_are_our_parameters_and_their_axes(family: str) -> None:
    model = bridged(family)
    variables = jax.eval_shape(lambda: model.get_initial_variables(jax.random.PRNGKey(0), {}, {}))
    ours = models.abstract_params(model.module)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), unfreeze(variables["params"])) == (
        jax.tree.map(lambda x: (x.shape, x.dtype), ours)
    )
    names = flatten_dict(unfreeze(get_axis_names(variables["params_axes"])))
    expected = flatten_dict(models.logical_axes(model.module))
    assert {path: tuple(spec) for path, spec in names.items()} == expected


@pytest.mark.parametrize("family", ["t5", "bert", "gpt2"])
def test_the_loss_is_the_objective_s(family: str) -> None:
    model, batch = bridged(family), batch_of(family)
    params = zoo.loaded(family).params
    key = jax.random.PRNGKey(5)
    loss, metrics = jax.jit(model.loss_fn)(params, batch, key)
    objective = functools.partial(zoo.ZOO[family].build_objective(), model.module)
    score = jax.jit(objective)(params, batch, jax.random.key(5))
    np.testing.assert_allclose(loss, score.loss_sum / score.weight_sum, rtol=1e-6)
    read = model.objective.summary(score.metrics)
    for name in ("hidden/nll", "hidden/perplexity", "hidden/accuracy", "asked/accuracy"):
        np.testing.assert_allclose(metrics[name].compute(), read[name], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"].compute(), loss, rtol=1e-6)


def test_evaluation_asks_the_same_of_the_same_batch() -> None:
    model, params = bridged("bert"), zoo.loaded("bert").params
    evaluate = jax.jit(lambda batch: model.eval_fn(params, batch)[0])
    first, other = batch_of("bert", 4), zoo.training_batch("bert", seed=4, rows=4)
    assert evaluate(first) == evaluate(first)
    swapped = {name: feature[::-1] for name, feature in first.items()}
    assert len({float(evaluate(b)) for b in (first, swapped, other)}) == 3


def test_an_encoder_scores_as_protlm_score_does() -> None:
    loaded = zoo.loaded("bert")
    sequences = ["MKTAYIAKQR", "GAVLX"]
    batch = single_rows(loaded, sequences, 16)
    model = bridged("bert")
    scores = jax.jit(model.score_batch)(loaded.params, batch)
    expected = [answer.total for answer in likelihoods(loaded, sequences)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    predicted, aux = jax.jit(model.predict_batch_with_aux)(loaded.params, batch)
    np.testing.assert_allclose(aux["scores"], scores, rtol=1e-6)
    # Residues alone are predicted, and each is the most likely one where it is hidden.
    tokens, vocabulary = batch["input_tokens"], loaded.vocabulary
    fixed = ~np.isin(tokens, vocabulary.residue_ids)
    assert (np.asarray(predicted)[fixed] == np.asarray(tokens)[fixed]).all()
    masked = {**batch, "input_tokens": tokens.at[0, 3].set(vocabulary.mask_id)}
    logits = loaded.model.apply({"params": loaded.params}, masked)[0, 3]
    best = np.argmax(np.asarray(logits)[vocabulary.amino_acid_ids])
    assert predicted[0, 3] == vocabulary.amino_acid_ids[best]


def single_rows(loaded: LoadedModel, sequences: list[str], length: int) -> dict[str, jax.Array]:
    """A row for each protein."""
    ids = [loaded.vocabulary.encode(s) for s in sequences]
    shape = (len(ids), length)
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for i, row in enumerate(ids):
        tokens[i, : len(row)], segments[i, : len(row)] = row, 1
    places = np.arange(length, dtype=np.int32) * segments
    return {
        "input_tokens": jnp.asarray(tokens),
        "segment_ids": jnp.asarray(segments),
        "positions": jnp.asarray(places),
    }


def penalty(length: np.ndarray) -> np.ndarray:
    """What T5X's beam search divides by."""
    return np.asarray([decoding.brevity_penalty(0.6, n) for n in length])


def require_greedy(
    logits: np.ndarray, written: np.ndarray, first: np.ndarray, closing: int
) -> None:
    """With one beam each token is the likeliest of all but the closing one, before the end."""
    for row, start in enumerate(first):
        for place in range(start, written.shape[1]):
            token = written[row, place]
            if token in (0, closing):
                break
            allowed = logits[row, place].copy()
            allowed[closing] = -np.inf
            assert token == allowed.argmax(), (row, place)


def test_an_encoder_decoder_writes_what_it_scores_highest() -> None:
    model, loaded = bridged("t5"), zoo.loaded("t5")
    rows = [zoo.row("t5", [member], length=12) for member in (0, 1)]
    batch = {k: jnp.concatenate([jnp.asarray(row[k]) for row in rows]) for k in rows[0]}
    written, aux = jax.jit(model.predict_batch_with_aux)(loaded.params, batch)
    written = np.asarray(written)
    closing = loaded.vocabulary.suffix_ids[0]
    mask = written > 0
    shown = {
        **batch,
        "decoder_input_tokens": jnp.pad(written[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": jnp.asarray(written),
        "decoder_loss_weights": jnp.asarray(mask, jnp.int32),
        "decoder_segment_ids": jnp.ones_like(batch["decoder_segment_ids"]),
    }
    total = np.asarray(jax.jit(model.score_batch)(loaded.params, shown))
    finished = (written == closing).any(axis=1)
    expected = np.where(finished, total / penalty(mask.sum(axis=1)), total)
    np.testing.assert_allclose(aux["scores"], expected, rtol=1e-4)
    logits = np.asarray(loaded.model.apply({"params": loaded.params}, shown))
    require_greedy(logits, written, np.zeros(2, int), closing)


def test_a_decoder_goes_on_from_what_it_is_given() -> None:
    model, loaded = bridged("gpt2"), zoo.loaded("gpt2")
    batch = single_rows(loaded, ["MKTAY", "GA"], 14)
    written, _ = jax.jit(model.predict_batch_with_aux)(loaded.params, batch)
    written = np.asarray(written)
    for row, sequence in zip(written, ["MKTAY", "GA"], strict=True):
        given = loaded.vocabulary.encode(sequence)[: -len(loaded.vocabulary.suffix_ids)]
        assert (row[: len(given)] == given).all()
        assert len(row[row > 0]) > len(given), "it goes on"
    whole = {**batch, "input_tokens": jnp.asarray(written), "segment_ids": jnp.ones((2, 14), int)}
    whole["positions"] = jnp.tile(jnp.arange(14), (2, 1))
    logits = np.asarray(loaded.model.apply({"params": loaded.params}, whole))
    shifted = np.concatenate([np.zeros_like(logits[:, :1]), logits[:, :-1]], axis=1)
    lengths = np.array([len(loaded.vocabulary.encode(s)) - 1 for s in ("MKTAY", "GA")])
    require_greedy(shifted, written, lengths, loaded.vocabulary.suffix_ids[0])


def test_a_decoder_scores_all_but_the_first_token() -> None:
    model, loaded = bridged("gpt2"), zoo.loaded("gpt2")
    batch = single_rows(loaded, ["MKTAY", "".join(AMINO_ACIDS[:9])], 14)
    scores = jax.jit(model.score_batch)(loaded.params, batch)
    logits = loaded.model.apply({"params": loaded.params}, batch)
    logs = np.asarray(jax.nn.log_softmax(logits))
    tokens = np.asarray(batch["input_tokens"])
    for row, score in enumerate(scores):
        size = int(np.asarray(batch["segment_ids"])[row].sum())
        total = sum(logs[row, i - 1, tokens[row, i]] for i in range(1, size))
        np.testing.assert_allclose(score, total, rtol=1e-5)


@pytest.mark.parametrize(("family", "task"), [("t5", "bundled_prott5"), ("bert", "bundled_tokens")])
def test_the_tasks_are_in_the_models_alphabets(family: str, task: str) -> None:
    data = DatasetConfig(task, {}, "train", 8, shuffle=True, seed=0)
    verify_matching_vocabs(data, bridged(family))
    other = "bundled_tokens" if family == "t5" else "bundled_prott5"
    data = DatasetConfig(other, {}, "train", 8, shuffle=True, seed=0)
    with pytest.raises(ValueError, match="vocabularies do not match"):
        verify_matching_vocabs(data, bridged(family))


def test_what_does_not_go_together_is_refused() -> None:
    def make(kind: Any, family: str, objective: str) -> None:
        kind(zoo.ZOO[family].config, objective, None)

    with pytest.raises(ProtlmError, match="EncoderModel serves models of the kinds masked"):
        make(bridge.EncoderModel, "gpt2", "causal")
    with pytest.raises(ProtlmError, match="'causal' does not train bert"):
        make(bridge.EncoderModel, "bert", "causal")
    with pytest.raises(ProtlmError, match="carries a memory from batch to batch"):
        make(bridge.DecoderModel, "transformer_xl", "causal")
