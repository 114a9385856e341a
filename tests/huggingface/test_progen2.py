"""ProGen2's folders: the published tokenizer and spellings, what is refused, both directions."""

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
from protlm_jax.evaluation.scoring.score import likelihoods, method_of
from protlm_jax.huggingface import load_model
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.vocabularies import PROGEN2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


FAMILY = "progen2"


def as_published(folder: Path, extra: tuple[str, ...] = ()) -> None:
    """The tokenizer of salesforce/progen: byte-level pieces of one letter, and no rule for ends."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    vocab = {token: i for i, token in enumerate((*PROGEN2.tokens, *extra))}
    added = [{"id": i, "content": PROGEN2.tokens[i], "special": True} for i in range(3)]
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    model = {"type": "BPE", "unk_token": None, "vocab": vocab, "merges": []}
    content = {"added_tokens": added, "post_processor": level, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_the_published_tokenizer_is_ours(folder: Path) -> None:
    as_published(folder)
    assert load_model(folder).vocabulary is PROGEN2


def test_a_tokenizer_of_one_more_token_has_the_same_ends(folder: Path) -> None:
    as_published(folder, extra=("J",))
    vocabulary = load_model(folder).vocabulary
    assert vocabulary.size == 31 and vocabulary.pad_id == 0
    assert vocabulary.decode(vocabulary.encode("MKV")) == "1MKV2"


@pytest.mark.parametrize(
    "gone", [("n_embd", "vocab_size"), ("embed_dim", "vocab_size_emb", "vocab_size_lm_head")]
)
def test_either_spelling_and_old_buffers_are_read(folder: Path, gone: tuple[str, ...]) -> None:
    mask = np.tril(np.ones((1, 1, 64, 64), np.float32))
    rewrite(folder, **{"transformer.h.0.attn.bias": mask})
    rewrite(folder, **{"transformer.h.0.attn.masked_bias": np.array(-1e9, np.float32)})
    reconfigure(folder, *gone)
    ours, found = zoo.loaded("progen2"), load_model(folder)
    assert found.config == ours.config and len(found.left) == 2
    jax.tree.map(np.testing.assert_array_equal, ours.params, found.params)


def test_the_shape_of_the_smallest_is_its_preset() -> None:
    fields = {"embed_dim": 1024, "n_layer": 12, "n_head": 16, "rotary_dim": 32}
    more = {"n_positions": 1024, "vocab_size_emb": 32, "vocab_size_lm_head": 32, "n_inner": None}
    assert EXCHANGES["progen2"].from_config(fields | more) == models.preset("progen2_small")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_head": 4}, "4 heads cannot be laid out in the 8 groups"),
        ({"vocab_size_lm_head": 30}, "'vocab_size_lm_head' is 30"),
        ({"tie_word_embeddings": True}, "'tie_word_embeddings' is True"),
        ({"scale_attn_weights": False}, "'scale_attn_weights' is False"),
        ({"n_layer": 3}, r"tensor transformer.h.2.ln_1.weight of shape \[32\] is missing"),
        ({"n_embd": 64, "embed_dim": 64}, r"config.json asks for \[32, 64\]"),
    ],
)
def test_other_models_of_the_type_are_refused(folder: Path, fields: Any, message: str) -> None:
    reconfigure(folder, **fields)
    with pytest.raises(ProtlmError, match=message):
        load_model(folder)


def test_a_projection_that_is_missing_or_of_another_size_is_named(folder: Path) -> None:
    require_named(folder, "transformer.h.0.attn.qkv_proj.weight")


def test_a_score_is_the_mean_of_both_directions(exported_once: Path) -> None:
    """Of the exported code's own log-likelihoods of 1...2 and of 2...1."""
    loaded = zoo.loaded("progen2")
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(exported_once, trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported_once, trust_remote_code=True)
    for sequence in ("MKTAYIAKQ", "GAVX"):
        ids = tokenizer(sequence, return_tensors="pt")["input_ids"]
        ways = []
        for row in (ids, ids.flip(1)):
            with torch.no_grad():
                chances = theirs(row).logits[0, :-1].double().log_softmax(-1)
            own = chances.gather(-1, row[0, 1:, None])[:-1, 0].numpy()  # but the closing token
            ways.append(own if row is ids else own[::-1])
        assert np.abs(ways[0] - ways[1]).max() > 1e-2
        expected = (ways[0] + ways[1]) / 2
        (score,) = likelihoods(loaded, [sequence], softmax="vocabulary")
        scored = np.array([residue != "X" for residue in sequence])
        np.testing.assert_allclose(score.log_probabilities[scored], expected[scored], atol=1e-4)
        assert np.isnan(score.log_probabilities[~scored]).all()
    assert method_of(loaded) == "autoregressive likelihood, the mean of both directions"
