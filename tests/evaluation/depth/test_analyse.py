"""From proteins to the numbers of each stack: batches, means, levels of noise, arrangements."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import xarray
import zoo
from depth_rows import asked, measure_batch, proteins
from zoo import kinds_first

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.batches import prepare
from protlm_jax.evaluation.depth.results import undefined
from protlm_jax.evaluation.depth.scores import centre, per_layer_effect, reached
from protlm_jax.evaluation.depth.sweep import compiled
from protlm_jax.evaluation.noise import by_noise_level
from protlm_jax.huggingface import export, import_model, load_model
from protlm_jax.vocabularies import AMINO_ACIDS


@pytest.mark.parametrize("family", kinds_first())
def test_every_stack_is_measured_with_one_compilation(family: str, small_model) -> None:
    loaded = small_model(family)
    before = compiled._cache_size()
    result = analyse(loaded, proteins(20, 21))  # three batches
    assert compiled._cache_size() - before == len(loaded.model.stack_names)
    analyse(loaded, proteins(9, 21, seed=1))  # other proteins, the same program
    assert compiled._cache_size() - before == len(loaded.model.stack_names)

    assert set(result) == set(loaded.model.stack_names)
    specials = loaded.vocabulary.num_specials
    for name, stack in result.items():
        assert stack.sizes["protein"] == 20
        assert stack["stream_norm_count"][0].sum() == 20 * 3  # 15 % of 20
        (nothing, effect), below = stack["skip_effect"].values
        assert np.isnan([nothing, *below]).all() and effect > 0
        read = loaded.model.readouts[0]
        assert ("lens_nll" not in stack) == (name != read.stack or not read.reads_stream)
        assert stack["relative_contribution"].sizes["layer"] == 2
        assert stack.sizes["depth"] == 3 and stack["stream_norm"].attrs["units"] == "1"
        # With two layers all effects are those of the first.
        assert centre(per_layer_effect(stack["skip_effect"].values)) == 0.0
        if read.reads_stream:
            for measured in ("l2", "kl", "kl_reverse", "top1_agreement", "delta_nll"):
                assert stack[f"skip_{measured}"].dims == ("skipped",)
                assert stack[f"swap_{measured}"].dims == ("first",)
                assert stack[f"sublayer_skip_{measured}"].dims == ("sublayer", "skipped")
        else:
            assert not {"skip_kl", "base_nll", "swap_kl"} & set(stack)
            assert "residues" in undefined(stack)["swaps"]
        sums = loaded.config.norm_placement == "pre"
        assert ("local_effect" in stack) == sums == ("local_effects" not in undefined(stack))
        assert stack["cka"][1, 1] == pytest.approx(1) and stack["effective_rank"][1] > 1
        # Encoder and decoder rows are counted as pairs of tokens.
        assert stack.attrs["tokens"] == 20 * (21 + specials)


def test_a_protein_counts_the_same_in_any_company(small_model, assert_close) -> None:
    """Means over residues of all proteins are the weighted means of each alone."""
    loaded = small_model("bert")
    together = {**proteins(3, 40), **{f"q{i}": s for i, s in enumerate(proteins(1, 20).values())}}
    whole = analyse(loaded, together)["encoder"]
    alone = [analyse(loaded, {name: seq})["encoder"] for name, seq in together.items()]
    weights = np.array([float(one["base_nll_count"].sum()) for one in alone])
    assert whole["base_nll_count"].sum() == weights.sum() and len(set(weights)) == 2
    for key in ("kl", "l2", "top1_agreement", "delta_nll"):
        parts = np.array([one[f"skip_{key}"].values for one in alone])
        expected = (parts * weights[:, None]).sum(axis=0) / weights.sum()
        assert_close(whole[f"skip_{key}"].values, expected, 1e-4, key)


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
        analyse(small_model("bert"), {"short": "M", "unknown": "MXXX"})
    with pytest.raises(ProtlmError, match="'bad', position 3"):
        analyse(small_model("bert"), {"bad": "MK*"})


def test_the_depth_score_is_the_centre_of_mass_of_effects_on_later_layers() -> None:
    effect = np.array([[0.9, 0.2, 0.4], [0.9, 0.9, 0.6], [0.9, 0.9, 0.9]])
    # Mean effect on later layers: 0.3 of layer 0, 0.6 of layer 1; the last has none.
    mean = per_layer_effect(effect)
    assert mean == pytest.approx([0.3, 0.6, 0])
    assert centre(mean) == pytest.approx(0.6 / 0.9 / 2)
    assert centre(np.array([1.0, 0, 0])) == 0.0
    for nothing in (np.zeros(3), np.zeros(1)):
        assert np.isnan(centre(nothing))


def test_the_exit_depth_is_from_where_on_the_lens_is_good_enough() -> None:
    assert reached(np.array([0.1, 0.96, 0.5, 0.95, 1.0])) == 3 / 4
    assert reached(np.array([1.0, 1.0, 1.0])) == 0
    assert reached(np.array([0.1, np.nan, 1.0])) == 1.0
    assert np.isnan(reached(np.array([0.5, -0.1])))


RNG = np.random.default_rng(0)
PROTEINS = {f"p{i}": "".join(RNG.choice(list(AMINO_ACIDS), n)) for i, n in enumerate((21, 13))}
LEVELS = (0.5, 1.0)


def test_each_level_hides_its_share_and_measures_what_it_hides() -> None:
    """The loss at each level is that of the evaluation by noise, which goes its own way."""
    model = zoo.loaded("dplm")
    found = analyse(model, PROTEINS, metrics=["skips", "similarity"], noise_levels=LEVELS, seed=3)
    measured = found["encoder"]
    assert tuple(measured["noise"].values) == LEVELS
    assert measured["skip_effect"].dims == ("noise", "skipped", "affected")
    assert measured["cka"].dims == ("noise", "depth", "other_depth")
    base = measured["base_nll"]
    assert base.dims == ("noise",) and measured["base_nll_count"].sum(
        "protein"
    ).values.tolist() == [10 + 6, 20 + 12]
    expected = by_noise_level(model, PROTEINS, seed=3, levels=2)["levels"]
    for row, value in zip(expected, base.values, strict=True):
        assert value == pytest.approx(row["nll"]["value"], rel=1e-4)


def test_a_level_is_what_is_found_at_it_alone() -> None:
    """At 15 % it is the plain analysis."""
    model, metrics = zoo.loaded("esm2"), ["contributions", "skips"]
    plain = analyse(model, PROTEINS, metrics=metrics)["encoder"]
    levels = analyse(model, PROTEINS, metrics=metrics, noise_levels=[0.9, 0.15])["encoder"]
    one, other = levels.isel(noise=1, drop=True), levels.isel(noise=0, drop=True)
    xarray.testing.assert_equal(one, plain)
    assert (other["skip_effect_peak"] != plain["skip_effect_peak"]).any()


def test_what_knows_no_levels_says_so() -> None:
    for family, kind in (("gpt2", "causal"), ("t5", "denoising"), ("electra", "detection")):
        with pytest.raises(ProtlmError, match=f"not asked by masks.*its readout is {kind}"):
            analyse(zoo.loaded(family), PROTEINS, noise_levels=LEVELS)
    for wrong in ([], [0.0], [0.5, 1.5]):
        with pytest.raises(ProtlmError, match="shares above 0 and at most 1; these are"):
            analyse(zoo.loaded("dplm"), PROTEINS, noise_levels=wrong)


METRICS = ("contributions", "skips")


def measured(family: str, batch: Any) -> dict[str, Any]:
    return measure_batch(zoo.loaded(family), batch, "encoder", METRICS)


def test_a_packed_protein_counts_as_if_it_were_alone() -> None:
    """ESM-2 scales its tokens by each protein's own share of <mask>."""
    packed, alone = (
        measured("esm2", asked("esm2", rows)) for rows in ([[0, 1, 2]], [[0], [1], [2]])
    )
    for name, stat in alone.items():
        assert np.array_equal(stat.count[..., :3], packed[name].count[..., :3]), name
        np.testing.assert_allclose(
            packed[name].total[..., :3], stat.total[..., :3], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_rows_and_parameters_over_several_devices_are_measured_as_on_one() -> None:
    batch = asked("bert", [[0], [1], [2], [0, 1], [1], [2], [0], [2]])
    batch = batch._replace(protein=np.where(batch.protein >= 0, batch.protein % 8, -1))
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def over(*axes: str | None) -> jax.sharding.NamedSharding:
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    def split(leaf: Any) -> jax.Array:
        axis = None if leaf.shape[-1] % 2 else "model"
        return jax.device_put(leaf, over(*[None] * (leaf.ndim - 1), axis))

    spread = batch._replace(
        features=jax.device_put(batch.features, over("data")),
        true=jax.device_put(batch.true, over("data")),
    )
    model = zoo.loaded("bert")
    parted = dataclasses.replace(model, params=jax.tree.map(split, model.params))
    one = measured("bert", batch)
    many = measure_batch(parted, spread, "encoder", METRICS)
    for name, stat in one.items():
        np.testing.assert_allclose(many[name].total, stat.total, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_run_folder_and_its_export_give_the_same_numbers(tmp_path: Path) -> None:
    exported = export(zoo.loaded("esm2"), tmp_path / "hf")
    sources = (exported, import_model(exported, tmp_path / "run"))
    found = [
        analyse(load_model(source), {"P": "MKTAYIAKQRQISFVKSHFSRQ"}, metrics=METRICS)
        for source in sources
    ]
    xarray.testing.assert_equal(found[0]["encoder"], found[1]["encoder"])
