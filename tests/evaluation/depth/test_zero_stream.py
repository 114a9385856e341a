"""Where a residue shown as <mask> embeds as zeros, nothing is divided by its stream."""

from __future__ import annotations

import dataclasses

import numpy as np
import zoo

from protlm_jax.evaluation.depth import files
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.subject import TINY

PROTEINS = {"a": "MKTAYIAKQRQISFV", "b": "QLEERLGLIEVQ"}


def test_layers_before_which_the_stream_is_zero_say_nothing(small_model) -> None:
    """The published clamp of 1e-6 would make of them a mean of about a million."""
    measured = analyse(small_model("esm2"), PROTEINS)["encoder"]
    for key in ("relative_contribution", "cosine"):
        for part in ("layer", "attention"):
            first, second = measured[key].sel(part=part).values
            assert np.isnan(first) and abs(second) < 100, (key, part)
        # The MLP is added to what attention has put there.
        assert (abs(measured[key].sel(part="mlp")) < 100).all()
    assert measured["stream_norm"][0] == 0 < measured["stream_norm"][1]
    assert files.by_layer(measured).cells()[0][:3] == ["0", "-", "-"]


def test_other_positions_count_beside_them() -> None:
    """Of all residues together, <mask> and visible, the mean at layer 0 is of the visible ones."""
    found = analyse(zoo.loaded("esm2"), PROTEINS, metrics=["contributions"], positions="all")
    measured = found["encoder"]
    residues, masked = sum(map(len, PROTEINS.values())), 2 + 2
    sums = measured["relative_contribution_count"].sum("protein")
    counts = {part: sums.sel(part=part).values.tolist() for part in sums["part"].values}
    assert counts["layer"] == counts["attention"] == [residues - masked, residues]
    assert counts["mlp"] == [residues, residues]
    assert measured["relative_contribution"][0, 0] < 1 / TINY**0.5


def test_without_token_dropout_every_position_counts() -> None:
    loaded = zoo.loaded("esm2")
    plain = dataclasses.replace(
        loaded.model, config=loaded.config.replace(token_dropout=False), parent=None
    )
    found = analyse(dataclasses.replace(loaded, model=plain), PROTEINS)["encoder"]
    assert found["relative_contribution"].notnull().all()
