"""Likelihoods agree with one forward a residue, for every family and in transformers itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scored import bare_logits
from zoo import KINDS, ZOO, loaded

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import recurrence
from protlm_jax.evaluation.scoring.score import METHODS, Likelihood, likelihoods, window_around
from protlm_jax.huggingface import export
from protlm_jax.models import LoadedModel
from protlm_jax.models.readouts import Readout
from protlm_jax.vocabularies import AMINO_ACIDS

SCORED = [name for name in ZOO if METHODS.get(loaded(name).model.readouts[0].kind)]


def proteins(lengths: list[int], seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(generator.choice(list(AMINO_ACIDS), size=n)) for n in lengths]


def one_by_one(model: LoadedModel, sequence: str, softmax: str = "residues") -> np.ndarray:
    """Log-probabilities [residues], from a forward of the bare protein for each residue."""
    readout, columns = model.model.readouts[0], model.vocabulary.amino_acid_columns
    ways = []
    for backwards in (False, True)[: 1 + readout.both_ways]:
        letters = sequence[::-1] if backwards else sequence
        scores = np.full(len(letters), np.nan)
        whole = bare_logits(model, sequence, backwards=backwards)
        for i, residue in enumerate(letters):
            if residue in AMINO_ACIDS:
                causal = readout.kind == "causal"
                logits = (whole if causal else bare_logits(model, sequence, [i]))[i]
                each = np.logaddexp.reduce(logits[columns], axis=1)  # SaProt: of 21 pairs
                among = each if softmax == "residues" else logits
                own = each[AMINO_ACIDS.index(residue)]
                scores[i] = own - np.logaddexp.reduce(among)
        ways.append(scores[::-1] if backwards else scores)
    scored = np.isfinite(ways)  # what is read first, nothing predicts without a token before it
    total = np.where(scored, ways, 0).sum(axis=0)
    return np.where(scored.any(axis=0), total / np.maximum(scored.sum(axis=0), 1), np.nan)


# Over the whole vocabulary the others are compared with transformers, below.
@pytest.mark.parametrize(
    ("family", "softmax"),
    [*((f, "residues") for f in SCORED if f in KINDS), ("transformer_xl", "vocabulary")],
)
def test_equals_one_forward_a_residue(family: str, softmax: str) -> None:
    known = "X" in loaded(family).vocabulary.tokens
    sequences = [*proteins([21, 13, 21]), "MKXLXAVAGHRTE" if known else "MKLLVAVAGHRTE"]
    scores = list(likelihoods(loaded(family), sequences, softmax=softmax, tokens_per_batch=200))
    for sequence, score in zip(sequences, scores, strict=True):
        expected = one_by_one(loaded(family), sequence, softmax)
        np.testing.assert_array_equal(np.isnan(score.log_probabilities), np.isnan(expected))
        np.testing.assert_allclose(score.log_probabilities, expected, atol=1e-4)
        assert score.window == len(sequence)
        assert score.total == pytest.approx(np.nansum(expected), abs=1e-4 * len(sequence))
        assert score.scored == np.isfinite(expected).sum()
        assert score.perplexity == pytest.approx(np.exp(-np.nanmean(expected)), rel=1e-4)


def transformers_logits(kind: str, theirs: Any, batch: Any, at: int, mask_id: int) -> Any:
    """Logits [vocab] of transformers' model for one position that it cannot see."""
    import torch

    ids = batch.input_ids
    if kind == "causal":
        return theirs(input_ids=ids[:, :at]).logits[0, -1]
    masked = ids.clone()
    if kind == "query":
        permutation = torch.zeros(1, ids.shape[1], ids.shape[1])
        permutation[0, :, at] = 1.0  # nobody sees the position
        mapping = torch.zeros(1, 1, ids.shape[1])
        mapping[0, 0, at] = 1.0
        types = batch.token_type_ids  # XLNet's closing token is of its own type
        asked = {"perm_mask": permutation, "target_mapping": mapping, "token_type_ids": types}
        return theirs(ids, **asked).logits[0, 0]
    masked[0, at] = mask_id
    options = {"labels": ids} if kind == "denoising" else {}
    return theirs(input_ids=masked, **options).logits[0, at]


IN_TORCH = [f for f in SCORED if f not in ("progen2", "rita", "saprot", "transformer_xl")]
LIKE_BERT = ("albert", "esm2", "esmc")  # asked as BERT is


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.long] * (f in LIKE_BERT)) for f in IN_TORCH],
)
def test_equals_transformers_one_position_at_a_time(family: str, tmp_path) -> None:
    """Families that transformers has not are tested with their exports, pairs in test_pairs.py."""
    import torch
    import transformers

    model, kind = loaded(family), loaded(family).model.readouts[0].kind
    folder = export(model, tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    name = {"masked": "MaskedLM", "denoising": "Seq2SeqLM"}.get(kind, "CausalLM")
    theirs = getattr(transformers, f"AutoModelFor{name}").from_pretrained(folder).eval()
    sequences = proteins([9, 16], seed=1)
    before = len(model.vocabulary.prefix_ids)
    for sequence, score in zip(
        sequences, likelihoods(model, sequences, softmax="vocabulary"), strict=True
    ):
        batch = tokenizer(sequence, return_tensors="pt")
        for i in range(len(sequence)):
            at = i + before
            with torch.no_grad():
                logits = transformers_logits(kind, theirs, batch, at, model.vocabulary.mask_id)
            expected = torch.log_softmax(logits.double(), dim=-1)[batch.input_ids[0, at]].item()
            assert score.log_probabilities[i] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", SCORED)
def test_a_single_residue_has_a_score_where_something_stands_before_it(family: str) -> None:
    model = loaded(family)
    (score,) = likelihoods(model, ["M"])
    alone = model.model.readouts[0].kind == "causal" and not model.vocabulary.prefix_ids
    assert score.scored == (0 if alone else 1)


def test_long_proteins_are_asked_in_windows() -> None:
    model, (sequence,) = loaded("bert"), proteins([100])
    (score,) = likelihoods(model, [sequence], length=32)
    assert score.window == 30 and score.scored == 100
    for i in (0, 50, 99):
        start, stop = window_around(i, i, 100, 30)
        alone = one_by_one(model, sequence[start:stop])[i - start]
        assert score.log_probabilities[i] == pytest.approx(alone, abs=1e-4)
    (table,) = likelihoods(model, [sequence])  # its position table holds 64 tokens
    assert table.window == 62


@pytest.mark.parametrize("softmax", ["residues", "vocabulary"])
def test_a_memory_carries_the_likelihood_of_long_proteins(softmax: str, monkeypatch) -> None:
    model = loaded("transformer_xl")
    sequences = proteins([45, 40, 6], seed=2)
    whole = list(likelihoods(model, sequences, softmax=softmax))
    monkeypatch.setattr(recurrence, "LONGEST_ROW", 8)
    monkeypatch.setattr(recurrence, "PIECE", 20)
    pieces = list(likelihoods(model, sequences, softmax=softmax))
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, atol=1e-4)
        assert a.window == b.window == len(a.log_probabilities)


@pytest.mark.parametrize("limit", [1, 2, 5, 8])
def test_a_window_has_its_residue_in_the_middle(limit: int) -> None:
    for i in range(20):
        start, stop = window_around(i, i, 20, limit)
        assert 0 <= start <= i < stop <= 20 and stop - start == limit
        if start and stop < 20:
            assert abs((i - start) - (stop - 1 - i)) <= 1
    assert window_around(3, 3, 20, None) == (0, 20) == window_around(3, 3, 20, 20)
    assert window_around(4, 9, 20, 6) == (4, 10)


def test_an_answer_that_is_not_finite_is_no_residue_without_score() -> None:
    assert Likelihood(np.array([-1.0, np.nan, -2.0], np.float32), 3).total == -3.0  # an X
    broken = Likelihood(np.array([-1.0, -np.inf], np.float32), 2)
    assert broken.total == -np.inf and broken.perplexity == np.inf
    assert Likelihood(np.full(3, -1e4, np.float32), 3).perplexity == np.inf


def test_what_cannot_be_scored(monkeypatch) -> None:
    model = loaded("bert")
    with pytest.raises(ProtlmError, match="record '2', position 3"):
        likelihoods(model, ["MK", "MK*"])
    (nothing,) = likelihoods(model, ["XXX"])
    assert nothing.scored == 0 and np.isnan(nothing.perplexity)
    monkeypatch.setattr(type(model.model), "readouts", (Readout("detection", "encoder"),))
    with pytest.raises(ProtlmError, match="gives no distribution over residues"):
        likelihoods(model, ["MK"])
