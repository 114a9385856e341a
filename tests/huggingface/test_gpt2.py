"""GPT-2's folders: buffers of old files, what is refused, and pieces of several residues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import zoo
from hf_folders import reconfigure, require_named, rewrite

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.scoring.score import likelihoods
from protlm_jax.huggingface import load_model
from protlm_jax.huggingface.convert import EXCHANGES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FAMILY = "gpt2"


def test_masks_that_old_files_hold_are_left(folder: Path) -> None:
    mask = np.tril(np.ones((1, 1, 64, 64), np.float32))
    buffers = {f"transformer.h.{i}.attn.bias": mask for i in range(2)}
    rewrite(folder, **buffers, **{"transformer.h.1.attn.masked_bias": np.array(-1e4, np.float32)})
    loaded = load_model(folder)
    jax.tree.map(np.testing.assert_array_equal, zoo.loaded("gpt2").params, loaded.params)
    assert len(loaded.left) == 3 and "the causal mask" in loaded.left[0]


def test_a_fused_tensor_that_is_missing_or_of_another_size_is_named(folder: Path) -> None:
    require_named(folder, "transformer.h.1.attn.c_attn.weight")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "'scale_attn_by_inverse_layer_idx' is True"),
        ({"scale_attn_weights": False}, "'scale_attn_weights' is False"),
        ({"add_cross_attention": True}, "'add_cross_attention' is True"),
        ({"tie_word_embeddings": False}, "'tie_word_embeddings' is False"),
        ({"activation_function": "mish"}, "activation 'mish' is not supported"),
    ],
)
def test_other_models_of_the_type_are_refused(folder: Path, fields: Any, message: str) -> None:
    reconfigure(folder, **fields)
    with pytest.raises(ProtlmError, match=message):
        load_model(folder)


def test_pieces_of_several_residues_are_refused(folder: Path) -> None:
    """As ProtGPT2's: every letter is a token as well, but not one that the model was shown."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    pieces = {piece: len(vocab) + i for i, piece in enumerate(("MK", "LA", "LAG"))}
    content["model"] = {"type": "BPE", "vocab": vocab | pieces, "merges": ["M K", "L A", "LA G"]}
    file.write_text(json.dumps(content))
    reconfigure(folder, vocab_size=32)
    with pytest.raises(ProtlmError) as error:
        load_model(folder)
    message = str(error.value)
    assert str(file) in message and "3 longer pieces (MK, LA, LAG...)" in message
    assert "a tokenizer of one token a residue" in message


def test_the_preset_has_the_size_of_gpt2_large() -> None:
    """774.0 million with its table of 50,257 pieces, as transformers counts them."""
    config = models.preset("prot_gpt2").replace(vocab_size=50_257)
    total = models.parameter_count(models.abstract_params(models.build(config)))
    with torch.device("meta"):
        fields = EXCHANGES["gpt2"].to_config(config)
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields))
    assert total == sum(p.numel() for p in theirs.parameters()) == 774_030_080


def test_without_a_start_token_the_first_residue_has_no_probability(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder with vocab.txt alone; the template that the documents show brings the token."""
    tokens = ["<unk>", "<s>", "</s>", *"ACDEFGHIKLMNPQRSTVWY"]
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    loaded = load_model(folder)
    assert "its first residue has no probability" in caplog.text
    (scored,) = likelihoods(loaded, ["MKV"])
    assert np.isfinite(scored.log_probabilities).tolist() == [False, True, True]

    page = (Path(__file__).parents[2] / "docs" / "exports.md").read_text()
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    shown["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps(shown))
    loaded = load_model(folder)
    assert (loaded.vocabulary.prefix_ids, loaded.vocabulary.suffix_ids) == ((1,), (2,))
    (scored,) = likelihoods(loaded, ["MKV"])
    assert np.isfinite(scored.log_probabilities).all()
