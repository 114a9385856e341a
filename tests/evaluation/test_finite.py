"""Where a model that gives NaN or infinity is broken."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from zoo import KINDS, ZOO, loaded

from protlm_jax import models
from protlm_jax.evaluation import finite
from protlm_jax.evaluation.finite import first_not_finite
from protlm_jax.models import LoadedModel

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"
WEIGHT = ("encoder", "mlp", "wo", "kernel")


def with_weight(model: LoadedModel, path: tuple[str, ...], layer: int, value: float) -> LoadedModel:
    """The model with one number of one layer's parameter set."""
    params = jax.tree.map(np.array, model.params)
    leaf = params
    for name in path:
        leaf = leaf[name]
    leaf[layer].flat[0] = value
    return dataclasses.replace(model, params=params)


@pytest.mark.parametrize("family", ZOO)
def test_names_the_parameter_and_its_block(family: str) -> None:
    broken = with_weight(loaded(family), WEIGHT, -1, np.nan)
    block = "block 0" if family == "albert" else "block 1"  # ALBERT's layers share one
    assert first_not_finite(broken, SEQUENCE) == (
        f"the parameter encoder/mlp/wo/kernel holds 1 number that is not finite ({block})"
    )


@pytest.mark.parametrize("family", [*KINDS, "xlnet"])
def test_names_the_stream_that_overflows(family: str) -> None:
    config = ZOO[family].config.replace(dtype="float16")
    half = dataclasses.replace(loaded(family), model=models.build(config))
    assert first_not_finite(half, SEQUENCE) == ""
    large = with_weight(half, WEIGHT, 1, 1e30)  # finite, and beyond float16
    assert first_not_finite(large, SEQUENCE) == "the stream after block 1 of the encoder"
    assert "compute in fp32" in finite.reason(large, SEQUENCE)


def test_names_the_logits_when_no_stream_is_at_fault() -> None:
    model = loaded("bert")
    params = jax.tree.map(np.array, model.params)
    params["head"]["dense"]["kernel"][:] = 3e38
    broken = dataclasses.replace(model, params=params)
    assert first_not_finite(broken, SEQUENCE) == "the logits"
    said = finite.reason(broken, SEQUENCE)
    assert "exceed the range of float32" in said
    assert "compute in fp32" not in said


def test_reads_every_window_of_a_long_protein() -> None:
    """The position table holds 62 residues; the last window alone reads the residue at fault."""
    model = loaded("electra")  # its head is not tied to the table
    params = jax.tree.map(np.array, model.params)
    config = model.config.replace(dtype="float16")
    params["embedder"]["token"][model.vocabulary.encode("W", specials=False)[0]] = 1e30
    large = LoadedModel(models.build(config), params, model.vocabulary, "large")
    assert first_not_finite(large, "A" * 130) == ""
    assert first_not_finite(large, "A" * 130 + "W") == "the stream before block 0 of the encoder"


def test_a_contact_head_is_blamed_last() -> None:
    model = loaded("esm2")
    params = jax.tree.map(np.array, model.params)
    params["contact_head"]["kernel"].flat[0] = np.inf
    broken = dataclasses.replace(model, params=params)
    assert first_not_finite(broken, SEQUENCE).startswith("the parameter contact_head/kernel")
