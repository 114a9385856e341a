"""Variant effects by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scored import WILDTYPE, bare_logits, variant
from zoo import ZOO, kinds_alone, loaded

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.scoring.mutations import Variant, parse_mutations
from protlm_jax.evaluation.scoring.score import (
    STRATEGIES,
    effects,
    groups_of,
    likelihoods,
    require_scorable,
    residue_limit,
)
from protlm_jax.models import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS


def of_kind(*kinds: str) -> list[str]:
    return [name for name in ZOO if loaded(name).model.readouts[0].kind in kinds]


def residue_logits(model: LoadedModel, sequence: str, hidden: list[int]) -> np.ndarray:
    """Logits [residues, 20] of one bare protein with residues hidden."""
    whole = bare_logits(model, sequence, hidden)
    return np.logaddexp.reduce(whole[:, model.vocabulary.amino_acid_columns], axis=-1)


def log_odds(logits: np.ndarray, text: str) -> float:
    total = 0.0
    for edit in parse_mutations(text):
        row, ((_, own),) = logits[edit.start], edit.named
        total += row[AMINO_ACIDS.index(edit.letters)] - row[AMINO_ACIDS.index(own)]
    return total


MUTANTS = ("A4G", "A4W", "K2R", "T3S:A7L", "Q22E:M1L:F14Y", "A4A", "T3S:A7L")


@pytest.mark.parametrize("family", of_kind("masked", "denoising", "query"))
def test_masked_marginals_hide_all_mutated_positions_at_once(family: str) -> None:
    model = loaded(family)
    scores = effects(model, [variant(text) for text in MUTANTS], tokens_per_batch=100)
    for text, score in zip(MUTANTS, scores, strict=True):
        hidden = [edit.start for edit in parse_mutations(text)]
        expected = log_odds(residue_logits(model, WILDTYPE, hidden), text)
        assert score == pytest.approx(expected, abs=1e-4)
    assert scores[5] == 0.0 and scores[3] == scores[6]
    apart = effects(model, [variant("T3S"), variant("A7L")]).sum()
    assert abs(scores[3] - apart) > 1e-4  # together is not one at a time


@pytest.mark.parametrize("family", kinds_alone(of_kind("masked", "denoising", "query")))
def test_the_additive_strategy_is_the_sum_of_single_mutants(family: str) -> None:
    texts = ("T3S", "A7L", "Q22E", "T3S:A7L:Q22E", "A7L:A4A")
    variants = [variant(text) for text in texts]
    scores = effects(loaded(family), variants, strategy="masked-marginals-additive")
    assert scores[3] == pytest.approx(scores[:3].sum(), abs=1e-5) and scores[4] == scores[1]
    single, together = (effects(loaded(family), v) for v in (variants[:3], variants[3:]))
    np.testing.assert_allclose(scores[:3], single, atol=1e-5)
    assert abs(scores[3] - together[0]) > 1e-4


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


INDELS = ("A4del", "Q8_R9insGP", "T3_A4delinsW", "K8R", "M1_K2dup", "A4del:F14_V15insW")


@pytest.mark.parametrize("family", kinds_alone(of_kind(*STRATEGIES)))
def test_insertions_and_deletions_compare_whole_likelihoods(family: str) -> None:
    model = loaded(family)
    variants = [variant(text) for text in (*INDELS, "A4G", "T3S:A7L", "A4A")]
    scores = effects(model, variants, strategy="likelihood-ratio", tokens_per_batch=400)
    (base,) = likelihoods(model, [WILDTYPE])
    mutants = likelihoods(model, [v.sequence for v in variants])
    for score, mutant in zip(scores, mutants, strict=True):
        assert score == pytest.approx(mutant.total - base.total, abs=1e-4)
    assert scores[-1] == 0.0
    default = effects(model, variants, tokens_per_batch=400)
    np.testing.assert_allclose(default[[0, 1, 2, 4, 5]], scores[[0, 1, 2, 4, 5]], atol=1e-4)
    alike = model.model.readouts[0].kind == "causal"
    assert (abs(default[6] - scores[6]) < 1e-4) == alike


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


def test_distant_mutations_are_summed_over_windows() -> None:
    model, long = loaded("bert"), WILDTYPE * 4
    texts = ("K2R", "Q88E", "K2R:Q88E", "T3S:A7L:Q88E", "T3S:A7L")
    scores = effects(model, [variant(text, long) for text in texts], length=22)
    assert scores[2] == pytest.approx(scores[0] + scores[1], abs=1e-5)
    assert scores[3] == pytest.approx(scores[4] + scores[1], abs=1e-5)  # near ones together
    assert groups_of((0, 19, 20, 60), 20) == [(0, 19), (20,), (60,)]
    assert groups_of((0, 60), None) == [(0, 60)]
    ratio = effects(model, [variant("Q88del", long)], length=22)
    pair = likelihoods(model, [long, long[:-1]], length=22)
    assert ratio[0] == pytest.approx(np.diff([score.total for score in pair])[0], abs=1e-4)


def test_strategies_that_a_model_does_not_have() -> None:
    assert effects(loaded("bert"), []).shape == (0,)
    assert effects(loaded("bert"), [variant("WT")]) == [0.0]
    for family in of_kind("denoising", "query", "causal"):
        with pytest.raises(ProtlmError, match="wildtype-marginals is not defined"):
            effects(loaded(family), [variant("K2R")], strategy="wildtype-marginals")
    with pytest.raises(ProtlmError, match="masked-marginals-additive is not defined"):
        effects(loaded("gpt2"), [variant("K2R")], strategy="masked-marginals-additive")
    assert set(STRATEGIES) == {"masked", "query", "denoising", "causal"}


def test_what_has_no_score_says_why() -> None:
    bert, gpt2 = loaded("bert"), loaded("gpt2")
    own = WILDTYPE[:5] + "X" + WILDTYPE[6:]
    for mutant in (WILDTYPE[:2] + "X" + WILDTYPE[3:], WILDTYPE[:2] + "X" + WILDTYPE[2:]):
        with pytest.raises(ProtlmError, match="changes X, which is none of the 20"):
            require_scorable(bert, Variant(WILDTYPE, mutant), "masked-marginals", None)
    for mutant in (own[1:], "L" + own[1:]):  # the X is context
        require_scorable(bert, Variant(own, mutant), "masked-marginals", None)
    long = Variant(WILDTYPE * 4, WILDTYPE * 4 + "A")
    require_scorable(bert, long, "masked-marginals", residue_limit(bert, None))
    with pytest.raises(ProtlmError, match="89 residues is longer than the"):
        require_scorable(gpt2, long, "likelihood-ratio", residue_limit(gpt2, None))
