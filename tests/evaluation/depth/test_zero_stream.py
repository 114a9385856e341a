"""Where a residue shown as <mask> embeds as zeros, nothing is divided by its stream."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import zoo

from protlm_jax.evaluation import summaries
from protlm_jax.evaluation.depth import run
from protlm_jax.evaluation.depth.measure import TINY, measure

PROTEINS = {"a": "MKTAYIAKQRQISFV", "b": "QLEERLGLIEVQ"}


def test_layers_before_which_the_stream_is_zero_say_nothing(small_model) -> None:
    """The published clamp of 1e-6 would make of them a mean of about a million."""
    result = run(small_model("esm2"), PROTEINS)
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


def test_other_positions_count_beside_them(assert_close) -> None:
    """Of masked and visible residues together the mean is that of the visible ones."""
    loaded = zoo.loaded("esm2")
    amino_acids = jnp.asarray(loaded.vocabulary.amino_acid_ids)
    batch = {k: jnp.asarray(v) for k, v in zoo.row("esm2", [1], 9).items()}
    masked = jnp.zeros((1, 9), bool).at[0, 2:5].set(True)
    shown = batch | {
        "input_tokens": jnp.where(masked, loaded.vocabulary.hiding_id, batch["input_tokens"])
    }

    def sums(asked: jax.Array) -> dict[str, np.ndarray]:
        found = measure(
            loaded.model,
            loaded.params,
            shown,
            batch["input_tokens"],
            asked,
            amino_acids,
            stack="encoder",
        )
        return jax.device_get(found)

    everywhere, visible = sums(jnp.ones((1, 9), bool)), sums(~masked)
    for part in ("layer", "attention"):
        assert everywhere["defined"][part].tolist() == [6, 9]
        for key in ("relative_contribution", "cosine"):
            assert_close(everywhere[key][part][0], visible[key][part][0], 1e-5, part)
    assert everywhere["count"] == 9
    assert everywhere["relative_contribution"]["layer"][0] < 1 / TINY**0.5


def test_without_token_dropout_every_position_counts() -> None:
    loaded = zoo.loaded("esm2")
    plain = dataclasses.replace(
        loaded.model, config=loaded.config.replace(token_dropout=False), parent=None
    )
    result = run(dataclasses.replace(loaded, model=plain), PROTEINS)
    relative = result["stacks"]["encoder"]["relative_contribution"]
    assert None not in relative["layer"]
