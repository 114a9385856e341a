"""Measurements by share of hidden residues, of models that are asked by masks."""

from __future__ import annotations

import numpy as np
import pytest
import xarray
import zoo

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.noise import by_noise_level
from protlm_jax.vocabularies import AMINO_ACIDS

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
