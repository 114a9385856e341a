"""Absorbing diffusion: what is hidden, how it is weighted, and drawing it back."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from protlm_jax.errors import ProtlmError
from protlm_jax.objectives.diffusion import LEVELS, DiffusionObjective, denoise
from protlm_jax.vocabularies import ESM2

MASK = ESM2.hiding_id


def batch(rows: int = 4, length: int = 40, seed: int = 0) -> dict[str, Any]:
    """Two proteins with their specials and some padding in each row."""
    rng = np.random.default_rng(seed)
    made = {k: np.zeros((rows, length), np.int32) for k in ("segment_ids", "positions")}
    made["input_tokens"] = np.full((rows, length), ESM2.pad_id, np.int32)
    for row in range(rows):
        at = 0
        for segment, size in ((1, length // 2), (2, length // 3)):
            letters = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWYX"), size - 2))
            made["input_tokens"][row, at : at + size] = ESM2.encode(letters)
            made["segment_ids"][row, at : at + size] = segment
            made["positions"][row, at : at + size] = np.arange(size)
            at += size
    return {name: jnp.asarray(x) for name, x in made.items()}


def test_each_protein_has_one_time_and_hides_at_its_rate() -> None:
    objective = DiffusionObjective(ESM2, steps=10)
    given = batch(rows=300)
    tokens, segments = given["input_tokens"], given["segment_ids"]
    noised = objective.corrupt(tokens, segments, jax.random.key(0))
    time, hidden = np.asarray(noised.time), np.asarray(noised.hidden)
    tokens, segments = np.asarray(tokens), np.asarray(segments)
    residue = np.isin(tokens, ESM2.residue_ids) & (segments > 0)
    assert not hidden[~residue].any()
    np.testing.assert_array_equal(noised.tokens, np.where(hidden, MASK, tokens))
    seen, shares = [], {t: [] for t in range(1, 11)}
    for row in range(len(tokens)):
        for segment in (1, 2):
            own = segments[row] == segment
            (t,) = set(time[row][own].tolist())
            seen.append(t)
            shares[t] += hidden[row][own & residue[row]].tolist()
    counts = np.bincount(seen, minlength=11)[1:]
    assert (np.abs(counts - 60) < 4 * 60**0.5).all()  # uniform over 1 to 10
    for t, found in shares.items():
        error = (t / 10 * (1 - t / 10) / len(found)) ** 0.5
        assert abs(np.mean(found) - t / 10) <= 4 * error
    assert np.mean(shares[10]) == 1.0
    rows = [a == b for a, b in zip(seen[::2], seen[1::2], strict=True)]
    assert np.mean(rows) < 0.2, "proteins of one row have times of their own"


@pytest.mark.parametrize("weighting", ["linear", "constant"])
def test_the_loss_is_that_of_the_paper(weighting: Any) -> None:
    """Summed by hand over the hidden residues, from the logits of what was shown."""
    loaded, given = zoo.loaded("dplm"), batch()
    objective = DiffusionObjective(ESM2, steps=20, weighting=weighting)
    key = jax.random.key(5)
    score = objective(loaded.model, loaded.params, given, key, evaluation=True)
    shown = objective.corrupt(given["input_tokens"], given["segment_ids"], jax.random.split(key)[0])
    logits = loaded.model.apply({"params": loaded.params}, {**given, "input_tokens": shown.tokens})
    chances = np.asarray(jax.nn.log_softmax(logits), np.float64)
    lost, bands = 0.0, {level: [] for level in LEVELS}
    for row, at in np.argwhere(np.asarray(shown.hidden)):
        true, t = int(given["input_tokens"][row, at]), int(shown.time[row, at])
        lost -= chances[row, at, true] * ((20 - t + 1) / 20 if weighting == "linear" else 1.0)
        if true in ESM2.amino_acid_ids:
            among = np.logaddexp.reduce(chances[row, at, ESM2.amino_acid_ids])
            level = next(level for level in LEVELS if level[0] < 5 * t <= level[1])
            bands[level].append(among - chances[row, at, true])
    assert float(score.weight_sum) == np.asarray(shown.hidden).sum()
    assert float(score.loss_sum) == pytest.approx(lost, rel=1e-4)
    for (low, high), expected in bands.items():
        group = f"noise_{low}_{high}"
        assert float(score.metrics[f"{group}/count"]) == len(expected)
        assert float(score.metrics[f"{group}/nll_sum"]) == pytest.approx(sum(expected), rel=1e-4)
    counts = [float(score.metrics[f"noise_{low}_{high}/count"]) for low, high in LEVELS]
    assert sum(counts) == float(score.metrics["hidden/count"]) and sum(c > 0 for c in counts) > 2


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ProtlmError, match=r"objective.steps is 0"):
        DiffusionObjective(ESM2, steps=0)
    with pytest.raises(ProtlmError, match=r"objective.weighting is 'cosine'; choose 'linear' or"):
        DiffusionObjective(ESM2, weighting="cosine")  # type: ignore[arg-type]


class Sure(nn.Module):
    """Wants residue `position % 20` at each position, the surer the later; notes what it saw."""

    seen: Any = None

    def __call__(self, batch: dict[str, Any]) -> jax.Array:
        if self.seen is not None:
            jax.debug.callback(self.seen, batch["input_tokens"], ordered=True)
        wanted = jnp.asarray(ESM2.amino_acid_ids)[batch["positions"] % 20]
        sure = 0.1 + batch["positions"][..., None] / 10
        return jax.nn.one_hot(wanted, ESM2.size) * sure


def drawn(model: nn.Module, given: Any, places: Any, steps: int, heat: float = 0.0) -> np.ndarray:
    run = functools.partial(denoise, model, {}, given, jnp.asarray(places), jax.random.key(0))
    columns = jnp.asarray(ESM2.amino_acid_columns)
    tokens, finite = run(jnp.float32(heat), hides=MASK, columns=columns, steps=steps)
    assert finite.all()
    return np.asarray(jax.block_until_ready(tokens))


def test_the_surest_places_are_filled_first_and_stay() -> None:
    """Without noise the order is that of the model's certainty, a fifth of the places a step."""
    length = 12
    tokens = np.full((1, length), ESM2.pad_id, np.int32)
    tokens[0] = ESM2.encode("MKXXXXXXXX")
    given = {
        "input_tokens": jnp.asarray(tokens),
        "segment_ids": jnp.ones((1, length), jnp.int32),
        "positions": jnp.arange(length, dtype=jnp.int32)[None],
    }
    places = np.zeros((1, length), bool)
    places[0, 1:11] = True
    seen: list[np.ndarray] = []
    model = Sure(seen=lambda shown: seen.append(np.asarray(shown)[0]))
    made = drawn(model, given, places, steps=5)[0]
    jax.effects_barrier()
    wanted = ESM2.amino_acid_ids[np.arange(length) % 20]
    np.testing.assert_array_equal(made[1:11], wanted[1:11])
    assert (made[0], made[11]) == (tokens[0, 0], tokens[0, 11])
    for step, shown in enumerate(seen):
        masked = np.flatnonzero(shown == MASK)
        np.testing.assert_array_equal(masked, np.arange(1, 11 - 2 * step))
    assert len(seen) == 5


def test_draws_follow_the_temperature() -> None:
    """One step from independent places: the frequencies are those of the softmax."""
    rows, length = 1500, 4
    given = {
        "input_tokens": jnp.full((rows, length), ESM2.pad_id, jnp.int32),
        "segment_ids": jnp.ones((rows, length), jnp.int32),
        "positions": jnp.full((rows, length), 20, jnp.int32),  # residue A, at 2.1 nats above others
    }
    made = drawn(Sure(), given, np.ones((rows, length), bool), steps=1, heat=1.0)
    assert np.isin(made, ESM2.amino_acid_ids).all()
    expected = np.exp(2.1) / (np.exp(2.1) + 19)
    share = (made == ESM2.amino_acid_ids[0]).mean()
    assert abs(share - expected) < 4 * (expected * (1 - expected) / made.size) ** 0.5
