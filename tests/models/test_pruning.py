"""A pruned model is the whole one under a program that skips the same layers."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from zoo import ZOO, kinds_alone, loaded, row

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.models.pruning import LAYERS_FIELD, pruned
from protlm_jax.models.stack import LayerProgram

LAYERS = 4
DROP = (1, 2)


def _deep(family: str) -> models.LoadedModel:
    whole = loaded(family)
    fields = {LAYERS_FIELD[stack]: LAYERS for stack in whole.model.stack_names}
    model = models.build(whole.config.replace(**fields))
    return dataclasses.replace(whole, model=model, params=models.init_params(model, 3))


@pytest.mark.parametrize("family", kinds_alone(sorted(set(ZOO) - {"electra"})))
def test_a_pruned_model_equals_the_program_that_skips_the_same_layers(family: str) -> None:
    whole = _deep(family)
    stack = whole.model.stack_names[-1]
    small = pruned(whole, {stack: DROP})
    program = LayerProgram.full(LAYERS).skip(*DROP)
    batch = row(family, (0, 1))

    def skipped(params: models.Params) -> jax.Array:
        def run(model: models.Stacked) -> jax.Array:
            h, context = model.embed(batch)
            return model.head(model.stack(h, context, {stack: program})[0])

        return whole.model.apply({"params": params}, method=run)

    expected = np.asarray(jax.jit(skipped)(whole.params))
    got = np.asarray(jax.jit(small.model.apply)({"params": small.params}, batch))
    assert getattr(small.config, LAYERS_FIELD[stack]) == LAYERS - len(DROP)
    assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()
    full = np.asarray(jax.jit(whole.model.apply)({"params": whole.params}, batch))
    assert np.abs(got - full).max() > 1e-3 * np.abs(full).max()  # the layers did something


@pytest.mark.parametrize(
    ("family", "drop", "message"),
    [
        ("bert", {"encoder": [2]}, "has no layer 2 in its encoder: its layers are 0 to 1"),
        ("bert", {"decoder": [0]}, "has no stack 'decoder', only encoder"),
        ("bert", {"encoder": [0, 1]}, "would be left without layers"),
        ("electra", {"encoder": [0]}, "prune one of its folders"),
    ],
)
def test_what_cannot_be_pruned_is_refused(family: str, drop: dict, message: str) -> None:
    with pytest.raises(ProtlmError, match=message):
        pruned(loaded(family), drop)
