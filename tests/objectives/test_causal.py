"""Next-token prediction over streams: what is asked, what is counted, what is carried."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest
import zoo

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.objectives import build_objective
from protlm_jax.objectives.causal import CausalObjective, reversed_proteins, with_targets
from protlm_jax.vocabularies import PROT_TXL

CONFIG = zoo.ZOO["transformer_xl"].config
AMINO_ACIDS = PROT_TXL.amino_acid_ids
Batch = dict[str, np.ndarray]


def batches(count: int, rows: int = 3, length: int = 10) -> list[Batch]:
    return list(itertools.islice(zoo.stream(PROT_TXL, rows, length), count))


@functools.cache
def network(memory: int = 12) -> tuple[Any, Any]:
    return models.build(CONFIG.replace(memory_length=memory)), zoo.loaded("transformer_xl").params


def score(batch: Batch, carry: Any, *, memory: int = 12, **options: Any) -> Any:
    model, params = network(memory)
    objective = build_objective("causal", PROT_TXL, **options)

    @jax.jit
    def run(carry: Any) -> Any:
        return objective(model, params, batch, jax.random.key(0), carry, evaluation=True)

    return run(carry)


def test_sums_are_those_of_every_protein_alone() -> None:
    """Each protein in one row by itself, its next tokens scored by NumPy, whatever its pieces."""
    model, params = network(memory=64)
    carry = model.initial_carry(3)
    totals: dict[str, float] = {"loss": 0.0, "weight": 0.0}
    shown = batches(14)
    for batch in shown:
        got = score(batch, carry, memory=64)
        carry = got.carry
        totals["loss"] += float(got.loss_sum)
        totals["weight"] += float(got.weight_sum)
        for name, value in got.metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value)

    expected = dict.fromkeys(totals, 0.0)
    whole = {name: np.concatenate([b[name] for b in shown], axis=1) for name in shown[0]}
    apply = jax.jit(functools.partial(model.apply, {"params": params}))
    for row in range(3):
        for segment in np.unique(whole["segment_ids"][row]):
            at = whole["segment_ids"][row] == segment
            tokens = np.append(whole["input_tokens"][row, at], whole["target_tokens"][row, at][-1])
            ended = tokens[-2] == PROT_TXL.suffix_ids[0]
            tokens = tokens[:-1] if ended else tokens  # the last token predicts the batch to come
            padded = np.pad(tokens[:-1], (0, 64 - len(tokens)))[None]
            logits = np.asarray(
                apply({"input_tokens": padded, "segment_ids": np.ones_like(padded)})
            )[0, : len(tokens) - 1].astype(np.float64)
            for step, target in enumerate(tokens[1:]):
                every = logits[step]
                expected["loss"] += np.log(np.exp(every).sum()) - every[target]
                expected["weight"] += 1
                expected["asked/count"] += 1
                expected["asked/accuracy_sum"] += every.argmax() == target
                if target in AMINO_ACIDS and step > 0:
                    among = every[AMINO_ACIDS]
                    expected["hidden/nll_sum"] += np.log(np.exp(among).sum()) - every[target]
                    expected["hidden/accuracy_sum"] += AMINO_ACIDS[among.argmax()] == target
                    expected["hidden/count"] += 1
    assert expected["hidden/count"] > 200
    for name, value in expected.items():
        assert totals[name] == pytest.approx(value, rel=1e-5), name


def changing() -> tuple[Batch, Batch]:
    """A batch in which most rows go on to another protein, and the one after it."""

    def rows(batch: Batch) -> int:
        return sum(len(set(row)) > 1 for row in batch["segment_ids"])

    pairs = itertools.pairwise(batches(40))
    return next((one, two) for one, two in pairs if rows(one) >= 2)


def test_residues_before_the_first_and_after_the_last_are_not_asked() -> None:
    batch, _ = changing()
    got = score(batch, {})
    first = batch["positions"] == 0
    closing = np.isin(batch["target_tokens"], PROT_TXL.suffix_ids) & (batch["target_weights"] > 0)
    assert first.any() and closing.any()
    asked = batch["target_weights"].sum()
    assert float(got.weight_sum) == asked
    assert float(got.metrics["hidden/count"]) == asked - first.sum() - closing.sum()
    blank = {**batch, "target_weights": np.zeros_like(batch["target_weights"])}
    assert float(score(blank, {}).weight_sum) == 0


def test_nothing_reaches_across_proteins_unless_asked_to() -> None:
    """The next token after a change in an earlier protein of the stream, in its row or before."""
    one, two = changing()
    changed = {**one, "input_tokens": one["input_tokens"].copy()}
    of_last = one["segment_ids"] == one["segment_ids"][:, -1:]
    changed["input_tokens"][~of_last] = 7
    assert (~of_last).any(axis=1).sum() >= 2

    def losses(first: Batch, **options: Any) -> np.ndarray:
        carry = score(first, network()[0].initial_carry(3), **options).carry
        alone = {
            k: np.where(of_last, v, 0) if k == "target_weights" else v for k, v in first.items()
        }
        return np.array(
            [score(alone, {}, **options).loss_sum, score(two, carry, **options).loss_sum]
        )

    np.testing.assert_array_equal(losses(one), losses(changed))
    reach = losses(one, across_proteins=True), losses(changed, across_proteins=True)
    assert (np.abs(reach[0] - reach[1]) > 1e-3).all()


def test_evaluation_may_show_every_token_as_much() -> None:
    """Then it does not matter where rows begin: pieces of another length give the same sums."""
    config = CONFIG.replace(memory_length=7)
    params = network()[1]
    objective = build_objective("causal", PROT_TXL, same_length=True)

    @functools.partial(jax.jit, static_argnames="training")
    def run(batch: Batch, carry: Any, training: bool = False) -> Any:
        model = models.build(config)
        key = jax.random.key(0)
        return objective(model, params, batch, key, carry, evaluation=not training)

    def total(length: int, **options: Any) -> float:
        shown = batches(6, length=12)
        whole = {name: np.concatenate([b[name] for b in shown], axis=1) for name in shown[0]}
        carry, loss = models.build(config).initial_carry(3), 0.0
        for start in range(0, 72, length):
            part = {name: x[:, start : start + length] for name, x in whole.items()}
            score = run(part, carry, **options)
            carry, loss = score.carry, loss + float(score.loss_sum)
        return loss

    assert total(6) == pytest.approx(total(12), rel=1e-6)
    assert total(12) == pytest.approx(total(24), rel=1e-6)
    assert total(6, training=True) != pytest.approx(total(24, training=True), rel=1e-6)


def test_a_carry_is_what_the_model_saw_last_and_none_stays_none() -> None:
    (batch,) = batches(1)
    model, _ = network()
    empty = model.initial_carry(3)
    carry = score(batch, empty).carry
    assert jax.tree.map(np.shape, carry) == jax.tree.map(np.shape, empty)
    np.testing.assert_array_equal(
        carry["past_segments"], np.pad(batch["segment_ids"], ((0, 0), (2, 0)))
    )
    assert not carry["past"][:, :, :2].any() and carry["past"][:, :, 2:].any(axis=-1).all()
    assert score(batch, {}).carry == {} == score(batch, None).carry
    assert float(score(batch, {}).loss_sum) == pytest.approx(float(score(batch, empty).loss_sum))


def test_tokens_without_weight_change_no_gradient() -> None:
    """Padding, and what follows a protein's last token."""
    *_, batch = batches(2)
    batch = {name: x.copy() for name, x in batch.items()}
    for name in ("segment_ids", "target_weights", "positions"):
        batch[name][0, 6:] = 0
    other = {name: x.copy() for name, x in batch.items()}
    other["input_tokens"][0, 6:] = 9
    other["target_tokens"][batch["target_weights"] == 0] = 11
    model, params = network()
    objective = build_objective("causal", PROT_TXL)

    @jax.jit
    def gradient(batch: Batch) -> Any:
        loss = lambda p: objective(model, p, batch, jax.random.key(0), {}).loss_sum  # noqa: E731
        return jax.grad(loss)(params)

    jax.tree.map(np.testing.assert_array_equal, gradient(batch), gradient(other))


def clean_rows() -> dict[str, Any]:
    """Rows of two proteins and some padding, as the task "tokens" makes them."""
    return zoo.training_batch("gpt2", seed=3)


def test_rows_of_clean_tokens_ask_for_the_next_one_of_the_same_protein() -> None:
    batch = clean_rows()
    made = {name: np.asarray(x) for name, x in with_targets(batch).items()}
    tokens, segments = batch["input_tokens"], batch["segment_ids"]
    asked = 0
    for row in range(len(tokens)):
        for at in range(tokens.shape[1]):
            last = at + 1 == tokens.shape[1]
            same = not last and 0 < segments[row, at] == segments[row, at + 1]
            assert made["target_weights"][row, at] == same
            if same:
                assert made["target_tokens"][row, at] == tokens[row, at + 1]
                asked += 1
    assert asked == (segments > 0).sum() - 2 * len(tokens)


def test_proteins_are_turned_round_whole_at_their_rate() -> None:
    batch = clean_rows()
    tokens, segments = batch["input_tokens"], batch["segment_ids"]
    whole = reversed_proteins(batch, jax.random.key(0), 1.0)
    some = np.asarray(reversed_proteins(batch, jax.random.key(0), 0.5)["input_tokens"])
    turned = 0
    for row in range(len(tokens)):
        for segment in (1, 2):
            own = segments[row] == segment
            np.testing.assert_array_equal(whole["input_tokens"][row][own], tokens[row][own][::-1])
            ways = [np.array_equal(some[row][own], tokens[row][own][::step]) for step in (1, -1)]
            assert any(ways)
            turned += ways[1]
        assert (some[row][segments[row] == 0] == PROT_TXL.pad_id).all()
    assert 2 < turned < 14
    ends = np.asarray(reversed_proteins(batch, jax.random.key(0), 1.0, (1, 2))["input_tokens"])
    for row, own in ((row, segments[row] == 2) for row in range(len(tokens))):
        first, *middle, last, eos = tokens[row][own]  # the special tokens at its ends stay
        np.testing.assert_array_equal(ends[row][own], [first, *middle[::-1], last, eos])
    stream = {**batch, "target_tokens": tokens}
    with pytest.raises(ProtlmError, match="a stream cuts them"):
        reversed_proteins(stream, jax.random.key(0), 0.5)
    with pytest.raises(ProtlmError, match=r"objective.reversed_rate is 1.5"):
        CausalObjective(PROT_TXL, reversed_rate=1.5)


def test_a_reversed_rate_changes_what_is_asked_and_nothing_else() -> None:
    """At rate one the loss is that of the reversed proteins, read forwards."""
    loaded, batch = zoo.loaded("gpt2"), clean_rows()
    turned = reversed_proteins(batch, jax.random.key(0), 1.0, PROT_TXL.fixed_ends)
    key = jax.random.key(1)

    def loss(rate: float, rows: dict[str, Any]) -> float:
        objective = CausalObjective(PROT_TXL, reversed_rate=rate)
        return float(objective(loaded.model, loaded.params, rows, key, evaluation=True).loss_sum)

    assert loss(1.0, batch) == pytest.approx(loss(0.0, turned), rel=1e-6)
    assert abs(loss(0.0, batch) - loss(0.0, turned)) > 1e-3
