"""Folders that `transformers` writes of models without their head, or with that of another task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo

from protlm_jax.data.rows import RowBatch, Shape
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.contacts.predict import own_head
from protlm_jax.evaluation.depth.metrics import why_not
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.engine import features
from protlm_jax.evaluation.scoring.score import likelihoods
from protlm_jax.huggingface import export, import_model, load_model
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.huggingface.tokenizers import write_tokenizer
from protlm_jax.models import LoadedModel, init_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SEQUENCE = "MKTAYIAKQRQISFVK"
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
}
ESM = {**BERT, "position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 32}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
XL = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "initializer_range": 0.3}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}

# Of each class without a head: the family, its config's fields, what is missing then, and a class
# with a head for another task.
CLASSES = {
    "EsmModel": ("esm2", ESM, ("head",), "EsmForTokenClassification"),
    "EsmcModel": ("esmc", BERT, ("head", "decoder"), "EsmcForTokenClassification"),
    "BertModel": ("bert", BERT, ("head",), "BertForSequenceClassification"),
    "AlbertModel": ("albert", {**BERT, "embedding_size": 12}, ("head",), "AlbertForTokenClass"
                    "ification"),
    "ElectraModel": ("electra", {**BERT, "embedding_size": 16}, ("head",), "ElectraForSequenceClass"
                     "ification"),
    "XLNetModel": ("xlnet", XL, ("head_bias",), "XLNetForSequenceClassification"),
    "T5EncoderModel": ("t5", T5, (), "T5ForTokenClassification"),
    "GPT2Model": ("gpt2", GPT2, (), "GPT2ForSequenceClassification"),
}  # fmt: skip


def written(cls: str, family: str, fields: dict[str, Any], folder: Path) -> Any:
    """A random model of the class, saved as `transformers` saves it, with our tokenizer's files."""
    kind = getattr(transformers, cls)
    vocabulary = zoo.ZOO[family].vocabulary
    config = kind.config_class(
        vocab_size=vocabulary.size, pad_token_id=vocabulary.pad_id, num_labels=3, **fields
    )
    torch.manual_seed(0)
    model = kind(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.eval().save_pretrained(folder)
    types = EXCHANGES["xlnet"].closing_type if family == "xlnet" else None
    write_tokenizer(vocabulary, folder, closing_type=types)
    return model


def ours(loaded: LoadedModel) -> np.ndarray:
    """The embedding [residues, d_model]."""
    ((_, found),) = embed_sequences(loaded, {"p": SEQUENCE}, devices=1)
    return found


def theirs(loaded: LoadedModel, folder: Path) -> np.ndarray:
    """The same by `AutoModel`; of T5 by its encoder class."""
    auto = transformers.T5EncoderModel if "t5" in loaded.config.family else transformers.AutoModel
    model = auto.from_pretrained(folder).eval()
    batch = transformers.AutoTokenizer.from_pretrained(folder)(SEQUENCE, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).last_hidden_state[0].numpy()


def assert_same(loaded: LoadedModel, folder: Path) -> None:
    before = len(loaded.vocabulary.prefix_ids)
    expected = theirs(loaded, folder)[before : before + len(SEQUENCE)]
    np.testing.assert_allclose(ours(loaded), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("cls", CLASSES)
def test_a_body_is_read_and_its_head_is_named(cls: str, tmp_path: Path) -> None:
    family, fields, missing, classifier = CLASSES[cls]
    written(cls, family, fields, tmp_path / "body")
    loaded = load_model(tmp_path / "body")
    assert loaded.missing == missing
    assert_same(loaded, tmp_path / "body")
    if missing:
        with pytest.raises(ProtlmError, match=r"stored without the .* head \(\w+"):
            list(likelihoods(loaded, [SEQUENCE]))
        assert "stored without" in str(why_not("logit_lens", loaded.model, "encoder", 2))
        with pytest.raises(ProtlmError, match="stored without .* cannot be exported"):
            export(loaded, tmp_path / "export")
        with pytest.raises(ProtlmError, match="stored without .* cannot become a run"):
            import_model(tmp_path / "body", tmp_path / "run")
        with pytest.raises(ProtlmError, match="stored without"):  # whoever asks it for logits
            loaded.model.apply({"params": loaded.params}, _batch(loaded))
        init_params(loaded.model, 0)  # a re-initialised copy is of the same class
    assert why_not("contributions", loaded.model, "encoder", 2) is None

    written(classifier, family, fields, tmp_path / "classifier")
    other = load_model(tmp_path / "classifier")
    assert other.missing == missing
    assert any("a head for another task" in line for line in other.left)
    assert_same(other, tmp_path / "classifier")


def _batch(loaded: LoadedModel) -> Any:
    ids = loaded.vocabulary.encode(SEQUENCE)
    return features(loaded, RowBatch([0], [0], [0], Shape(1, len(ids))), [ids])


def test_a_t5_of_its_own_head_is_not_given_the_embedding_for_it(tmp_path: Path) -> None:
    untied = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    written("T5Model", "t5", untied, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"tie_word_embeddings": False, "scale_decoder_outputs": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(tmp_path)
    assert loaded.missing == ("head_kernel",)
    assert np.isnan(np.asarray(loaded.params["head_kernel"])).all()
    assert_same(loaded, tmp_path)


def test_a_contact_head_may_be_missing_alone(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = export(zoo.loaded("esm2"), tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: array for name, array in tensors.items() if "contact_head" not in name}
    save_file(kept, folder / "model.safetensors")
    loaded = load_model(folder)
    assert loaded.missing == ("contact_head",)
    with pytest.raises(ProtlmError, match=r"stored without the contact head"):
        own_head(loaded)
    (score,) = likelihoods(loaded, [SEQUENCE])
    assert np.isfinite(score.total)
    partly = kept | {"esm.contact_head.regression.bias": np.zeros(1, np.float32)}
    save_file(partly, folder / "model.safetensors")
    with pytest.raises(ProtlmError, match=r"tensor esm.contact_head.regression.weight .* missing"):
        load_model(folder)
