"""Folders as `transformers` itself writes them, of models that are not quite ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import heldout
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.scoring.score import likelihoods
from protlm_jax.huggingface import export, import_model, load_model
from protlm_jax.models import LoadedModel
from protlm_jax.vocabularies import VOCABULARIES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROTEINS = {"a": "MKTAYIAKQRQISFVKSHFSRQ", "b": "MKV", "c": "GAVLIWCX"}
TOKENS = ["[MASK]", *"YWVTSRQPNMLKIHGFEDCAXBUZO", "-", ".", "[CLS]", "[SEP]", "[UNK]", "|", "[PAD]"]


def randomise(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def bert_tokenizer(folder: Path) -> Any:
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    return transformers.BertTokenizer.from_pretrained(folder)


def bert_config(**changes: Any) -> Any:
    fields = {
        "vocab_size": 33,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "pad_token_id": 32,
    }
    return transformers.BertConfig(**{**fields, **changes})


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """33 tokens in an order of their own, a pooler, two token types, 512 positions."""
    randomise(transformers.BertForPreTraining(bert_config())).save_pretrained(tmp_path)
    bert_tokenizer(tmp_path).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    return tmp_path


def logits(loaded: LoadedModel, rows: list[list[int]]) -> list[np.ndarray]:
    """Ours, of each row among padding on the right."""
    length = max(map(len, rows)) + 2
    ids = np.full((len(rows), length), loaded.vocabulary.pad_id, np.int32)
    seen = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], seen[i, : len(row)] = row, 1
    positions = np.tile(np.arange(length, dtype=np.int32), (len(rows), 1))
    batch = {"input_tokens": ids, "segment_ids": seen, "positions": positions}
    if loaded.config.num_decoder_layers:
        batch = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in batch.items()}
        shifted = np.pad(ids, ((0, 0), (1, 0)))[:, :-1]
        batch["decoder_input_tokens"] = shifted
    out = jax.jit(loaded.model.apply)({"params": loaded.params}, batch)
    return [np.asarray(x)[: len(row)] for x, row in zip(out, rows, strict=True)]


def compare(folder: Path, architecture: str) -> LoadedModel:
    """Our logits and ids against those of transformers, from one folder."""
    loaded = load_model(folder)
    theirs = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32).eval()
    rows = [loaded.vocabulary.encode(sequence).tolist() for sequence in PROTEINS.values()]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert rows == tokenizer([" ".join(s) for s in PROTEINS.values()])["input_ids"]
    for row, ours in zip(rows, logits(loaded, rows), strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            out = theirs(ids, labels=ids) if loaded.config.num_decoder_layers else theirs(ids)
        expected = out.logits[0].numpy()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    return loaded


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_bert_with_another_vocabulary(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="protlm_jax"):
        loaded = compare(bert, "BertForMaskedLM")
    assert "bert.pooler.dense.weight" in caplog.text
    vocabulary, config = loaded.vocabulary, loaded.config
    assert config.vocabulary == vocabulary.name and vocabulary.name.startswith("custom-")
    assert (config.max_positions, config.type_vocab_size, vocabulary.pad_id) == (512, 2, 32)

    again = export(loaded, tmp_path / "again")
    assert_same(compare(again, "BertForMaskedLM").params, loaded.params)
    tokenizer = transformers.AutoTokenizer.from_pretrained(again)
    assert tokenizer("MKV")["input_ids"] == tokenizer("M K V")["input_ids"]

    run = import_model(bert, tmp_path / "run")
    monkeypatch.delitem(VOCABULARIES, vocabulary.name)  # as in a process that knows only the run
    from_run = load_model(run)
    assert from_run.vocabulary == vocabulary
    assert_same(from_run.params, loaded.params)
    (run / "vocabulary.json").unlink()
    monkeypatch.delitem(VOCABULARIES, vocabulary.name)
    with pytest.raises(ProtlmError, match=r"vocabulary.json cannot be read"):
        load_model(run)


def test_padding_that_is_not_zero_leaks_nowhere(bert: Path) -> None:
    loaded = load_model(bert)
    together = dict(embed_sequences(loaded, PROTEINS))
    model = transformers.BertForMaskedLM.from_pretrained(bert).eval()
    for name, sequence in PROTEINS.items():
        with torch.no_grad():
            ids = torch.tensor([loaded.vocabulary.encode(sequence).tolist()])
            expected = model.bert(ids).last_hidden_state[0, 1:-1].numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(together[name], expected, rtol=0, atol=1e-4 * scale)


def test_bert_sharded_and_in_half_precision(bert: Path, tmp_path: Path) -> None:
    whole = load_model(bert).params
    model = transformers.BertForMaskedLM.from_pretrained(bert)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    for name, dtype in (("whole", torch.float32), ("half", torch.float16), ("b", torch.bfloat16)):
        folder = tmp_path / name
        model.to(dtype).save_pretrained(folder, max_shard_size="20KB")
        tokenizer.save_pretrained(folder)
        assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
        params = compare(folder, "BertForMaskedLM").params
        if name == "whole":
            assert_same(params, whole)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_a_table_with_more_rows_than_tokens(tmp_path: Path) -> None:
    model = randomise(transformers.BertForMaskedLM(bert_config(vocab_size=128)))
    model.save_pretrained(tmp_path)
    bert_tokenizer(tmp_path)
    loaded = compare(tmp_path, "BertForMaskedLM")
    assert (loaded.config.vocab_size, loaded.vocabulary.size) == (128, 33)
    again = export(loaded, tmp_path / "again")
    assert_same(compare(again, "BertForMaskedLM").params, loaded.params)

    (tmp_path / "vocab.txt").write_text("\n".join([*TOKENS, *map(str, range(96))]))
    with pytest.raises(ProtlmError, match="vocab_size 128, the tokenizer has 129 tokens"):
        load_model(tmp_path)


def t5_as_saved(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """By transformers 5: both fields are there, tie_word_embeddings always true."""


def t5_old(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """As ProtT5's published config.json: neither field."""
    del config["tie_word_embeddings"], config["scale_decoder_outputs"]


def t5_untied(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """By transformers 4: a head of its own and the field that says so."""
    del config["scale_decoder_outputs"]
    config["tie_word_embeddings"] = False
    head = np.random.default_rng(1).standard_normal(tensors["shared.weight"].shape)
    tensors["lm_head.weight"] = head.astype(np.float32)


@pytest.mark.parametrize(
    ("tie", "change", "tied", "feed_forward"),
    [
        (True, t5_as_saved, True, "gated-gelu"),
        (False, t5_as_saved, False, "relu"),
        (True, t5_old, True, "relu"),
        (False, t5_untied, False, "gated-gelu"),
        (False, t5_untied, False, "gated-silu"),
    ],
)
def test_t5_heads(
    tmp_path: Path,
    tie: bool,
    change: Callable[[dict[str, Any], dict[str, np.ndarray]], None],
    tied: bool,
    feed_forward: str,
) -> None:
    folder = tmp_path / "t5"
    config = transformers.T5Config(
        vocab_size=140,
        d_model=24,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj=feed_forward,
        tie_word_embeddings=tie,
        decoder_start_token_id=0,
    )
    randomise(transformers.T5ForConditionalGeneration(config)).save_pretrained(folder)
    pieces = [(t, -1.0) for t in ("<pad>", "</s>", "<unk>")]
    pieces += [("\u2581" + a, -2.0) for a in "AXYWVTSRQPNMLKIHGFEDCBUZO"]
    transformers.T5Tokenizer(vocab=pieces, extra_ids=100).save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(fields, tensors)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    loaded = compare(folder, "T5ForConditionalGeneration")
    assert loaded.config.tie_embeddings == tied == ("head_kernel" not in loaded.params)
    assert loaded.config.gated_mlp == feed_forward.startswith("gated")
    again = export(loaded, tmp_path / "again")
    assert_same(compare(again, "T5ForConditionalGeneration").params, loaded.params)


def test_an_encoder_alone_is_embedded_and_predicts_nothing(tmp_path: Path) -> None:
    """As prot_t5_xl_half_uniref50-enc is published: half precision, no tensor of a decoder."""
    config = transformers.T5Config(
        vocab_size=128, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    model = randomise(transformers.T5EncoderModel(config)).half()
    model.save_pretrained(tmp_path / "enc")
    pieces = [(t, -1.0) for t in ("<pad>", "</s>", "<unk>")]
    pieces += [("\u2581" + a, -2.0) for a in "AXYWVTSRQPNMLKIHGFEDCBUZO"]
    tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=100)
    tokenizer.save_pretrained(tmp_path / "enc")
    stored = load_file(tmp_path / "enc" / "model.safetensors")
    assert {x.dtype for x in stored.values()} == {np.dtype(np.float16)}
    assert not any("decoder" in name for name in stored)

    loaded = load_model(tmp_path / "enc")
    again = load_model(export(loaded, tmp_path / "again"))
    imported = load_model(import_model(tmp_path / "enc", tmp_path / "run"))
    for one in (again, imported):
        assert_same(one.params, loaded.params)
    model = transformers.T5EncoderModel.from_pretrained(tmp_path / "again").float().eval()
    for name, array in embed_sequences(loaded, PROTEINS):
        batch = tokenizer(" ".join(PROTEINS[name]), return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state[0, :-1].numpy()
        np.testing.assert_allclose(array, hidden, atol=1e-5 * np.abs(hidden).max())

    for refused in (
        lambda: likelihoods(loaded, PROTEINS),
        lambda: heldout.evaluate(loaded, PROTEINS, np.full(20, 0.05), 0),
        lambda: loaded.model.head({}),
    ):
        with pytest.raises(ProtlmError, match="has no head"):
            refused()
