"""T5X's checkpoints in all their layouts, built by hand from a T5 of transformers; no T5X needed.

The weights come back through `load_model` and `export`: bit for bit what transformers had.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
import zoo
from safetensors.numpy import load_file

from protlm_jax.cli import main
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import export, import_model, load_model, provenance
from protlm_jax.huggingface.load import load_source, read_architecture
from protlm_jax.t5x_bridge.checkpoints import write_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Tree = dict[str, np.ndarray]
HEADS = 2
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # T5 1.1, and ProtT5:
RELU = {"feed_forward_proj": "relu", "tie_word_embeddings": True}


def reference(**fields: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=128, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=3,
        num_heads=HEADS, decoder_start_token_id=0, **fields,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    if not fields[
        "tie_word_embeddings"
    ]:  # transformers 5 ties the head of a new model all the same
        model.lm_head.weight = torch.nn.Parameter(torch.randn(128, 16))
    return model


def examples_t5(model: Any) -> Tree:
    """The names and shapes of T5X's `examples/t5/network.py`."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    tree = {"token_embedder/embedding": state["shared.weight"]}
    if model.lm_head.weight is not model.shared.weight:
        tree["decoder/logits_dense/kernel"] = state["lm_head.weight"].T
    sublayers = {
        "encoder": {"SelfAttention": ("attention", "attention")},
        "decoder": {
            "SelfAttention": ("self_attention", "self_attention"),
            "EncDecAttention": ("encoder_decoder_attention", "cross_attention"),
        },
    }
    for stack, attentions in sublayers.items():
        block = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        tree[f"{stack}/relpos_bias/rel_embedding"] = state[block].T
        tree[f"{stack}/{stack}_norm/scale"] = state[f"{stack}.final_layer_norm.weight"]
        layers = getattr(model.config, {"encoder": "num_layers"}.get(stack, "num_decoder_layers"))
        for i in range(layers):
            ours = f"{stack}/layers_{i}"
            for place, (theirs, (name, norm)) in enumerate(attentions.items()):
                layer = f"{stack}.block.{i}.layer.{place}"
                tree[f"{ours}/pre_{norm}_layer_norm/scale"] = state[f"{layer}.layer_norm.weight"]
                for a, b in {"query": "q", "key": "k", "value": "v", "out": "o"}.items():
                    tree[f"{ours}/{name}/{a}/kernel"] = state[f"{layer}.{theirs}.{b}.weight"].T
            layer = f"{stack}.block.{i}.layer.{len(attentions)}"
            tree[f"{ours}/pre_mlp_layer_norm/scale"] = state[f"{layer}.layer_norm.weight"]
            for name in ("wi", "wi_0", "wi_1", "wo"):
                if (weight := state.get(f"{layer}.DenseReluDense.{name}.weight")) is not None:
                    tree[f"{ours}/mlp/{name}/kernel"] = weight.T
    return tree


def unjoined(name: str, array: np.ndarray) -> np.ndarray:
    """Heads and their entries as two axes, as in `examples/scalable_t5`."""
    if re.search(r"(query|key|value)/kernel$", name):
        return array.reshape(array.shape[0], HEADS, -1)
    return array.reshape(HEADS, -1, array.shape[1]) if name.endswith("out/kernel") else array


def scalable_t5(tree: Tree) -> Tree:
    """Not scanned: every layer has its own table of relative positions."""
    tables = {stack: tree[f"{stack}/relpos_bias/rel_embedding"] for stack in ("encoder", "decoder")}
    spread = {name: unjoined(name, x) for name, x in tree.items() if "relpos_bias" not in name}
    for layer in {name.rpartition("/pre_mlp")[0] for name in tree if "/pre_mlp" in name}:
        spread[f"{layer}/relpos_bias/rel_embedding"] = tables[layer.split("/")[0]]
    return spread


def scanned(tree: Tree) -> Tree:
    """Layers along axis 1, which is `param_scan_axis`."""
    layers: dict[str, list[np.ndarray]] = {}
    stacked: Tree = {}
    for name, array in sorted(scalable_t5(tree).items()):
        if layered := re.match(r"(\w+)/layers_\d+/(.*)", name):
            stack, leaf = layered.groups()
            layers.setdefault(f"{stack}/{stack}/{leaf}", []).append(array)
        else:
            stacked[name] = array
    return stacked | {name: np.stack(arrays, axis=1) for name, arrays in layers.items()}


def save_orbax(tree: Tree, checkpoint: Path) -> None:
    target = flax.traverse_util.unflatten_dict(tree, sep="/")
    state = {"step": np.int32(7), "param_states": {"token_embedder": {"v_row": np.ones(3)}}}
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(checkpoint / "state", {"target": target, "state": state})


def save_legacy(tree: Tree, checkpoint: Path) -> None:
    """An array in a folder each, but for the norms, which T5X leaves in the index."""
    checkpoint.mkdir(parents=True)
    index: dict[str, Any] = {}
    for name, array in tree.items():
        if array.ndim == 1:
            index[name] = array
            continue
        folder = name.replace("/", ".")
        metadata = {"shape": array.shape, "chunks": array.shape, "compressor": {"id": "gzip"}}
        spec = {"driver": "zarr", "dtype": "float32", "metadata": metadata}
        store = {"driver": "file", "path": str(checkpoint / f"target.{folder}")}
        opened = tensorstore.open({**spec, "kvstore": store}, create=True).result()
        opened.write(array).result()
        kept = opened.spec().to_json()
        index[name] = {**kept, "kvstore": {"driver": "file", "path": f"target.{folder}/"}}
    optimizer = {"target": flax.traverse_util.unflatten_dict(index, sep="/"), "state": {"step": 7}}
    content = flax.serialization.msgpack_serialize({"version": 3, "optimizer": optimizer})
    (checkpoint / "checkpoint").write_bytes(content)


@pytest.mark.parametrize(
    ("fields", "layout", "save"),
    [
        (GATED, dict, save_orbax),
        (RELU, dict, save_legacy),
        (GATED, scanned, save_legacy),
        (RELU, scanned, save_orbax),
        (GATED, scalable_t5, save_orbax),
    ],
)
def test_every_layout_becomes_the_model_of_transformers(
    fields: dict[str, Any], layout: Callable[[Tree], Tree], save: Any, tmp_path: Path
) -> None:
    model = reference(**fields)
    save(layout(examples_t5(model)), tmp_path / "t5x/checkpoint_7")
    folder = export(load_model(tmp_path / "t5x"), tmp_path / "hf")
    expected = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    written = load_file(folder / "model.safetensors")
    for name, array in written.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    assert expected.keys() - written.keys() <= {*copies}
    config = json.loads((folder / "config.json").read_text())
    for field in ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers"):
        assert config[field] == getattr(model.config, field), field
    assert config["feed_forward_proj"] == ("gated-gelu" if fields is GATED else "relu")
    assert config["tie_word_embeddings"] == fields["tie_word_embeddings"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model_dir with two checkpoints of `examples/t5`, and one that was not finished."""
    folder = tmp_path_factory.mktemp("t5x")
    tree = examples_t5(reference(**GATED))
    save_orbax(tree, folder / "checkpoint_7")
    save_orbax({name: 2 * array for name, array in tree.items()}, folder / "checkpoint_10")
    (folder / "checkpoint_12.orbax-checkpoint-tmp-3/state").mkdir(parents=True)
    return folder


def test_the_newest_checkpoint_or_the_one_named(plain: Path) -> None:
    newest, named = load_model(plain), load_model(plain / "checkpoint_7")
    assert newest.name == f"{plain.name}, T5X step 10"
    token = named.params["embedder"]["token"]
    np.testing.assert_array_equal(newest.params["embedder"]["token"], 2 * token)
    assert load_source(plain).checkpoint is None  # its optimizer's state is T5X's
    assert provenance(plain) == {"training": "Trained with T5X for 10 steps."}


def test_the_gin_config_says_what_shapes_do_not(plain: Path, tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_architecture(plain).activation == "gelu_tanh"
    assert "no config.gin" in caplog.text and "ProtT5's 128" in caplog.text
    folder = Path(shutil.copytree(plain, tmp_path / "t5x"))
    gin = folder / "config.gin"
    gin.write_text(
        "DROPOUT_RATE = 0.25\nnetwork.T5Config.dropout_rate = %DROPOUT_RATE\n"
        "network.T5Config.mlp_activations = \\\n    ('swish', 'linear')\n"
    )
    config = read_architecture(folder)
    assert (config.activation, config.dropout_rate) == ("silu", 0.25)
    gin.write_text("network.T5Config.mlp_activations = ('gelu', 'gelu')\n")
    with pytest.raises(ProtlmError, match=r"config.gin: mlp_activations .* cannot be read"):
        load_model(folder)


def broken(tree: Tree, **changes: np.ndarray | None) -> Tree:
    changed = {**tree, **{name.replace("__", "/"): array for name, array in changes.items()}}
    return {name: array for name, array in changed.items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder__layers_1__mlp__wo__kernel": None}, r"layers_1/mlp/wo/kernel is missing"),
        ({"encoder__layers_1__mlp__wo__kernel": np.ones((3, 4))}, r"wo/kernel has shape \[3, 4\]"),
        ({"encoder__extra": np.ones(3)}, r"encoder/extra has shape \[3\], .* no such tensor"),
        ({"token_embedder__embedding": None}, "token_embedder/embedding is missing"),
        ({"token_embedder__embedding": np.ones((130, 16))}, "has 130 rows, and nobody knows"),
    ],
)
def test_what_is_wrong_is_named(changes: Any, message: str, tmp_path: Path) -> None:
    tree = broken(examples_t5(reference(**GATED)), **changes)
    save_orbax(tree, tmp_path / "checkpoint_7")
    with pytest.raises(ProtlmError, match=message):
        load_model(tmp_path)


def test_tables_that_differ_by_layer_are_refused(tmp_path: Path) -> None:
    tree = scanned(examples_t5(reference(**GATED)))
    tree["decoder/decoder/relpos_bias/rel_embedding"][:, 2] += 1
    save_orbax(tree, tmp_path / "checkpoint_7")
    with pytest.raises(
        ProtlmError, match=r"decoder have different .* layers 0 and 2\), as in UMT5"
    ):
        load_model(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    save_legacy(examples_t5(reference(**GATED)), tmp_path / "checkpoint_7")
    shutil.rmtree(tmp_path / "checkpoint_7/target.token_embedder.embedding")
    with pytest.raises(ProtlmError, match="tensor token_embedder/embedding cannot be read"):
        load_model(tmp_path)
    (tmp_path / "checkpoint_7/checkpoint").write_bytes(b"\x93no")
    with pytest.raises(ProtlmError, match="no index of a T5X checkpoint"):
        load_model(tmp_path)


def test_our_models_come_back_with_their_architecture(tmp_path: Path) -> None:
    loaded = zoo.loaded("bert")
    run = tmp_path / "run"
    checkpoint = write_checkpoint(load_source(export(loaded, tmp_path / "hf")), run)
    assert checkpoint == run / "checkpoint_0" and (checkpoint / "state").is_dir()
    again = load_model(run)
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
    assert again.config.family == "bert" and again.vocabulary == loaded.vocabulary
    imported = load_model(import_model(run, tmp_path / "imported"))
    jax.tree.map(np.testing.assert_array_equal, imported.params, loaded.params)
    (run / "protlm_model.json").unlink()
    with pytest.raises(ProtlmError, match=r"needs the config.gin or protlm_model.json"):
        load_model(run)
    sizes = {f: v for f, v in loaded.config.to_dict().items() if not isinstance(v, str)}
    bound = [f"models.architecture.{field} = {value!r}" for field, value in sizes.items()]
    gin = ["models.architecture.name = 'prot_bert'", *bound]
    (run / "config.gin").write_text("\n".join(gin))
    assert load_model(run).config == loaded.config


def test_the_verb_writes_what_t5x_reads(tmp_path: Path) -> None:
    folder = str(export(zoo.loaded("bert"), tmp_path / "hf"))
    again = ["export", "--model", folder, "--output", str(tmp_path / "t5x"), "--format", "t5x"]
    assert main(again) == 0
    assert (tmp_path / "t5x/checkpoint_0/state/manifest.ocdbt").exists()
    assert main(again) == 1  # nothing is written over
