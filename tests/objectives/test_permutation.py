"""Permutation language modelling: targets by statistics, what is seen by gradients."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_sums import assert_hidden_sums, assert_target_sums
from zoo import loaded, perturbed

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.models.families.xlnet import xlnet_config
from protlm_jax.objectives import build_objective
from protlm_jax.objectives.permutation import PermutationObjective, Targets
from protlm_jax.vocabularies import AMINO_ACIDS, PROT_XLNET

AMINO = np.asarray(PROT_XLNET.amino_acid_ids)


class Given:
    """A model whose logits are its parameters, at the positions that are asked for."""

    def apply(self, variables: Any, batch: Any, carry: Any, **rest: Any) -> tuple[jax.Array, Any]:
        places = batch["targets"][..., None]
        return jnp.take_along_axis(variables["params"], places, axis=1), carry


@functools.partial(jax.jit, static_argnames=("objective", "evaluation"))
def jitted_ask(objective: PermutationObjective, batch: Any, key: jax.Array, evaluation: bool):
    return objective.choose(batch["input_tokens"], batch["segment_ids"], key, evaluation=evaluation)


@functools.cache
def objective(every: int = 6, longest_span: int = 5) -> PermutationObjective:
    return PermutationObjective(PROT_XLNET, every, longest_span)


def ask(
    batch: dict[str, np.ndarray], seed: int = 0, evaluation: bool = False, **options
) -> Targets:
    asked = jitted_ask(objective(**options), batch, jax.random.key(seed), evaluation)
    return Targets(*map(np.asarray, asked))


def packed(rows: int, lengths: list[int], length: int) -> dict[str, np.ndarray]:
    """Rows of proteins, <sep><cls> at the end of each, then padding that holds residue ids."""
    rng = np.random.default_rng(0)
    tokens = rng.choice(AMINO, (rows, length)).astype(np.int32)
    segments = np.zeros((rows, length), np.int32)
    start = 0
    for index, size in enumerate(lengths):
        segments[:, start : start + size] = index + 1
        tokens[:, start + size - 2 : start + size] = PROT_XLNET.suffix_ids
        start += size
    return {"input_tokens": tokens, "segment_ids": segments}


def residues(batch: dict[str, np.ndarray]) -> np.ndarray:
    return (batch["segment_ids"] > 0) & np.isin(batch["input_tokens"], AMINO)


def paper_spans(rng: np.random.Generator, length: int, every: int, longest: int) -> np.ndarray:
    """Appendix A.2 for one endless row: a span somewhere in a window of K times its length."""
    target, start = np.zeros(length, bool), 0
    while start < length:
        span = rng.integers(1, longest + 1)
        begin = start + rng.integers(0, every * span - span + 1)
        target[begin : begin + span] = True
        start += every * span
    return target


def run_lengths(row: np.ndarray) -> np.ndarray:
    edges = np.flatnonzero(np.diff(np.pad(row.astype(int), 1)))
    return edges[1::2] - edges[::2]


@pytest.mark.parametrize(("every", "longest"), [(6, 5), (3, 2)])
def test_spans_are_those_of_the_paper(every: int, longest: int) -> None:
    batch = packed(300, [], 512)
    batch["segment_ids"][:] = 1
    is_target = ask(batch, every=every, longest_span=longest).order > 0
    rate = is_target.mean(axis=1)
    assert abs(rate.mean() - 1 / every) < 4 * rate.std() / len(rate) ** 0.5 + 0.002
    ours = np.bincount(np.concatenate([run_lengths(row) for row in is_target]))[1:]
    rng = np.random.default_rng(1)
    theirs = np.bincount(run_lengths(paper_spans(rng, 150_000, every, longest)))[1:]
    for a, b in zip(ours[: longest + 2], theirs[: longest + 2], strict=True):
        share, other = a / ours.sum(), b / theirs.sum()
        error = (share * (1 - share) / ours.sum() + other * (1 - other) / theirs.sum()) ** 0.5
        assert abs(share - other) < 4 * error + 0.004  # rows end, and cut a span in two


def test_every_place_of_the_row_is_asked_as_often() -> None:
    batch = packed(4000, [], 36)
    batch["segment_ids"][:] = 1
    count = (ask(batch).order > 0).sum(axis=0)
    rate = count.mean() / 4000
    assert np.abs(count - count.mean()).max() < 5 * (4000 * rate * (1 - rate)) ** 0.5


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 14), max_size=4),
    spans=st.sampled_from([(6, 5), (1, 1), (1, 6), (4, 3)]),
    seed=st.integers(0, 1000),
    evaluation=st.booleans(),
)
def test_targets_are_residues_and_all_of_them_are_asked(
    lengths: list[int], spans: tuple[int, int], seed: int, evaluation: bool
) -> None:
    (every, longest_span), batch = spans, packed(3, lengths, 60)
    order, targets, weights = ask(batch, seed, evaluation, every=every, longest_span=longest_span)
    assert not order[~residues(batch)].any()
    for row in range(3):
        wanted = np.flatnonzero(order[row])
        assert sorted(targets[row][weights[row] > 0]) == wanted.tolist()
        assert len(set(targets[row])) == len(targets[row])
        ranks = order[row][wanted]
        assert (ranks == 1).all() if evaluation else len(set(ranks)) == len(ranks)
    if every == 1:
        assert np.array_equal(order > 0, residues(batch))


def test_every_order_of_the_targets_is_as_likely() -> None:
    batch = packed(6000, [5, 6], 11)
    order = ask(batch, every=1).order[:, :3]  # the three residues of the first protein
    codes = np.argsort(order, axis=1) @ np.array([9, 3, 1])
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == 6
    assert np.abs(counts - 1000).max() < 4 * (6000 / 6 * 5 / 6) ** 0.5


def test_only_the_key_decides() -> None:
    batch = packed(4, [20, 20], 48)
    for a, b in zip(ask(batch, 3), ask(batch, 3), strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(ask(batch, 3).order, ask(batch, 4).order)


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize(("layers", "every"), [(1, 2), (3, 1)])
def test_no_target_sees_itself_or_a_later_one(evaluation: bool, layers: int, every: int) -> None:
    """Gradients of each answer with respect to the content stream before the first block.

    Through several blocks a target could be seen by way of others; it must not be.
    """
    config = xlnet_config(
        d_model=16, num_layers=layers, num_heads=2, head_dim=8, d_ff=32, initializer_range=0.4
    )
    model = models.build(config)
    params = perturbed(models.init_params(model, 0), 1)
    batch = packed(2, [14, 12, 3], 30)
    batch["input_tokens"][:, 26:29] = AMINO[:3]  # nothing but targets: not even <sep> to look at
    order, targets, weights = ask(batch, 5, evaluation, every=every)
    assert every > 1 or (order[:, 26:29] > 0).all()
    features = {**batch, "order": order, "targets": targets}
    h, context = model.apply({"params": params}, features, method="embed")
    content, query = h["encoder"]

    @jax.jit
    def answers(content: jax.Array) -> jax.Array:
        streams = {"encoder": (content, query)}
        out, _ = model.apply({"params": params}, streams, context, method="stack")
        return jnp.sum(model.apply({"params": params}, out, method="head") ** 2, axis=-1)

    reached = np.abs(jax.jacrev(answers)(content)).max(axis=-1) > 0  # [B, P, B, L]
    segments = batch["segment_ids"]
    for row, p in np.argwhere(weights > 0):
        place = targets[row, p]
        seen = (order[row] == 0) | (order[row] < order[row, place])
        seen &= segments[row] == segments[row, place]
        assert not seen[place]
        assert np.array_equal(reached[row, p, row], seen)
        assert not reached[row, p, 1 - row].any()
    # Not trivial: some targets see others in training, and none does in evaluation.
    among_targets = np.einsum("bpl,bl->", reached[np.arange(2), :, np.arange(2)], order > 0)
    assert (among_targets > 0) == (not evaluation)


def test_content_of_context_never_sees_a_target() -> None:
    specimen = loaded("xlnet")
    batch = packed(2, [14, 12], 30)
    order = ask(batch, 5, every=2).order
    h, context = specimen.model.apply(
        {"params": specimen.params}, {**batch, "order": order}, method="embed"
    )
    content, query = h["encoder"]

    @jax.jit
    def read(content: jax.Array) -> jax.Array:
        streams = {"encoder": (content, query)}
        out, _ = specimen.model.apply({"params": specimen.params}, streams, context, method="stack")
        return jnp.sum(out["encoder"][0] ** 2 * (order == 0)[..., None])

    reached = np.abs(jax.grad(read)(content)).max(axis=-1) > 0
    assert np.array_equal(reached, order == 0)


@pytest.mark.parametrize("evaluation", [False, True])
def test_scores_are_sums_over_the_targets(evaluation: bool) -> None:
    batch = packed(3, [20, 9], 32)
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(3, 32, PROT_XLNET.size)).astype(np.float32)
    key = jax.random.key(7)
    score = objective()(Given(), logits, batch, key, evaluation=evaluation)
    order = np.asarray(jitted_ask(objective(), batch, jax.random.split(key)[0], evaluation).order)
    asked = order > 0
    assert_target_sums(score, logits, batch["input_tokens"], asked)
    assert_hidden_sums(score, logits, batch["input_tokens"], asked, AMINO)
    assert asked.sum() == score.metrics["hidden/count"] > 3


def test_only_targets_have_a_gradient() -> None:
    """What fills up the queries of a row counts for nothing."""
    batch = packed(3, [20, 9], 32)
    logits = np.random.default_rng(2).normal(size=(3, 32, PROT_XLNET.size)).astype(np.float32)
    key = jax.random.key(7)

    def loss(logits: jax.Array) -> jax.Array:
        return objective()(Given(), logits, batch, key).loss_sum

    gradient = np.abs(jax.grad(loss)(jnp.asarray(logits))).max(axis=-1)
    order, _, weights = jitted_ask(objective(), batch, jax.random.split(key)[0], False)
    assert np.array_equal(gradient > 0, np.asarray(order) > 0)
    assert weights.shape[1] > weights.sum(axis=1).max()


def test_what_padding_holds_changes_no_gradient() -> None:
    specimen = loaded("xlnet")
    batch = packed(2, [14, 10], 30)
    other = np.where(batch["segment_ids"] == 0, AMINO[3], batch["input_tokens"]).astype(np.int32)

    @jax.jit
    def gradients(batch: dict[str, Any]) -> Any:
        def loss(params: Any) -> jax.Array:
            return objective()(specimen.model, params, batch, jax.random.key(0)).loss_sum

        return jax.grad(loss)(specimen.params)

    ours, theirs = gradients(batch), gradients({**batch, "input_tokens": other})
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_streams_are_remembered() -> None:
    """The carry of one batch is context of the next, for the same protein alone."""
    specimen = loaded("xlnet")
    model = models.build(specimen.config.replace(memory_length=6))
    first, second = packed(2, [16], 16), packed(2, [10, 6], 16)

    @jax.jit
    def score(batch: dict[str, Any], carry: Any) -> Any:
        return objective()(model, specimen.params, batch, jax.random.key(0), carry)

    carry = score(first, model.initial_carry(2)).carry
    assert np.array_equal(carry["past_segments"], first["segment_ids"][:, -6:])
    losses = [score(second, c).loss_sum for c in (carry, model.initial_carry(2), {})]
    assert abs(losses[0] - losses[1]) > 1e-3
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-5)


def test_options_that_make_no_sense_are_refused() -> None:
    assert len(AMINO) == len(AMINO_ACIDS)
    with pytest.raises(ProtlmError, match=r"objective\.every is 0"):
        build_objective("permutation", PROT_XLNET, every=0)
    with pytest.raises(ProtlmError, match=r"objective\.longest_span is 0"):
        build_objective("permutation", PROT_XLNET, longest_span=0)
