"""Runs that train a part of a model: adapters, the last layers, layer-wise rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import assert_same_run, metrics, tree, write_fasta
from zoo import loaded

from protlm_jax.config.run import OptimizerConfig, RunConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import export, load_model, load_source
from protlm_jax.models.adapters import TuneConfig, Tuning
from protlm_jax.training.checkpoints import restore_params
from protlm_jax.training.loop import train
from protlm_jax.training.optimizers import build_optimizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    export(loaded("bert"), folder / "base")
    write_fasta(folder / "proteins.fasta")
    return folder


def config(place: Path, steps: int = 8, mesh: dict[str, int] | None = None, **tune: Any) -> Any:
    tune = {"method": "lora", "rank": 2, "alpha": 4.0, "targets": ["query", "wo"], **tune}
    run = {"steps": steps, "evaluate_every": 0, "checkpoint_every": 4, "batch_size": 8}
    sections = {"data": {"fasta": str(place / "proteins.fasta")}, "train": run, "mesh": mesh or {}}
    whole = tree("bert", **sections) | {"tune": tune, "init_from": str(place / "base")}
    return RunConfig.from_dict(whole)


@pytest.mark.exact
def test_adapters_resume_exactly_and_train_alike_on_a_mesh(place: Path, tmp_path: Path) -> None:
    assert train(config(place), tmp_path / "whole", load_source) == 8
    assert train(config(place, steps=4), tmp_path / "parts", load_source) == 4
    assert train(config(place), tmp_path / "parts", load_source) == 4
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    stored = restore_params(tmp_path / "whole" / "checkpoints" / "8")
    assert [*stored] == ["encoder"] and [*stored["encoder"]["mlp"]["wo"]] == ["lora_a", "lora_b"]

    wide = {"data": 2, "fsdp": 2, "tensor": 2}
    train(config(place, mesh=wide), tmp_path / "mesh", load_source)
    losses = [[m["loss"] for m in metrics(tmp_path / run)] for run in ("whole", "mesh")]
    np.testing.assert_allclose(*losses, rtol=1e-5)

    base, tuned = load_model(place / "base"), load_model(tmp_path / "whole")
    ours, theirs = tuned.params["encoder"]["attention"], base.params["encoder"]["attention"]
    assert not np.array_equal(ours["query"]["kernel"], theirs["query"]["kernel"])
    np.testing.assert_array_equal(ours["key"]["kernel"], theirs["key"]["kernel"])
    added = np.einsum("NDr,NrHK->NDHK", *stored["encoder"]["attention"]["query"].values()) * 2
    np.testing.assert_allclose(
        ours["query"]["kernel"], theirs["query"]["kernel"] + added, atol=1e-6
    )


def test_another_base_is_refused(place: Path, tmp_path: Path) -> None:
    train(config(place, steps=4), tmp_path / "run", load_source)
    export(loaded("bert", seed=5), tmp_path / "run" / "base")
    with pytest.raises(ProtlmError, match="trained beside another model"):
        load_model(tmp_path / "run")
    with pytest.raises(ProtlmError, match="has no such map in its layers: choose of key, out"):
        train(config(place, targets=["q"]), tmp_path / "other", load_source)
    with pytest.raises(ProtlmError, match="name it with --config.init_from"):
        RunConfig.from_dict(tree("bert") | {"tune": {"method": "lora"}})


@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_the_last_layers_alone_are_trained(base_dtype: Any) -> None:
    model = loaded("esm2")
    tuning = Tuning(TuneConfig("last", layers=1, base_dtype=base_dtype), model.model)
    base, trained = tuning.split(model.params, jax.random.key(0))
    assert sorted(trained) == ["encoder", "final_norm"]
    assert trained["encoder"]["mlp"]["wi"]["kernel"].shape[0] == 1
    assert base["encoder"]["mlp"]["wi"]["kernel"].dtype == base_dtype
    assert base["encoder"]["mlp"]["wi"]["bias"].dtype == "float32"
    close = {"rtol": 0 if base_dtype == "float32" else 0.01}
    whole = tuning.merge(base, trained)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **close), whole, model.params)


def test_the_rate_falls_from_layer_to_layer() -> None:
    axes = {"token": ("vocab", "embed"), "encoder": ("layers", "embed"), "task_head": ("embed",)}
    params = {"token": jnp.ones((3, 2)), "encoder": jnp.ones((3, 2)), "task_head": jnp.ones(2)}
    plain = OptimizerConfig(weight_decay=0.0)
    updates = [
        made.update(params, made.init(params), params)[0]
        for made in (
            build_optimizer(plain, optax.constant_schedule(1.0), axes, d) for d in (1, 0.5)
        )
    ]
    ratio = jax.tree.map(lambda x, y: float(np.ravel(y / x)[0]), *updates)
    assert ratio == pytest.approx({"token": 0.125, "encoder": 0.25, "task_head": 1.0})
    np.testing.assert_allclose(
        (updates[1]["encoder"] / updates[0]["encoder"])[:, 0], [0.25, 0.5, 1]
    )
