"""Folders as people hold them: wrapped, adapters, pointers, and with a tokenizer of their own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import zoo
from safetensors.numpy import load_file, save_file

from protlm_jax.cli import main
from protlm_jax.data.config import DataConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import verbs
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.huggingface import export, import_model, load_model
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.huggingface.load import read_architecture
from protlm_jax.huggingface.tokenizers import write_tokenizer
from protlm_jax.vocabularies import ESM2, ResidueError, normalise

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 30061736\n"


@pytest.fixture(scope="module")
def esm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ESM-2 as it is published: vocab.txt alone, with no word on lengths in the tokenizer."""
    folder = export(zoo.loaded("esm2"), tmp_path_factory.mktemp("hf") / "esm2")
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (folder / name).unlink()
    config = {"model_max_length": 10**30, "tokenizer_class": "EsmTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(esm2: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(esm2, tmp_path / "model"))


def rename(folder: Path, before: str, body: str = "esm.") -> None:
    """Puts `before` before every name, and `body` in place of "esm."."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {before + name.replace("esm.", body, 1): x for name, x in tensors.items()}
    save_file(renamed, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("before", "body"),
    [
        *((p, "esm.") for p in ("module.", "_orig_mod.", "model.", "net.", "model.net.")),
        ("module.", ""),
    ],
)
def test_a_prefix_before_every_name_is_left_out_and_named(
    folder: Path, before: str, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    rename(folder, before, body)
    found = load_model(folder)
    jax.tree.map(np.testing.assert_array_equal, found.params, zoo.loaded("esm2").params)
    assert found.left == (f"{before} (a prefix of the tensors' names)",)
    assert f"without '{before}' before them" in caplog.text


def test_what_stands_beside_the_body_is_named_but_nothing_in_it_is_ignored(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    extra = np.zeros((2, 2), np.float32)
    save_file({**tensors, "my_head.weight": extra}, folder / "model.safetensors")
    assert load_model(folder).left == ("my_head.weight (belongs to a head for another task)",)
    for name in ("esm.encoder.layer.0.lora_A.weight", "prompt.weight"):
        save_file({**tensors, name: extra}, folder / "model.safetensors")
        with pytest.raises(ProtlmError, match=f"tensor {name} of shape .* has no place"):
            load_model(folder)


def test_an_adapter_is_named_with_its_base(tmp_path: Path) -> None:
    about = {"peft_type": "LORA", "base_model_name_or_path": "no/such/model"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    match = "is an adapter of no/such/model, which is not there: put that model, or a link to it"
    with pytest.raises(ProtlmError, match=match):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "vocab.txt"])
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(POINTER)
    with pytest.raises(ProtlmError, match=f"{name} is a pointer of Git LFS.*git lfs pull"):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ProtlmError, match=f"{name} is not an ordinary file"):
        load_model(folder)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x", "a" * 300, 1, [], "", "x\0", ".."])
def test_an_index_names_files_of_its_folder(folder: Path, name: object) -> None:
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name, "b": "c.safetensors"}}))
    with pytest.raises(ProtlmError, match=r"index.json names .*(not the name|not in the folder)"):
        load_model(folder)


def test_the_folders_tokenizer_decides_on_rare_residues(folder: Path, tmp_path: Path) -> None:
    """As transformers' EsmTokenizer has them: B 25, U 26, Z 27, O 28; through import and export."""
    loaded = load_model(folder)
    assert loaded.rare_residues == "keep"
    rare = {"a": "MKUBZO"}
    ((_, kept),) = embed_sequences(loaded, rare)
    ((_, as_x),) = embed_sequences(verbs.with_residues(loaded, "X"), rare)
    assert np.abs(kept - as_x).max() > 0.01
    run = import_model(folder, tmp_path / "run")
    assert load_model(run).rare_residues == "keep"
    again = export(load_model(run), tmp_path / "again")
    assert load_model(again).rare_residues == "keep"
    mapped = export(load_model(run), tmp_path / "mapped", rare_residues="X")
    assert load_model(mapped).rare_residues == "X"
    with pytest.raises(ProtlmError, match="cannot refuse a residue"):
        export(loaded, tmp_path / "no", rare_residues="error")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("UBZO")["input_ids"] == [0, 26, 25, 27, 28, 2] == ESM2.encode("UBZO").tolist()
    ids = [
        transformers.AutoTokenizer.from_pretrained(f)("UX")["input_ids"] for f in (again, mapped)
    ]
    assert ids == [[0, 26, 24, 2], [0, 24, 24, 2]]


@pytest.mark.parametrize("family", ["bert", "t5", "esmc", "progen2"])
def test_usage_decides_where_the_tokenizer_does_not(family: str, tmp_path: Path) -> None:
    """Users of ProtTrans's models map rare residues to X before the tokenizer sees them."""
    folder = export(zoo.loaded(family), tmp_path / "hf", rare_residues="keep")
    assert load_model(folder).rare_residues == "keep"  # ours says so
    config = json.loads((folder / "config.json").read_text())
    del config["protlm_jax_version"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(folder).rare_residues == ("X" if family in ("bert", "t5") else "keep")


def test_rare_residues_are_counted_said_and_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fasta, output = tmp_path / "x.fa", str(tmp_path / "s.csv")
    fasta.write_text(">a\nMKUUB\n>b\nMKV\n>c\nMUUV\n")
    command = ["score", "--model", str(folder), "--input", str(fasta), "--output", output]
    assert main(command) == 0
    assert "rare residues: 4 U, 1 B in 2 sequences, read as they are" in capsys.readouterr().out
    assert main([*command, "--rare_residues", "error"]) == 3
    said = capsys.readouterr().out
    assert "'a', position 3: 'U' is a rare residue" in said
    assert "2 sequences, refused" in said
    with pytest.raises(ResidueError, match="position 2: 'O'"):
        normalise("MO", verbs.with_residues(load_model(folder), "error").policy, record="x")


def test_the_models_own_length_decides_windows(folder: Path) -> None:
    loaded = load_model(folder)
    assert verbs.window_of(loaded) == 1022
    assert verbs.window_of(loaded, 100) == 100
    tokenizer = {"model_max_length": 514}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert verbs.window_of(load_model(folder)) == 512


def test_windows_of_runs_their_exports_and_of_tables(tmp_path: Path) -> None:
    for family, window in (("bert", 62), ("t5", 4095), ("xlnet", 4094)):
        assert verbs.window_of(zoo.loaded(family)) == window
    with pytest.raises(ProtlmError, match="a window of 63 residues does not fit"):
        verbs.row_of(zoo.loaded("bert"), 63)
    folder = export(zoo.loaded("transformer_xl"), tmp_path / "hf")
    run = import_model(folder, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config = {"model": config["model"], "data": {"length": 40, "task": "stream"}}
    (run / "config.json").write_text(json.dumps(config))
    memory = config["model"]["memory_length"]
    trained = load_model(run)
    assert verbs.row_of(trained) == 40 + memory
    assert verbs.row_of(trained) == verbs.trained_length(trained, verbs.data_of(run))
    assert verbs.row_of(load_model(export(trained, tmp_path / "again"))) == 40 + memory


BROKEN_CONFIGS = [
    {"num_attention_heads": 0}, {"num_attention_heads": "2"}, {"vocab_size": "33"},
    {"architectures": 5}, {"architectures": [{}]}, {"hidden_act": {}}, {"layer_norm_eps": "x"},
    {"hidden_dropout_prob": "x"}, {"hidden_dropout_prob": 1e400}, {"hidden_size": 10**12},
    {"num_hidden_layers": 10**9}, {"num_hidden_layers": 100_000}, {"hidden_size": 2**31 - 1},
    {"intermediate_size": None}, {"num_attention_heads": True}, {"token_dropout": "yes"},
    {"position_embedding_type": []}, {"model_type": ["esm"]}, {"model_type": {}},
    {"max_position_embeddings": "long"}, {"initializer_range": 10**400},
]  # fmt: skip


@pytest.mark.parametrize("fields", BROKEN_CONFIGS, ids=str)
def test_a_field_of_another_type_or_size_is_one_error(folder: Path, fields: dict) -> None:
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ProtlmError, match=r"config\.json"):
        load_model(folder)


def _architecture(folder: Path, fields: dict[str, object]) -> bool:
    """Whether the config is read; all but ProtlmError is a fault."""
    (folder / "config.json").write_text(json.dumps(fields))
    try:
        return bool(read_architecture(folder))
    except ProtlmError as error:
        assert "config.json" in str(error) and "\n" not in str(error)
        return False


@pytest.mark.parametrize("family", EXCHANGES)
def test_numbers_of_every_family_are_typed(family: str, tmp_path: Path) -> None:
    exchange = EXCHANGES[family]
    specimen = zoo.ZOO.get(family) or zoo.ZOO[family.partition("_")[0]]
    fields = exchange.to_config(specimen.config.replace(family=family, generator_shrink=0))
    fields |= {"architectures": [exchange.architecture], "model_type": exchange.model_type}
    write_tokenizer(specimen.vocabulary, tmp_path)
    assert _architecture(tmp_path, fields)
    sizes = [name for name, value in fields.items() if type(value) is int and value > 1]
    refused = {
        name: [_architecture(tmp_path, fields | {name: v}) for v in (0, -1, "2", [], 10**12)]
        for name in sizes
    }
    assert sum(not any(read) for read in refused.values()) >= 4, refused


VOCAB = {token: i for i, token in enumerate(ESM2.tokens)}
CLS = {"type": "TemplateProcessing", "special_tokens": {}, "single": []}
BROKEN_TOKENIZERS = [
    {"model": {"vocab": {**VOCAB, "zz": 1 << 40}}}, {"model": {"vocab": {**VOCAB, "A": "5"}}},
    {"model": {"vocab": {**VOCAB, "A": 5.0}}}, {"model": {"vocab": {**VOCAB, "A": -1}}},
    {"model": {"vocab": 5}}, {"model": {"vocab": [["A"]]}}, {"model": []}, {"model": None},
    {"model": {"vocab": VOCAB}, "added_tokens": [{"id": 3, "content": None}]},
    {"model": {"vocab": VOCAB}, "added_tokens": {"id": 3}},
    {"model": {"vocab": VOCAB}, "post_processor": CLS},
    {"model": {"vocab": VOCAB}, "post_processor": {"type": "BertProcessing", "cls": []}},
    {"model": {"vocab": VOCAB}, "post_processor": {"type": "BertProcessing", "cls": ["", "x"],
     "sep": ["", 0]}},
    {"model": {"vocab": VOCAB, "unk_token": "<unk>"}, "normalizer": {"type": "Replace"}},
    {"model": {"vocab": VOCAB, "unk_token": "<unk>"}, "normalizer": 5},
]  # fmt: skip


@pytest.mark.parametrize("content", BROKEN_TOKENIZERS, ids=range(len(BROKEN_TOKENIZERS)))
def test_a_tokenizer_that_is_none_is_one_error(folder: Path, content: dict) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ProtlmError, match=r"tokenizer\.json"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer_config.json", '{"added_tokens_decoder": [5]}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"30": "q"}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"30": {"content": 4}}}'),
        ("added_tokens.json", '{"q": "z"}'),
        ("added_tokens.json", '{"q": []}'),
        ("config.json", "[" * 200_000),
        ("tokenizer_config.json", "[" * 200_000),
        ("vocab.txt", b"\xff\xfeA"),
    ],
)
def test_small_files_of_another_content_are_one_error(folder: Path, name: str, text: str) -> None:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ProtlmError):
        load_model(folder)


def test_a_name_too_long_is_one_error() -> None:
    for path in ("x" * 5000, "a\0b"):
        with pytest.raises(ProtlmError, match="is no name of a folder|is not a folder"):
            load_model(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"data": {"new_field": 1}},
            "'new_field'; it was written by a newer",
        ),
        ({"data": {"length": "x"}}, r"data.length is 'x'; it must be of type int"),
        ({"data": []}, "data must be an object"),
        ({"data": {"rare_residues": "Q"}}, "choose one of 'X', 'keep'"),
    ],
)
def test_a_run_of_another_version_is_one_error(fields: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model": {}, **fields}))
    with pytest.raises(ProtlmError, match=message):
        verbs.data_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": {}, "objective": {"rate": "x"}}))
    with pytest.raises(ProtlmError, match=r"objective.rate is 'x'"):
        verbs.rate_of(tmp_path)
    assert verbs.data_of(tmp_path) == DataConfig()
