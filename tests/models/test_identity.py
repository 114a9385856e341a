"""The same model has one digest wherever it lies, and no other model has it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from zoo import loaded

from protlm_jax import models
from protlm_jax.huggingface import export, import_model, load_model
from protlm_jax.models import LoadedModel
from protlm_jax.models.identity import identity

TRAINING = {
    "position_init": "sinusoidal",
    "initializer_range": 0.5,
    "dropout_rate": 0.3,
    "mlp_dropout": True,
    "dtype": "bfloat16",
    "remat": "full",
    "attention_backend": "chunked",
    "max_positions": 512,  # the parameters say it already
}


def with_config(model: LoadedModel, **changes: Any) -> LoadedModel:
    return dataclasses.replace(model, model=models.build(model.config.replace(**changes)))


def test_one_number_anywhere_makes_another_model() -> None:
    """Also where a sample at a fixed stride does not look."""
    model, rng = loaded("bert"), np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(model.params)
    seen = {identity(model)}
    for place, leaf in enumerate(leaves):
        flat = np.array(leaf)
        at = tuple(rng.integers(flat.shape))
        flat[at] = np.nextafter(flat[at], np.float32(9), dtype=np.float32)
        edited = jax.tree.unflatten(tree, [*leaves[:place], flat, *leaves[place + 1 :]])
        seen.add(identity(dataclasses.replace(model, params=edited)))
    assert len(seen) == 1 + len(leaves)


def test_fields_count_that_decide_what_is_computed() -> None:
    model = loaded("bert")
    same = identity(model)
    for name, value in TRAINING.items():
        assert identity(with_config(model, **{name: value})) == same, name
    for changes in ({"norm_eps": 1e-5}, {"activation": "relu"}, {"attention_scale": False}):
        assert identity(with_config(model, **changes)) != same, changes
    esm2 = loaded("esm2")
    assert identity(with_config(esm2, rotary_dim=esm2.config.head_dim)) == identity(esm2)
    assert identity(with_config(esm2, rotary_pairs="neighbours")) != identity(esm2)


def test_a_vocabulary_is_its_content() -> None:
    model = loaded("bert")
    tokens = model.vocabulary.tokens
    renamed = dataclasses.replace(model.vocabulary, name="custom-01234567")
    swapped = dataclasses.replace(model.vocabulary, tokens=(*tokens[:-2], tokens[-1], tokens[-2]))
    assert identity(dataclasses.replace(model, vocabulary=renamed, name="other")) == identity(model)
    assert identity(dataclasses.replace(model, vocabulary=swapped)) != identity(model)


def test_an_import_of_an_export_is_the_model(tmp_path: Path) -> None:
    """Of two folders, too; tests of exports compare every family's."""
    export(loaded("electra"), tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "run")
    assert identity(load_model(tmp_path / "run")) == identity(loaded("electra"))


def test_it_is_the_same_on_every_machine() -> None:
    numbers = np.arange(12, dtype=np.float32)
    params = {"b": {"c": numbers.reshape(3, 4)}, "a": -numbers[:2]}
    model = dataclasses.replace(loaded("bert"), params=params)
    assert identity(model) == "v2:598ad2d30513f860a084f0986be2ac87"
