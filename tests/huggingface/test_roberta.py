"""RoBERTa's folders as `transformers` writes them: positions, vocabularies, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_folders import reconfigure
from safetensors.numpy import load_file

from protlm_jax.cli import main
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.huggingface import export, import_model, load_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# As of a model of antibodies: no rare residues, and its own order.
TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"DAGVLIKWEYSTCFPQNHRM"]
PROTEINS = {"heavy": "EVQLVESGGGLVQPGG", "light": "DIQMTQ", "one": "M"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """At random initialisation, with 18 rows of positions, and a vocab.json alone."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.RobertaConfig(
        vocab_size=25, intermediate_size=32, max_position_embeddings=22, type_vocab_size=1, **sizes
    )
    model = transformers.RobertaForMaskedLM(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # the rows before position 0, too
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(TOKENS)}))
    return tmp_path


def theirs(folder: Path, ids: list[int]) -> np.ndarray:
    model = transformers.RobertaForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        # Among padding, which does not move positions on.
        row = torch.tensor([ids + [1] * 3])
        hidden = model.roberta(row, attention_mask=(row != 1).long()).last_hidden_state
    return np.asarray(hidden[0, 1 : len(ids) - 1])


def test_streams_and_a_round_trip_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(folder)
    assert loaded.config.max_positions == 20 and loaded.config.position_offset == 2
    assert loaded.vocabulary.tokens == tuple(TOKENS)
    for name, found in embed_sequences(loaded, PROTEINS):
        ids = loaded.vocabulary.encode(PROTEINS[name]).tolist()
        assert (ids[0], ids[-1]) == (0, 2)
        expected = theirs(folder, ids)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    again = export(load_model(import_model(folder, tmp_path / "run")), tmp_path / "hf")
    before, after = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert all((before[name] == after[name]).all() for name in after)
    config = json.loads((again / "config.json").read_text())
    assert (config["pad_token_id"], config["max_position_embeddings"]) == (1, 22)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(again)
    for text in ("EVQ", "E V Q"):
        assert tokenizer(text)["input_ids"] == loaded.vocabulary.encode("EVQ").tolist()
    assert "token_type_ids" not in tokenizer("EVQ")


def test_verbs_read_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fasta = tmp_path / "x.fasta"
    fasta.write_text("".join(f">{name}\n{s}\n" for name, s in PROTEINS.items()) + ">no\nMBU\n")
    words = ["--model", str(folder), "--input", str(fasta), "--output"]
    assert main(["embed", *words, str(tmp_path / "e.h5"), "--rare_residues", "keep"]) == 3
    assert main(["score", *words, str(tmp_path / "s.csv"), "--rare_residues", "keep"]) == 3
    assert "EVQ" not in capsys.readouterr().err


def test_what_it_cannot_be_is_said(folder: Path) -> None:
    for fields, message in (
        ({"pad_token_id": 5}, "pad_token_id 5, which is the token 'D' here"),
        ({"max_position_embeddings": 2}, "2 of these rows belong to no position"),
        ({"hidden_act": "relu"}, "'hidden_act' is 'relu'"),
    ):
        before = json.loads((folder / "config.json").read_text())
        reconfigure(folder, **fields)
        with pytest.raises(ProtlmError, match=message):
            load_model(folder)
        reconfigure(folder, **{name: before[name] for name in fields})
    for name in ("config.json", "vocab.json"):
        (folder / name).unlink()
    (folder / "dict.txt").write_text("A 1\n")
    with pytest.raises(ProtlmError, match="is a model of fairseq: convert it"):
        load_model(folder)
