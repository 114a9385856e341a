"""Where a residue shown as <mask> embeds as zeros, nothing is divided by its stream."""

from __future__ import annotations

import dataclasses

import zoo

from protlm_jax.evaluation import summaries
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.subject import TINY
from protlm_jax.evaluation.depth.summary import summary

PROTEINS = {"a": "MKTAYIAKQRQISFV", "b": "QLEERLGLIEVQ"}


def test_layers_before_which_the_stream_is_zero_say_nothing(small_model) -> None:
    """The published clamp of 1e-6 would make of them a mean of about a million."""
    result = summary(analyse(small_model("esm2"), PROTEINS), "asked")
    measured = result["stacks"]["encoder"]
    for key in ("relative_contribution", "cosine"):
        for part in ("layer", "attention"):
            first, second = measured[key][part]
            assert first is None and abs(second) < 100, (key, part)
        # The MLP is added to what attention has put there.
        assert all(abs(x) < 100 for x in measured[key]["mlp"])
    assert measured["stream_norm"][0] == 0 < measured["stream_norm"][1]
    first_row = summaries.depth(result).splitlines()[4].split()
    assert first_row[:3] == ["0", "-", "-"]


def test_other_positions_count_beside_them() -> None:
    """Of all residues together, <mask> and visible, the mean at layer 0 is of the visible ones."""
    found = analyse(zoo.loaded("esm2"), PROTEINS, metrics=["contributions"], positions="all")
    relative = found.stacks["encoder"]["relative_contribution"]
    residues, masked = sum(map(len, PROTEINS.values())), 2 + 2
    parts = found.stacks["encoder"].coords["part"]
    counts = dict(zip(parts, relative.counts.sum(axis=-1).tolist(), strict=True))
    assert counts["layer"] == counts["attention"] == [residues - masked, residues]
    assert counts["mlp"] == [residues, residues]
    assert relative.values[0, 0] < 1 / TINY**0.5


def test_without_token_dropout_every_position_counts() -> None:
    loaded = zoo.loaded("esm2")
    plain = dataclasses.replace(
        loaded.model, config=loaded.config.replace(token_dropout=False), parent=None
    )
    result = summary(analyse(dataclasses.replace(loaded, model=plain), PROTEINS), "asked")
    relative = result["stacks"]["encoder"]["relative_contribution"]
    assert None not in relative["layer"]
