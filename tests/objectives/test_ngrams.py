"""Asking for runs of residues: rates and lengths by statistics, the tiling by a loop."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.objectives import MaskedObjective
from protlm_jax.objectives.masked import ngram_starts
from protlm_jax.vocabularies import PROT_ALBERT

LONGEST = 3
ROWS, LENGTH = 1024, 96


def packed() -> tuple[np.ndarray, np.ndarray]:
    """Rows of [CLS] residues [SEP] twice, then padding; the proteins' lengths differ by row."""
    rng = np.random.default_rng(0)
    tokens = rng.choice(PROT_ALBERT.residue_ids, (ROWS, LENGTH))
    segments = np.zeros((ROWS, LENGTH), np.int32)
    for row in range(ROWS):
        middle, end = int(rng.integers(10, 50)), int(rng.integers(60, LENGTH + 1))
        for number, (a, b) in enumerate([(0, middle), (middle, end)]):
            segments[row, a:b] = number + 1
            tokens[row, a], tokens[row, b - 1] = 2, 3
    return tokens.astype(np.int32), segments


TOKENS, SEGMENTS = packed()
RESIDUE = (SEGMENTS > 0) & np.isin(TOKENS, PROT_ALBERT.residue_ids)


def starts() -> np.ndarray:
    found = ngram_starts(jnp.asarray(RESIDUE), jnp.asarray(SEGMENTS), LONGEST, jax.random.key(5))
    return np.asarray(found)


def test_the_tiling_is_that_of_a_loop() -> None:
    logits = -jnp.log(jnp.arange(1, LONGEST + 1))
    drawn = 1 + np.asarray(jax.random.categorical(jax.random.key(5), logits, shape=RESIDUE.shape))
    found = starts()
    for row in range(64):
        start, left = 0, 0
        for at in range(LENGTH):
            run_goes_on = (
                at > 0
                and RESIDUE[row, at]
                and RESIDUE[row, at - 1]
                and SEGMENTS[row, at] == SEGMENTS[row, at - 1]
            )
            if left == 0 or not run_goes_on:
                start, left = at, drawn[row, at]
            left -= 1
            assert found[row, at] == start, (row, at)


def test_lengths_are_drawn_in_proportion_to_one_over_n() -> None:
    """Of those that begin where there is room for any: the last one of a run may be cut off."""
    found, counts = starts(), np.zeros(LONGEST + 1, int)
    for row in range(ROWS):
        begins = np.flatnonzero(found[row] == np.arange(LENGTH))
        for a, b in itertools.pairwise(begins):
            if a + LONGEST <= LENGTH and RESIDUE[row, a : a + LONGEST].all():
                counts[b - a] += 1
    total, expected = counts.sum(), np.array([0, 6, 3, 2]) / 11
    assert total > 20_000 and counts[0] == 0
    error = np.sqrt(total * expected * (1 - expected))
    assert (np.abs(counts - total * expected) <= 4 * error).all(), counts / total


def asked(ngram: int, seeds: int = 8) -> np.ndarray:
    """[seeds, rows, length] bool."""
    objective = MaskedObjective(PROT_ALBERT, ngram=ngram)
    corrupt = jax.jit(
        lambda key: (
            objective.corrupt(
                jnp.asarray(TOKENS), jnp.asarray(SEGMENTS), key, evaluation=False
            ).asked
        )
    )
    return np.stack([np.asarray(corrupt(jax.random.key(seed))) for seed in range(seeds)])


def test_the_rate_stays_the_rate_also_at_the_ends_of_a_protein() -> None:
    chosen = asked(LONGEST)
    assert not chosen[:, ~RESIDUE].any(), "specials and padding are never asked"
    ends = RESIDUE & np.roll(~RESIDUE, -1, axis=1)
    for name, where in {"all": RESIDUE, "first": begins_run(), "last": ends}.items():
        here = chosen[:, where]
        # Members of an n-gram go together: the variance is up to n times that of a coin.
        error = np.sqrt(LONGEST * 0.15 * 0.85 / here.size)
        assert abs(here.mean() - 0.15) < 4 * error, name


def begins_run() -> np.ndarray:
    return RESIDUE & np.roll(~RESIDUE, 1, axis=1)


def test_neighbours_are_asked_together_only_within_a_run() -> None:
    """The next residue is often of the same n-gram; the next protein's never is.

    An asked residue lies in a one-gram, a two-gram or a three-gram alike often (p(n) times n is
    constant), and the next one in the same with probability 0, 1/2, 2/3.
    """
    together = 0.15 + 0.85 * (0 + 1 / 2 + 2 / 3) / 3
    alone, runs = asked(1), asked(LONGEST)
    inside = RESIDUE[:, :-3] & RESIDUE[:, 1:-2] & RESIDUE[:, 2:-1] & RESIDUE[:, 3:]

    def next_given_asked(chosen: np.ndarray) -> float:
        first, second = chosen[:, :, :-3][:, inside], chosen[:, :, 1:-2][:, inside]
        return float(second[first].mean())

    assert abs(next_given_asked(alone) - 0.15) < 0.01
    assert abs(next_given_asked(runs) - together) < 0.01
    # Without special tokens between them, two proteins that touch are still asked apart.
    segments = np.repeat(np.arange(1, 25, dtype=np.int32), 2)[None].repeat(2048, axis=0)
    tokens = np.full(segments.shape, PROT_ALBERT.amino_acid_ids[0], np.int32)
    chosen = MaskedObjective(PROT_ALBERT, ngram=LONGEST).corrupt(
        jnp.asarray(tokens), jnp.asarray(segments), jax.random.key(1), evaluation=False
    )
    chosen = np.asarray(chosen.asked)
    across = chosen[:, 2::2][chosen[:, 1:-1:2]]
    assert abs(across.mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / across.size)


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(ProtlmError, match=r"objective\.ngram is 0; it must be at least 1"):
        MaskedObjective(PROT_ALBERT, ngram=0)
