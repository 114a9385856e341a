"""ALBERT and ELECTRA as `transformers` itself writes them, and what of them cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import export, load_model
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.models.families.electra import discriminator_config, generator_config
from protlm_jax.models.loaded import parts_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}


def saved(network: Any, tokenizer_of: str, folder: Path) -> Path:
    """A folder with random weights and the tokenizer of a specimen."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    network.eval().save_pretrained(folder)
    part = next(iter(parts_of(zoo.loaded(tokenizer_of)).values()))
    tokenizer = export(part, folder.parent / "tokenizer") / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return folder


def same_logits(network: Any, folder: Path) -> None:
    loaded = load_model(folder)
    row = loaded.vocabulary.encode("MKTAYIAKQR")[None]
    batch = {
        "input_tokens": row,
        "segment_ids": np.ones_like(row),
        "positions": np.arange(row.shape[1], dtype=np.int32)[None],
    }
    with torch.no_grad():
        expected = network(torch.tensor(row).long())
    expected = (expected.logits if "logits" in expected else expected[0]).numpy()
    found = np.asarray(loaded.model.apply({"params": loaded.params}, batch))
    assert np.abs(found.reshape(expected.shape) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["AlbertForMaskedLM", "AlbertForPreTraining"])
def test_an_albert_with_a_pooler_and_a_head_for_order(kind: str, tmp_path: Path) -> None:
    """Six layers, and embeddings as wide as the stream, which are projected all the same."""
    config = transformers.AlbertConfig(**SIZES, num_hidden_layers=6, embedding_size=16)
    network = getattr(transformers, kind)(config)
    folder = saved(network, "albert", tmp_path / "model")
    same_logits(network, folder)
    loaded = load_model(folder)
    assert loaded.config.num_layers == 6
    assert loaded.params["encoder"]["mlp"]["wi"]["kernel"].shape == (1, 16, 24)


@pytest.mark.parametrize("field", ["num_hidden_groups", "inner_group_num"])
def test_an_albert_of_several_groups_is_refused(field: str, tmp_path: Path) -> None:
    config = transformers.AlbertConfig(**SIZES, num_hidden_layers=4, **{field: 2})
    folder = saved(transformers.AlbertForMaskedLM(config), "albert", tmp_path / "model")
    with pytest.raises(ProtlmError, match=rf"config\.json: '{field}' is 2; only an ALBERT whose"):
        load_model(folder)


@pytest.mark.parametrize("kind", ["ElectraForMaskedLM", "ElectraForPreTraining"])
@pytest.mark.parametrize("embedding_size", [12, 16])
def test_electras_with_and_without_a_projection(
    kind: str, embedding_size: int, tmp_path: Path
) -> None:
    config = transformers.ElectraConfig(**SIZES, num_hidden_layers=2, embedding_size=embedding_size)
    network = getattr(transformers, kind)(config)
    folder = saved(network, "electra", tmp_path / "model")
    same_logits(network, folder)
    loaded = load_model(folder)
    assert ("projection" in loaded.params) == (embedding_size == 12)


def test_a_generator_with_another_activation_is_refused(tmp_path: Path) -> None:
    config = transformers.ElectraConfig(**SIZES, num_hidden_layers=2, hidden_act="relu")
    generator = saved(transformers.ElectraForMaskedLM(config), "electra", tmp_path / "generator")
    with pytest.raises(ProtlmError, match="'hidden_act' is 'relu'; only models with 'gelu'"):
        load_model(generator)
    network = transformers.ElectraForPreTraining(config)
    same_logits(network, saved(network, "electra", tmp_path / "discriminator"))


def test_configs_of_the_published_shapes_are_the_presets() -> None:
    """From the sizes of the files: nobody here has seen these config.json."""
    albert = transformers.AlbertConfig(vocab_size=30, max_position_embeddings=40_000).to_dict()
    assert EXCHANGES["albert"].from_config(albert) == models.preset("prot_albert")
    whole = models.preset("prot_electra_bfd")
    fields = {
        "vocab_size": 30,
        "embedding_size": 1024,
        "num_hidden_layers": 30,
        "max_position_embeddings": 40_000,
        "hidden_dropout_prob": 0.0,
    }
    large = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
    assert EXCHANGES["electra_discriminator"].from_config(
        {**fields, **large}
    ) == discriminator_config(whole)
    small = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
    assert EXCHANGES["electra_generator"].from_config({**fields, **small}) == generator_config(
        whole
    )
