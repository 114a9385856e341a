"""Variant effects by hand, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from zoo import ZOO, loaded

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.score import likelihoods
from protlm_jax.evaluation.variants import (
    STRATEGIES,
    Substitution,
    Variant,
    check,
    effects,
    parse_substitutions,
)
from protlm_jax.models import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS

WILDTYPE = "MKTAYIAKQRQISFVKSHFSRQ"


def of_kind(*kinds: str) -> list[str]:
    return [name for name in ZOO if loaded(name).model.readouts[0].kind in kinds]


def variant(text: str, wildtype: str = WILDTYPE) -> Variant:
    return Variant(wildtype, parse_substitutions(text))


def residue_logits(model: LoadedModel, sequence: str, hidden: list[int]) -> np.ndarray:
    """Logits [residues, 20] of one bare protein with residues hidden."""
    vocabulary, readout = model.vocabulary, model.model.readouts[0]
    before, true = len(vocabulary.prefix_ids), vocabulary.encode(sequence)[None]
    sides = {
        "segment_ids": np.ones_like(true),
        "positions": np.arange(true.shape[1], dtype=np.int32)[None],
    }
    mask = np.isin(np.arange(true.shape[1]) - before, hidden)[None]
    batch: dict[str, Any] = {"input_tokens": true, **sides}
    if readout.kind == "denoising":
        batch = {f"{s}_{k}": v for s in ("encoder", "decoder") for k, v in sides.items()}
        batch["encoder_input_tokens"] = true
        batch["decoder_input_tokens"] = np.roll(true, 1, axis=1)
        batch["decoder_input_tokens"][0, 0] = vocabulary.pad_id
    batch = readout.hide(batch, mask, vocabulary.mask_id)
    logits = jax.jit(lambda p, b: model.model.apply({"params": p}, b))(model.params, batch)
    rows = np.asarray(logits, np.float64)[0, before : before + len(sequence)]
    return rows[:, vocabulary.amino_acid_ids]


def log_odds(logits: np.ndarray, text: str) -> float:
    total = 0.0
    for s in parse_substitutions(text):
        row = logits[s.position - 1]
        total += row[AMINO_ACIDS.index(s.mutant)] - row[AMINO_ACIDS.index(s.wildtype)]
    return total


MUTANTS = ("A4G", "A4W", "K2R", "T3S:A7L", "Q22E:M1L:F14Y", "A4A", "T3S:A7L")


@pytest.mark.parametrize("family", of_kind("masked", "denoising", "query"))
def test_masked_marginals_hide_all_mutated_positions_at_once(family: str) -> None:
    model = loaded(family)
    scores = effects(model, [variant(text) for text in MUTANTS], tokens_per_batch=100)
    for text, score in zip(MUTANTS, scores, strict=True):
        hidden = [s.position - 1 for s in parse_substitutions(text)]
        expected = log_odds(residue_logits(model, WILDTYPE, hidden), text)
        assert score == pytest.approx(expected, abs=1e-4)
    assert scores[5] == 0.0 and scores[3] == scores[6]
    apart = effects(model, [variant("T3S"), variant("A7L")]).sum()
    assert abs(scores[3] - apart) > 1e-4  # together is not one at a time


@pytest.mark.parametrize("family", of_kind("masked"))
def test_wildtype_marginals_see_the_wild_type(family: str) -> None:
    model = loaded(family)
    variants = [variant(text) for text in MUTANTS]
    scores = effects(model, variants, strategy="wildtype-marginals")
    logits = residue_logits(model, WILDTYPE, [])
    expected = [log_odds(logits, text) for text in MUTANTS]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    single = effects(model, variants, strategy="wildtype-marginals", softmax="vocabulary")
    np.testing.assert_allclose(scores, single, atol=1e-6)


@pytest.mark.parametrize("family", of_kind("causal"))
def test_causal_models_compare_whole_likelihoods(family: str) -> None:
    model = loaded(family)
    variants = [variant(text) for text in MUTANTS]
    scores = effects(model, variants)
    (base,) = likelihoods(model, [WILDTYPE])
    for v, score in zip(variants, scores, strict=True):
        (mutant,) = likelihoods(model, [v.sequence])
        assert score == pytest.approx(mutant.total - base.total, abs=1e-4)


def test_several_wild_types_and_windows() -> None:
    model = loaded("bert")
    long = WILDTYPE * 4
    variants = [variant("K2R"), variant("A48G", long), variant("A48G:Y49F", long)]
    scores = effects(model, variants, length=22)
    assert scores[0] == pytest.approx(effects(model, variants[:1], length=22)[0], abs=1e-5)
    start = 47 - 10  # 20 residues around position 48
    expected = log_odds(residue_logits(model, long[start : start + 20], [10]), "A11G")
    assert scores[1] == pytest.approx(expected, abs=1e-4)
    whole = effects(model, variants, length=22, strategy="wildtype-marginals")
    assert np.isfinite(whole).all() and len(set(whole)) == 3
    with pytest.raises(ProtlmError, match="span 87 residues and the model reads 20"):
        effects(model, [variant("K2R:Q88E", long)], length=22)


def test_no_variants_no_work() -> None:
    assert effects(loaded("bert"), []).shape == (0,)


def test_strategies_that_a_model_does_not_have() -> None:
    for family in of_kind("denoising", "query", "causal"):
        with pytest.raises(ProtlmError, match="wildtype-marginals is not defined"):
            effects(loaded(family), [variant("K2R")], strategy="wildtype-marginals")
    with pytest.raises(ProtlmError, match="likelihood-ratio is not defined"):
        effects(loaded("bert"), [variant("K2R")], strategy="likelihood-ratio")
    assert set(STRATEGIES) == {"masked", "query", "denoising", "causal"}


def test_substitutions_are_read() -> None:
    assert parse_substitutions("A42G") == (Substitution("A", 42, "G"),)
    assert [str(s) for s in parse_substitutions(" a42g : L5p ")] == ["A42G", "L5P"]
    v = variant("Q22E:M1L")
    assert v.positions == (0, 21)
    assert v.sequence == "L" + WILDTYPE[1:-1] + "E"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no mutation"),
        ("WT", "'WT' is no substitution"),
        ("A42", "insertions, deletions and stops"),
        ("A42del", "'A42del' is no substitution"),
        ("A42*", "no substitution"),
        ("A42GG", "no substitution"),
        ("A42G,L5P", "no substitution"),
        ("A42G:", "'' is no substitution"),
        ("A42X", "X is none of the 20"),
        ("U42C", "U is none of the 20"),
        ("A42G:A42L", "position 42 twice"),
        ("MKTAYIAKQRQISFVKSHFSRQMKTAYIAKQRQISFVK", "...' is no substitution"),
    ],
)
def test_what_is_no_substitution(text: str, message: str) -> None:
    with pytest.raises(ProtlmError) as error:
        parse_substitutions(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A3G", "A3G: expected A at position 3 of the wild type, found T"),
        ("M0L", "position 0 is outside"),
        ("Q23E", "position 23 is outside of the wild type, which has 22 residues"),
        ("K2R:A3G", "A3G: expected A"),
    ],
)
def test_the_wild_type_must_match(text: str, message: str) -> None:
    with pytest.raises(ProtlmError) as error:
        check(parse_substitutions(text), WILDTYPE)
    assert message in str(error.value)
    with pytest.raises(ProtlmError):
        effects(loaded("bert"), [variant(text)])
