"""Every way a Hugging Face folder may store a model, and every way it may be broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import zoo
from hf_folders import reconfigure, rewrite
from safetensors.numpy import load_file, save_file

from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import export, import_model, load_model, provenance
from protlm_jax.huggingface.convert import EXCHANGES, expected_shapes
from protlm_jax.models import LoadedModel


@pytest.fixture
def victim(loaded: LoadedModel) -> tuple[str, list[int]]:
    """A matrix of a layer, which the tests break, and its shape."""
    shapes = expected_shapes(EXCHANGES[loaded.config.family], loaded.params)
    name, shape = [(n, s) for n, s in shapes.items() if len(s) == 2 and ".0." in n][-1]
    return name, list(shape)


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model"))


def assert_same(loaded: LoadedModel, folder: Path) -> None:
    jax.tree.map(np.testing.assert_array_equal, loaded.params, load_model(folder).params)


@pytest.mark.parametrize("family", ["bert", "t5"], indirect=True)
def test_sharded_with_an_index(loaded: LoadedModel, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    shards = {"a-of-2.safetensors": names[::2], "b-of-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    place = {name: file for file, part in shards.items() for name in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": place}))
    assert_same(loaded, folder)

    place["not.there"] = "a-of-2.safetensors"
    index.write_text(json.dumps({"metadata": {}, "weight_map": place}))
    with pytest.raises(ProtlmError, match="says that a-of-2.safetensors holds not.there"):
        load_model(folder)
    (folder / "b-of-2.safetensors").unlink()
    with pytest.raises(ProtlmError, match="names b-of-2.safetensors, which is not in the folder"):
        load_model(folder)


@pytest.mark.parametrize("family", ["bert", "t5"], indirect=True)
def test_pytorch_bin_holds_tensors_and_nothing_else(loaded: LoadedModel, folder: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state = {name: torch.tensor(array) for name, array in tensors.items()}
    torch.save(state, folder / "pytorch_model.bin")
    assert_same(loaded, folder)

    (folder / "pytorch_model.bin").unlink()
    place = {name: f"part-{i % 2}.bin" for i, name in enumerate(state)}
    for file in set(place.values()):
        torch.save({n: x for n, x in state.items() if place[n] == file}, folder / file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": place}))
    assert_same(loaded, folder)

    torch.save({**state, "code": Path}, folder / "pytorch_model.bin")
    with pytest.raises(ProtlmError, match=r"cannot be read as plain tensors.* was run") as caught:
        load_model(folder)
    assert "weights_only" not in str(caught.value), "PyTorch advises to run it"


def test_half_precision_is_read_as_float32(loaded: LoadedModel, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    rewrite(folder, **{name: array.astype(np.float16) for name, array in tensors.items()})
    for ours, theirs in zip(
        jax.tree.leaves(loaded.params), jax.tree.leaves(load_model(folder).params), strict=True
    ):
        assert theirs.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(ours, np.float16), np.asarray(theirs))


def test_missing_tensor(victim: tuple[str, list[int]], folder: Path) -> None:
    name, shape = victim
    rewrite(folder, **{name: None})
    with pytest.raises(ProtlmError) as error:
        load_model(folder)
    assert f"tensor {name} of shape {shape} is missing" in str(error.value)


@pytest.mark.parametrize("family", ["bert", "t5"], indirect=True)
def test_misshapen_tensor(victim: tuple[str, list[int]], folder: Path) -> None:
    name, shape = victim
    rewrite(folder, **{name: np.zeros((3, 5), np.float32)})
    with pytest.raises(ProtlmError) as error:
        load_model(folder)
    message = str(error.value)
    assert f"tensor {name} has shape [3, 5], config.json asks for {shape}" in message
    assert str(folder / "model.safetensors") in message


def test_unexpected_tensor(folder: Path) -> None:
    rewrite(folder, **{"adapter.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(ProtlmError, match=r"tensor adapter.weight of shape \[2, 2\] has no place"):
        load_model(folder)


def test_tied_copies_and_unused_tensors_are_listed(
    family: str, loaded: LoadedModel, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copies = EXCHANGES[family].copies
    tied = next((copy for copy in copies if copy.endswith(".weight")), None)
    own = {key.theirs for key in EXCHANGES[family].keys}
    if tied is None or tied in own:  # a head that shares nothing
        assert family == "electra_discriminator" or not loaded.config.tie_embeddings
        return
    original = copies[tied]
    embedding = load_file(folder / "model.safetensors")[original]
    extra: dict[str, np.ndarray | None] = {tied: embedding}
    if family == "bert":
        extra["bert.embeddings.position_ids"] = np.arange(40)[None]
        extra["bert.pooler.dense.bias"] = np.zeros(16, np.float32)
    rewrite(folder, **extra)
    with caplog.at_level("INFO", logger="protlm_jax"):
        assert_same(loaded, folder)
    assert all(name in caplog.text for name in extra)

    rewrite(folder, **{original: None})
    assert_same(loaded, folder)  # the copy alone is enough

    rewrite(folder, **{original: embedding, tied: embedding + 1})
    with pytest.raises(ProtlmError, match=f"{tied} differs from {original}"):
        load_model(folder)


@pytest.mark.parametrize("family", ["bert", "t5"], indirect=True)
def test_damaged_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ProtlmError, match=r"model.safetensors cannot be read"):
        load_model(folder)
    file.unlink()
    with pytest.raises(ProtlmError, match="holds no weights"):
        load_model(folder)


@pytest.mark.parametrize("family", ["bert", "t5"], indirect=True)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "opt"}, "model_type 'opt' cannot be read; only albert, bert, "),
        (
            {"hidden_act": "mish", "feed_forward_proj": "gated-mish"},
            "activation 'mish'",
        ),
        (
            {"tie_word_embeddings": False, "scale_decoder_outputs": True},
            "'tie_word_embeddings' is False",
        ),
        (
            {"position_embedding_type": "relative_key", "decoder_start_token_id": 5},
            "'(position_embedding_type|decoder_start_token_id)' is",
        ),
        ({"vocab_size": 29}, "vocab_size 29, the tokenizer has"),
    ],
)
def test_models_that_we_do_not_have(folder: Path, fields: dict[str, object], message: str) -> None:
    reconfigure(folder, **fields)
    with pytest.raises(ProtlmError, match=message):
        load_model(folder)


def test_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ProtlmError, match=r"config.json is not JSON"):
        load_model(folder)


def test_no_model_at_all(tmp_path: Path) -> None:
    with pytest.raises(ProtlmError, match="is no model"):
        load_model(tmp_path)
    with pytest.raises(ProtlmError, match="is not a folder on this machine"):
        load_model("prot_bert")


def test_import_makes_a_run_that_loads(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    run = import_model(folder, tmp_path / "run")
    assert_same(loaded, run)
    assert_same(loaded, run / "checkpoints" / "0")
    assert load_model(run).vocabulary == loaded.vocabulary
    with pytest.raises(ProtlmError, match="is not an empty folder"):
        import_model(folder, run)
    with pytest.raises(ProtlmError, match="is not a Hugging Face folder"):
        import_model(run, tmp_path / "other")


def test_provenance_is_read_from_the_run(folder: Path, tmp_path: Path) -> None:
    assert provenance(folder) == {}
    run = import_model(folder, tmp_path / "run")
    assert provenance(run) == {"training": "Imported from a Hugging Face folder named model."}
    sections = {
        "data": {"fasta": "/data/my.fasta.gz", "length": 128, "rare_residues": "keep"},
        "train": {"batch_size": 64, "seed": 3},
        "objective": {"name": "masked"},
        "optimizer": {"name": "adamw"},
    }
    (run / "config.json").write_text(json.dumps(sections))
    facts = provenance(run)
    assert facts == provenance(run / "checkpoints" / "0")
    assert facts["training"].startswith("Trained on my.fasta.gz for 0 steps of 64 rows of 128 tok")


@pytest.mark.parametrize("family", ["bert", "t5"], indirect=True)
def test_a_run_of_another_shape(folder: Path, tmp_path: Path) -> None:
    run = import_model(folder, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["model"]["d_ff"] += 1
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ProtlmError, match="delete its line 'digest'"):
        load_model(run)
    del config["digest"]
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ProtlmError, match=r"parameter \S+/mlp/wi\S*/\S+ has shape"):
        load_model(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ProtlmError, match="no complete checkpoint yet"):
        load_model(run)


def test_two_folders_of_one_electra_are_the_joint_model(tmp_path: Path) -> None:
    whole = zoo.loaded("electra")
    export(whole, tmp_path / "both")
    back = load_model(tmp_path / "both")
    assert back.config == whole.config
    jax.tree.map(np.testing.assert_array_equal, back.params, whole.params)
    import_model(tmp_path / "both", tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / "run").params, whole.params)
    export(zoo.loaded("electra", seed=1), tmp_path / "other")
    shutil.rmtree(tmp_path / "both/generator")
    shutil.copytree(tmp_path / "other/generator", tmp_path / "both/generator")
    with pytest.raises(ProtlmError, match="different embeddings: they were not trained together"):
        load_model(tmp_path / "both")
