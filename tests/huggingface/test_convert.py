"""The table between the two worlds: layouts, fused tensors, constants, files and joint families."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import export, load_model
from protlm_jax.huggingface.convert import EXCHANGES, expected_shapes, params_from, tensors
from protlm_jax.models import FAMILIES, LoadedModel
from protlm_jax.models.exchange import Exchange, Joint, Key

RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def exchange_of(*keys: Key) -> Exchange:
    return dataclasses.replace(EXCHANGES["bert"], keys=keys)


def there_and_back(exchange: Exchange, params: Any) -> dict[str, np.ndarray]:
    """Their tensors; asserts that they have the expected shapes and come back bit for bit."""
    theirs = dict(tensors(exchange, params))
    assert {k: v.shape for k, v in theirs.items()} == expected_shapes(exchange, params)
    again = params_from(exchange, params, theirs.__getitem__)
    models_equal(params, again)
    return theirs


def models_equal(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, dict):
            models_equal(value, b[name])
        else:
            np.testing.assert_array_equal(value, b[name])


def test_three_parameters_in_one_tensor() -> None:
    layers, d, h, k = 2, 6, 3, 4
    params = {name: random(layers, d, h, k) for name in ("q", "k", "v")}
    keys = [
        Key(name, "layer.{layer}.qkv", "D H K -> (P H K) D", part=(i, 3))
        for i, name in enumerate("qkv")
    ]
    theirs = there_and_back(exchange_of(keys[2], keys[0], keys[1]), params)
    assert list(theirs) == ["layer.0.qkv", "layer.1.qkv"]
    x = random(d)
    fused = (theirs["layer.1.qkv"] @ x).reshape(3, h, k)
    for i, name in enumerate("qkv"):
        expected = np.einsum("d,dhk->hk", x, params[name][1])
        np.testing.assert_allclose(fused[i], expected, rtol=1e-5, atol=1e-5)

    biases = {name: random(h, k) for name in ("q", "k")}
    pair = [Key(name, "bias", "H K -> (P H K)", part=(i, 2)) for i, name in enumerate("qk")]
    fused_bias = there_and_back(exchange_of(*pair), biases)["bias"]
    np.testing.assert_array_equal(fused_bias, np.concatenate([b.ravel() for b in biases.values()]))


def test_parts_along_the_last_axis_and_inside_groups() -> None:
    """As in a Conv1D of GPT-2, and as ProGen2's heads, cut into groups that each hold all parts."""
    d, h, k = 5, 6, 2
    params = {name: random(d, h, k) for name in "qvk"}
    conv = [Key(n, "conv", "D H K -> D (P H K)", part=(i, 3)) for i, n in enumerate("qvk")]
    fused = there_and_back(exchange_of(*conv), params)["conv"]
    flat = [array.reshape(d, h * k) for array in params.values()]
    np.testing.assert_array_equal(fused, np.concatenate(flat, axis=1))

    layout = "D (3 H) K -> (3 P H K) D"
    groups = [Key(n, "groups", layout, part=(i, 3)) for i, n in enumerate("qvk")]
    grouped = there_and_back(exchange_of(*groups), params)["groups"]
    expected = [
        params[name][:, head, entry]
        for group in range(3)
        for name in "qvk"
        for head in (2 * group, 2 * group + 1)
        for entry in range(k)
    ]
    np.testing.assert_array_equal(grouped, np.stack(expected))


def test_a_part_that_is_missing_from_the_table() -> None:
    half = exchange_of(Key("q", "qk", "D -> (P D)", part=(1, 2)))
    with pytest.raises(ValueError, match="keys of qk are not the parts of one tensor"):
        dict(tensors(half, {"q": random(3)}))


def test_axes_of_size_one() -> None:
    theirs = there_and_back(exchange_of(Key("e", "mask", "D -> 1 1 D")), {"e": random(5)})
    assert theirs["mask"].shape == (1, 1, 5)


def test_optional_parameters() -> None:
    keys = (Key("w", "w", "D -> D"), Key("head/b", "b", "D -> D", optional=True))
    assert list(there_and_back(exchange_of(*keys), {"w": random(2)})) == ["w"]
    both = {"w": random(2), "head": {"b": random(3)}}
    assert list(there_and_back(exchange_of(*keys), both)) == ["w", "b"]
    with pytest.raises(KeyError):
        dict(tensors(exchange_of(keys[0]), {}))


@pytest.fixture
def with_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """BERT with a constant in its files and a file of its own."""
    extended = dataclasses.replace(
        EXCHANGES["bert"],
        constants={"bert.frequencies": lambda config: np.arange(config.d_model) / 2},
        files={"modeling.py": lambda config: f"WIDTH = {config.d_model}\n"},
    )
    monkeypatch.setitem(EXCHANGES, "bert", extended)


@pytest.mark.parametrize("family", ["bert"], indirect=True)
@pytest.mark.usefixtures("with_extras")
def test_constants_and_files(loaded: LoadedModel, tmp_path: Path) -> None:
    folder = export(loaded, tmp_path / "hf")
    width = loaded.config.d_model
    assert (folder / "modeling.py").read_text() == f"WIDTH = {width}\n"
    stored = load_file(folder / "model.safetensors")
    assert stored["bert.frequencies"].tolist() == [i / 2 for i in range(width)]
    models_equal(loaded.params, load_model(folder).params)

    save_file(stored | {"bert.frequencies": np.zeros(width)}, folder / "model.safetensors")
    with pytest.raises(ProtlmError, match=r"bert.frequencies is not the constant that follows"):
        load_model(folder)
    stored.pop("bert.frequencies")
    save_file(stored, folder / "model.safetensors")
    models_equal(loaded.params, load_model(folder).params)


@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_a_joint_family_is_written_as_several_folders(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def part(number: int) -> Any:
        def take(config: Any, params: Any) -> Any:
            scaled = dict(params, embedder=dict(params["embedder"]))
            scaled["embedder"]["token"] = params["embedder"]["token"] * number
            return config.replace(dropout_rate=0.1 * number), scaled

        return take

    exchange = Joint({"a": part(1), "b": part(2)}, lambda c: c["a"], lambda p: p["a"])
    monkeypatch.setitem(FAMILIES, "bert", dataclasses.replace(FAMILIES["bert"], exchange=exchange))
    target = export(loaded, tmp_path / "hf")
    export(loaded, target)  # an export of two parts is one that may be replaced
    assert sorted(p.name for p in target.iterdir()) == ["a", "b"]
    a, b = load_model(target / "a"), load_model(target / "b")
    assert (a.config.dropout_rate, b.config.dropout_rate) == (0.1, 0.2)
    token = np.asarray(loaded.params["embedder"]["token"])
    np.testing.assert_array_equal(b.params["embedder"]["token"], 2 * token)
    models_equal(loaded.params, a.params)
    assert 'from_pretrained("hf/b")' in (target / "b" / "README.md").read_text()
    models_equal(loaded.params, load_model(target).params)
    shutil.copytree(target / "a", tmp_path / "some" / "c")
    with pytest.raises(ProtlmError, match="is no model but holds some: choose c"):
        load_model(tmp_path / "some")
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ProtlmError, match="was not made by protlm export"):
        export(loaded, target)


def test_families_that_share_a_model_type(
    loaded: LoadedModel, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = EXCHANGES[loaded.config.family]
    if own.mark or own.only_named:  # a field tells it from the others, or it is not the default
        return
    other = dataclasses.replace(own, architecture="SomethingElse")
    monkeypatch.setitem(EXCHANGES, "another", other)
    models_equal(loaded.params, load_model(exported).params)
    monkeypatch.setitem(EXCHANGES, loaded.config.family, other)
    with pytest.raises(ProtlmError, match=rf"architectures \['{own.architecture}'\] cannot be"):
        load_model(exported)
