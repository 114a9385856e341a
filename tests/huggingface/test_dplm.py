"""DPLM's folders are ESM-2's, but for the field that says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import zoo
from hf_folders import reconfigure
from safetensors.numpy import load_file

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import export, load_model
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.vocabularies import ESM2

torch = pytest.importorskip("torch")

FAMILY = "dplm"


def test_the_field_tells_the_two_apart(folder: Path) -> None:
    ours = zoo.loaded("dplm")
    reconfigure(folder, architectures=["EsmForDPLM"])  # a class of its authors
    found = load_model(folder)
    assert found.config == ours.config and found.vocabulary is ESM2
    assert type(found.model).objectives == ("diffusion", "masked")
    reconfigure(folder, "dplm_type", architectures=["EsmForMaskedLM"])
    plain = load_model(folder)
    assert plain.config == ours.config.replace(family="esm2")
    jax.tree.map(np.testing.assert_array_equal, plain.params, found.params)


def test_an_esm2_becomes_one_by_the_field(tmp_path: Path) -> None:
    """So that a run of diffusion can start from any ESM-2."""
    folder = export(zoo.loaded("esm2"), tmp_path / "model")
    reconfigure(folder, dplm_type="dplm_esm")
    loaded = load_model(folder)
    assert loaded.config.family == "dplm"
    jax.tree.map(np.testing.assert_array_equal, zoo.loaded("esm2").params, loaded.params)


def test_a_folder_as_published(folder: Path) -> None:
    """pytorch_model.bin, with the decoder's copy of the token table; vocab.txt alone."""
    tensors = load_file(folder / "model.safetensors")
    tied = tensors["esm.embeddings.word_embeddings.weight"]
    state = {name: torch.tensor(x) for name, x in tensors.items()}
    (folder / "model.safetensors").unlink()
    (folder / "tokenizer.json").unlink()
    torch.save(state | {"lm_head.decoder.weight": torch.tensor(tied)}, folder / "pytorch_model.bin")
    loaded = load_model(folder)
    assert loaded.vocabulary is ESM2
    jax.tree.map(np.testing.assert_array_equal, zoo.loaded("dplm").params, loaded.params)
    torch.save(
        state | {"lm_head.decoder.weight": torch.tensor(2 * tied)}, folder / "pytorch_model.bin"
    )
    with pytest.raises(ProtlmError, match=r"lm_head.decoder.weight differs from esm.embeddings"):
        load_model(folder)


def test_presets_have_the_shapes_of_esm2() -> None:
    for size in ("150m", "650m", "3b"):
        config = models.preset(f"dplm_{size}")
        assert dataclasses.replace(config, family="esm2") == models.preset(f"esm2_{size}")
        assert config.token_dropout
        assert EXCHANGES["dplm"].from_config(EXCHANGES["dplm"].to_config(config)) == config
