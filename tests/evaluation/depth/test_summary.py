"""From proteins to the numbers of each stack: batches, means, one compilation."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from zoo import kinds_first

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.batches import prepare
from protlm_jax.evaluation.depth.measure import measure
from protlm_jax.evaluation.depth.scores import depth_score, exit_depth, per_layer_effect
from protlm_jax.evaluation.depth.summary import summary
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS


def proteins(number: int, length: int, seed: int = 0) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    return {f"p{i}": "".join(rng.choice(list(AMINO_ACIDS), length)) for i in range(number)}


def summarised(loaded: LoadedModel, sequences: dict[str, str]) -> dict[str, Any]:
    return summary(analyse(loaded, sequences), "asked")


@pytest.mark.parametrize("family", kinds_first())
def test_every_stack_is_measured_with_one_compilation(family: str, small_model) -> None:
    loaded = small_model(family)
    before = measure._cache_size()
    result = summarised(loaded, proteins(20, 21))  # three batches
    assert measure._cache_size() - before == len(loaded.model.stack_names)
    summarised(loaded, proteins(9, 21, seed=1))  # other proteins, the same program
    assert measure._cache_size() - before == len(loaded.model.stack_names)

    assert json.loads(json.dumps(result)) == result
    assert set(result["stacks"]) == set(loaded.model.stack_names)
    assert result["proteins"] == 20 and result["hidden_residues"] == 20 * 3  # 15 % of 20
    for name, stack in result["stacks"].items():
        (_, effect), below = stack["skip_map"]
        assert stack["skip_map"][0][0] is None and below == [None, None] and effect > 0
        read = loaded.model.readouts[0]
        assert (stack["logit_lens"] is None) == (name != read.stack or not read.reads_stream)
        assert all(len(v) == 2 for v in stack["relative_contribution"].values())
        assert len(stack["stream_norm"]) == 3
        # With two layers all effects are those of the first.
        assert stack["depth_score"] == {"layers": 0.0, "relative": 0.0}
        if read.reads_stream:
            names = {"l2", "kl", "kl_reverse", "top1_agreement", "delta_nll"}
            assert set(stack["skip_output"]) == set(stack["swap_output"]) == names
            assert set(stack["sublayer_skip_output"]) == set(stack["sublayer_skip_map"])
        else:
            assert stack["skip_output"] is stack["base_nll"] is stack["swap_output"] is None
            assert "residues" in stack["undefined"]["swaps"]
        sums = loaded.config.norm_placement == "pre"
        assert (
            (stack["local_map"] is not None) == sums == ("local_effects" not in stack["undefined"])
        )
        assert stack["cka"][1][1] == pytest.approx(1) and stack["effective_rank"][1] > 1
    specials = loaded.vocabulary.num_specials
    # Encoder and decoder rows are counted as pairs of tokens.
    assert result["cost"]["tokens"] == 20 * (21 + specials)


def test_a_protein_counts_the_same_in_any_company(small_model, assert_close) -> None:
    """Means over residues of all proteins are the weighted means of each alone."""
    loaded = small_model("bert")
    together = {**proteins(3, 40), **{f"q{i}": s for i, s in enumerate(proteins(1, 20).values())}}
    whole = summarised(loaded, together)
    alone = [summarised(loaded, {name: sequence}) for name, sequence in together.items()]
    weights = np.array([one["hidden_residues"] for one in alone])
    assert whole["hidden_residues"] == weights.sum() and len(set(weights)) == 2
    for key in ("kl", "l2", "top1_agreement", "delta_nll"):
        parts = [one["stacks"]["encoder"]["skip_output"][key] for one in alone]
        expected = (np.array(parts) * weights[:, None]).sum(axis=0) / weights.sum()
        found = np.array(whole["stacks"]["encoder"]["skip_output"][key])
        assert_close(found, expected, 1e-4, key)


def test_long_proteins_are_cut_and_keep_every_hidden_residue(small_model) -> None:
    """61 residues through rows of 16 tokens: what is asked is decided before the cut."""
    loaded = small_model("bert", max_positions=16)
    made = prepare(loaded, proteins(1, 61), None, seed=0)
    batches = list(made.all_batches(loaded))
    asked = sum(int(batch.hidden.sum()) for batch in batches)
    assert asked == round(0.15 * 60)
    for batch, targets, hidden, *_ in batches:
        assert batch["input_tokens"].shape == targets.shape == hidden.shape == (8, 16)
        real = (batch["segment_ids"] > 0) & ~hidden
        residues = real & np.isin(batch["input_tokens"], loaded.vocabulary.amino_acid_ids)
        assert np.array_equal(batch["input_tokens"][residues], targets[residues])
        assert np.isin(targets[hidden], loaded.vocabulary.amino_acid_ids).all()


def test_the_seed_chooses_what_is_hidden(small_model) -> None:
    loaded = small_model("bert")
    first, again, other = (
        prepare(loaded, proteins(2, 50), None, seed).batch(loaded, 0).hidden for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_proteins_without_a_residue_to_hide_are_refused(small_model) -> None:
    with pytest.raises(ProtlmError, match="at least two standard residues"):
        summarised(small_model("bert"), {"short": "M", "unknown": "MXXX"})
    with pytest.raises(ProtlmError, match="'bad', position 3"):
        summarised(small_model("bert"), {"bad": "MK*"})


def test_the_depth_score_is_the_centre_of_mass_of_effects_on_later_layers() -> None:
    effect = np.array([[0.9, 0.2, 0.4], [0.9, 0.9, 0.6], [0.9, 0.9, 0.9]])
    # Mean effect on later layers: 0.3 of layer 0, 0.6 of layer 1; the last has none.
    mean = per_layer_effect(effect)
    assert mean == pytest.approx([0.3, 0.6, 0])
    score = depth_score(mean)
    assert score["layers"] == pytest.approx(0.6 / 0.9)
    assert score["relative"] == pytest.approx(0.6 / 0.9 / 2)
    assert depth_score(np.array([1.0, 0, 0])) == {"layers": 0.0, "relative": 0.0}
    for nothing in (np.zeros(3), np.zeros(1)):
        assert depth_score(nothing) == {"layers": None, "relative": None}


def test_the_exit_depth_is_from_where_on_the_lens_is_good_enough() -> None:
    assert exit_depth(np.array([0.1, 0.96, 0.5, 0.95, 1.0])) == 3
    assert exit_depth(np.array([1.0, 1.0, 1.0])) == 0
    assert exit_depth(np.array([0.1, np.nan, 1.0])) == 2
    assert exit_depth(np.array([0.5, -0.1])) is None
