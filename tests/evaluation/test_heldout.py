"""The held-out score: what is hidden, what is scored, and the baselines in closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from scored import bare_logits, forward
from zoo import ZOO, kinds_alone

from protlm_jax import models
from protlm_jax.data.rows import RowBatch, Shape, even_pieces
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import heldout
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS

SmallModel = Callable[..., LoadedModel]
UNIFORM = np.full(20, 0.05)


def proteins(count: int, low: int = 30, high: int = 60, seed: int = 0) -> dict[str, str]:
    generator = np.random.default_rng(seed)
    lengths = generator.choice([low, high], size=count)
    return {
        f"p{i}": "M" + "".join(generator.choice(list(AMINO_ACIDS), size=n))
        for i, n in enumerate(lengths)
    }


def test_hidden_residues_are_standard_and_never_the_first() -> None:
    protein = heldout.hide("MKXLXA" * 20, seed=0)
    assert 0 not in protein.targets
    assert not {"X"} & {protein.sequence[i] for i in protein.targets}
    assert len(protein.targets) == round(0.15 * (4 * 20 - 1))
    np.testing.assert_array_equal(protein.targets, heldout.hide("MKXLXA" * 20, 0).targets)
    assert list(protein.targets) != list(heldout.hide("MKXLXA" * 20, 1).targets)
    assert len(heldout.hide("MXX", 0).targets) == 0 and len(heldout.hide("MA", 0).targets) == 1


def test_every_residue_is_chosen_equally_often() -> None:
    drawn = np.concatenate([heldout.hide("MKLVAGHRTE", seed).targets for seed in range(3000)])
    counts = np.bincount(drawn, minlength=10)
    assert counts[0] == 0
    assert counts[1:].min() > 0.8 * counts[1:].mean()


def test_composition_is_leave_one_out() -> None:
    protein = heldout.HiddenProtein(
        "MAAC", np.array([AMINO_ACIDS.index(a) for a in "MAAC"], np.int8), np.array([1, 3])
    )
    smooth, total = 10 * 0.05, 3 + 10
    expected = -np.log(np.array([1 + smooth, 0 + smooth]) / total)
    np.testing.assert_allclose(heldout.composition_loss(protein, UNIFORM, 10.0), expected)


FAMILIES = [f for f in ZOO if models.build(ZOO[f].config).readouts[0].predicts_residues]


@pytest.mark.parametrize("family", kinds_alone(FAMILIES))
def test_equals_one_protein_at_a_time(small_model: SmallModel, family: str) -> None:
    loaded = small_model(family)
    sequences = proteins(5)
    result = heldout.evaluate(loaded, sequences, UNIFORM, seed=3, tokens_per_batch=256)
    total, asked = 0.0, 0
    for sequence in sequences.values():
        hidden = heldout.hide(sequence, 3)
        total += reference_loss(loaded, hidden)
        asked += len(hidden.targets)
    assert result["targets"] == asked
    assert result["model"]["nll"]["value"] == pytest.approx(total / asked, rel=1e-5)
    assert result["model"]["perplexity"] == pytest.approx(np.exp(total / asked), rel=1e-5)
    assert result["baselines"]["training_frequencies"]["nll"]["value"] == pytest.approx(np.log(20))
    difference = result["model_minus"]["training_frequencies"]["value"]
    assert difference == pytest.approx(total / asked - np.log(20), rel=1e-4)


def reference_loss(loaded: LoadedModel, protein: heldout.HiddenProtein) -> float:
    """Sum of losses, from one forward without padding."""
    logits = bare_logits(loaded, protein.sequence, protein.targets.tolist())
    logits = logits[:, loaded.vocabulary.amino_acid_ids]
    targets, columns = protein.targets, protein.columns[protein.targets]
    return float((np.logaddexp.reduce(logits, axis=1)[targets] - logits[targets, columns]).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_never_sees_what_it_is_asked(small_model: SmallModel, family: str) -> None:
    """Another residue in a target's place changes no answer there, and one beside it does."""
    loaded = small_model(family)
    protein = heldout.hide("M" + "KLVAGHRTE" * 5, 0)
    target = int(protein.targets[2])
    before = len(loaded.vocabulary.prefix_ids)

    def answer(changed: int | None) -> np.ndarray:
        letters = list(protein.sequence)
        if changed is not None:
            letters[changed] = "W"
        other = dataclasses.replace(protein, sequence="".join(letters))
        group = RowBatch([0], [0], [0], Shape(1, 64))
        asked = heldout.hidden_batch(loaded, [other], [(0, 0, 46)], group)
        assert asked.hidden[0].sum() == len(protein.targets) and asked.hidden[0, target + before]
        assert asked.columns[0, target + before] == protein.columns[target]
        logits = forward(loaded.model, loaded.params, asked.features)
        return np.asarray(loaded.model.readouts[0].align(logits))[0, target + before]

    unseen = next(i for i in range(target - 1, 0, -1) if i not in protein.targets)
    np.testing.assert_array_equal(answer(target), answer(None))
    assert np.abs(answer(unseen) - answer(None)).max() > 1e-6


def test_long_proteins_are_cut_into_even_pieces(small_model: SmallModel) -> None:
    assert even_pieces(100, 30) == [(0, 25), (25, 50), (50, 75), (75, 100)]
    assert even_pieces(31, 30) == [(0, 15), (15, 31)]
    assert even_pieces(31, None) == [(0, 31)]
    loaded = small_model("bert", max_positions=32)
    sequences = proteins(2, 90, 90)
    result = heldout.evaluate(loaded, sequences, UNIFORM, seed=0)
    assert result["targets"] == 2 * round(0.15 * 90)
    assert np.isfinite(result["model"]["nll"]["value"])


def test_protocol_says_what_is_shown(small_model: SmallModel) -> None:
    assert "[MASK]" in heldout.protocol(small_model("bert"))
    text = heldout.protocol(small_model("t5"))
    assert "<extra_id_0>" in text and "decoder" in text
    for family in FAMILIES:
        assert "15%" in heldout.protocol(small_model(family))


def test_nothing_to_ask_is_an_error(small_model: SmallModel) -> None:
    with pytest.raises(ProtlmError, match="standard residue"):
        heldout.evaluate(small_model("bert"), {"p": "MXX"}, UNIFORM, seed=0)
    with pytest.raises(ProtlmError, match="20 positive"):
        heldout.evaluate(small_model("bert"), {"p": "MKL"}, np.ones(19), seed=0)
