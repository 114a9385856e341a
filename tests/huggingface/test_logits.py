"""Our logits against PyTorch's, with the same weights and with padding, in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protlm_jax.huggingface import export, load_model
from protlm_jax.models import LoadedModel
from protlm_jax.vocabularies import PROT_BERT, PROT_T5

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "MKV", "GAVLIWCX"]


def padded(rows: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, length] padded with 0 on the right, and the mask of what is real."""
    ids = np.stack([np.pad(row, (0, length - len(row))) for row in rows]).astype(np.int32)
    mask = np.stack([np.arange(length) < len(row) for row in rows]).astype(np.int32)
    return ids, mask


def assert_close(ours: Any, theirs: Any, mask: np.ndarray) -> None:
    """Equal to 1e-4 of the largest logit, wherever there is no padding."""
    ours, theirs = np.asarray(ours)[mask > 0], theirs.detach().numpy()[mask > 0]
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def compare_bert(loaded: LoadedModel, model: Any) -> None:
    ids, mask = padded([PROT_BERT.encode(p) for p in PROTEINS], 26)
    positions = np.broadcast_to(np.arange(26, dtype=np.int32), ids.shape)
    batch = {"input_tokens": ids, "segment_ids": mask, "positions": positions}
    ours = loaded.model.apply({"params": loaded.params}, jax.tree.map(jnp.asarray, batch))
    with torch.no_grad():
        theirs = model(torch.tensor(ids).long(), attention_mask=torch.tensor(mask)).logits
    assert_close(ours, theirs, mask)


def t5_batch() -> tuple[dict[str, jax.Array], np.ndarray, np.ndarray]:
    """The proteins whole on the decoder's side, with hidden residues on the encoder's."""
    targets = [PROT_T5.encode(p) for p in PROTEINS]
    sources = [np.where(np.arange(len(t)) % 4 == 1, PROT_T5.mask_id, t) for t in targets]
    shifted = [np.concatenate([[PROT_T5.pad_id], t[:-1]]) for t in targets]
    source, source_mask = padded(sources, 25)
    inputs, mask = padded(shifted, 24)
    batch = {
        "encoder_input_tokens": source,
        "encoder_segment_ids": source_mask,
        "encoder_positions": np.broadcast_to(np.arange(25, dtype=np.int32), source.shape),
        "decoder_input_tokens": inputs,
        "decoder_segment_ids": mask,
        "decoder_positions": np.broadcast_to(np.arange(24, dtype=np.int32), inputs.shape),
    }
    return jax.tree.map(jnp.asarray, batch), source_mask, mask


def compare_t5(loaded: LoadedModel, model: Any) -> None:
    batch, source_mask, mask = t5_batch()
    ours = loaded.model.apply({"params": loaded.params}, batch)
    with torch.no_grad():
        theirs = model(
            torch.tensor(np.array(batch["encoder_input_tokens"])).long(),
            attention_mask=torch.tensor(source_mask),
            decoder_input_ids=torch.tensor(np.array(batch["decoder_input_tokens"])).long(),
            decoder_attention_mask=torch.tensor(mask),
        ).logits
    assert_close(ours, theirs, mask)


COMPARE = {"bert": compare_bert, "t5": compare_t5}
AUTO = {"bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}


def test_export_gives_the_same_logits_in_torch(
    family: str, loaded: LoadedModel, exported: Path
) -> None:
    model, report = getattr(transformers, AUTO[family]).from_pretrained(
        exported, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    COMPARE[family](loaded, model.eval())


def test_torch_model_gives_the_same_logits_here(
    family: str, exported: Path, tmp_path: Path
) -> None:
    """A model that torch initialised and saved, with only the tokenizer taken from our export."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(exported)
    model = getattr(transformers, AUTO[family]).from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((exported / "tokenizer.json").read_bytes())
    COMPARE[family](load_model(tmp_path), model)


def test_embeddings_are_those_of_the_encoder(
    family: str, loaded: LoadedModel, exported: Path
) -> None:
    if family == "bert":
        ids, mask = padded([PROT_BERT.encode(p) for p in PROTEINS], 26)
        positions = np.broadcast_to(np.arange(26, dtype=np.int32), ids.shape)
        batch = {"input_tokens": ids, "segment_ids": mask, "positions": positions}
        model = transformers.BertModel.from_pretrained(exported, add_pooling_layer=False)
    else:
        batch, mask, _ = t5_batch()
        ids = np.array(batch["encoder_input_tokens"])
        model = transformers.T5EncoderModel.from_pretrained(exported)
    ours = loaded.model.apply(
        {"params": loaded.params}, jax.tree.map(jnp.asarray, batch), method="hidden"
    )
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(ids).long(), attention_mask=torch.tensor(mask))
    assert_close(ours, theirs.last_hidden_state, mask)


def test_export_comes_back_bit_for_bit(loaded: LoadedModel, exported: Path, tmp_path: Path) -> None:
    back = load_model(exported)
    assert back.vocabulary == loaded.vocabulary
    assert back.config == loaded.config.replace(mlp_dropout=back.config.mlp_dropout)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, back.params)
    again = export(back, tmp_path / "hf")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (again / file).read_bytes() == (exported / file).read_bytes()
