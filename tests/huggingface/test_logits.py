"""Our logits against PyTorch's, with the same weights and with padding, in both directions."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from protlm_jax.huggingface import export, load_model
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.models import LoadedModel
from protlm_jax.models.identity import identity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "MKV", "GAVLIWCX"]


def padded(rows: list[np.ndarray], length: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, length] padded with `fill` on the right, and the mask of what is real."""
    pad = {"constant_values": fill}
    ids = np.stack([np.pad(row, (0, length - len(row)), **pad) for row in rows]).astype(np.int32)
    mask = np.stack([np.arange(length) < len(row) for row in rows]).astype(np.int32)
    return ids, mask


def assert_close(ours: Any, theirs: Any, mask: np.ndarray) -> None:
    """Equal to 1e-4 of the largest logit, wherever there is no padding."""
    ours, theirs = np.asarray(ours)[mask > 0], theirs.detach().numpy()[mask > 0]
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def features(
    loaded: LoadedModel, folder: Path
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The proteins among padding for us, and for transformers by the tokenizer of the folder.

    For an encoder-decoder they stand whole on the decoder's side, with hidden residues on the
    encoder's, where there is more padding.
    """
    vocabulary = loaded.vocabulary
    proteins = PROTEINS if "X" in vocabulary.tokens else [p.replace("X", "A") for p in PROTEINS]
    targets = [vocabulary.encode(protein) for protein in proteins]
    if not loaded.config.num_decoder_layers:
        ids, mask = padded(targets, 26, vocabulary.pad_id)
        ours = {"input_tokens": ids, "segment_ids": mask, "positions": places(ids)}
        trust = EXCHANGES[loaded.config.family].trust
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **trust)
        theirs = tokenizer(proteins, padding="max_length", max_length=26, return_tensors="np")
        np.testing.assert_array_equal(theirs["input_ids"], ids)
        return ours, dict(theirs)
    sources = [np.where(np.arange(len(t)) % 4 == 1, vocabulary.mask_id, t) for t in targets]
    source, source_mask = padded(sources, 25, 0)
    inputs, mask = padded([np.concatenate([[0], t[:-1]]) for t in targets], 24, 0)
    ours = {
        "encoder_input_tokens": source,
        "encoder_segment_ids": source_mask,
        "encoder_positions": places(source),
        "decoder_input_tokens": inputs,
        "decoder_segment_ids": mask,
        "decoder_positions": places(inputs),
    }
    return ours, {
        "input_ids": source,
        "attention_mask": source_mask,
        "decoder_input_ids": inputs,
        "decoder_attention_mask": mask,
    }


def places(ids: np.ndarray) -> np.ndarray:
    return np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1))


def answers(model: Any, inputs: dict[str, np.ndarray]) -> Any:
    with torch.no_grad():
        return model.eval()(**{name: torch.tensor(x).long() for name, x in inputs.items()})


def compare(loaded: LoadedModel, model: Any, folder: Path) -> None:
    ours, theirs = features(loaded, folder)
    mask = theirs.get("decoder_attention_mask", theirs["attention_mask"])
    logits = jax.jit(loaded.model.apply)({"params": loaded.params}, ours)
    expected = answers(model, theirs).logits
    assert_close(logits.reshape(expected.shape), expected, mask)


def their_class(family: str) -> Any:
    return getattr(transformers, EXCHANGES[family].loads_as)


def test_export_gives_the_same_logits_in_torch(
    family: str, loaded: LoadedModel, exported: Path
) -> None:
    trust = EXCHANGES[family].trust
    load = functools.partial(their_class(family).from_pretrained, exported, **trust)
    model, report = load(output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    compare(loaded, model, exported)


def test_torch_model_gives_the_same_logits_here(
    family: str, exported: Path, tmp_path: Path
) -> None:
    """A model that torch initialised and saved, with only the tokenizer taken from our export."""
    torch.manual_seed(0)
    trust = EXCHANGES[family].trust
    config = transformers.AutoConfig.from_pretrained(exported, **trust)
    theirs = their_class(family)
    model = theirs.from_config(config, **trust) if trust else theirs(config)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((exported / "tokenizer.json").read_bytes())
    compare(load_model(tmp_path), model, exported)


def test_embeddings_are_those_of_the_encoder(
    family: str, loaded: LoadedModel, exported: Path
) -> None:
    ours, theirs = features(loaded, exported)
    name = "T5EncoderModel" if family == "t5" else "AutoModel"
    model = getattr(transformers, name).from_pretrained(exported, **EXCHANGES[family].trust)
    theirs = {name: x for name, x in theirs.items() if not name.startswith("decoder")}
    hidden = jax.jit(functools.partial(loaded.model.apply, method="hidden"))
    found = hidden({"params": loaded.params}, ours)
    assert_close(found, answers(model, theirs).last_hidden_state, theirs["attention_mask"])


def test_export_comes_back_bit_for_bit(loaded: LoadedModel, exported: Path, tmp_path: Path) -> None:
    back = load_model(exported)
    assert back.vocabulary == loaded.vocabulary
    assert back.config == loaded.config.replace(mlp_dropout=back.config.mlp_dropout)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, back.params)
    assert identity(back) == identity(loaded)
    again = export(back, tmp_path / "hf")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (again / file).read_bytes() == (exported / file).read_bytes()
