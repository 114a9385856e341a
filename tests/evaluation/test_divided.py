"""A model whose parameters are divided over devices reads as it does on one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from zoo import ZOO, loaded

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import engine
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.scoring.score import likelihoods
from protlm_jax.huggingface import export, import_model, load_model
from protlm_jax.huggingface.placement import Placement, mesh_for, parse_mesh
from protlm_jax.models import LoadedModel, build, init_params

PROTEINS = {"p1": "MKTAYIAKQRQISFVKSHFSRQ", "p2": "MSILVTRPSPAGEELVSRLRT"}
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
Read = Callable[[LoadedModel], Any]


def divided(model: LoadedModel, shape: dict[str, int]) -> LoadedModel:
    mesh = mesh_for(model.model, shape)
    params = Placement(model.model, mesh).place(model.params)
    return dataclasses.replace(model, params=params, mesh=mesh)


def embedded(model: LoadedModel) -> Any:
    return [list(v) for _, v in embed_sequences(model, PROTEINS, layers="all")]


def scored(model: LoadedModel) -> Any:
    return [x.log_probabilities for x in likelihoods(model, PROTEINS.values())]


def measured(model: LoadedModel) -> Any:
    found = analyse(model, PROTEINS, metrics=("contributions", "skips"), length=24)
    arrays = [v.values for stack in found.values() for v in stack.values()]
    return [a for a in arrays if a.dtype.kind == "f"]


FAST = {(embedded, "esm2"), (scored, "xlnet"), (measured, "gpt2")}
CASES = [
    pytest.param(read, family, marks=[] if (read, family) in FAST else pytest.mark.slow)
    for read in (embedded, scored, measured)
    for family in sorted(ZOO)
    if read is embedded or family in ("gpt2", "t5", "xlnet")
]


@pytest.mark.parametrize(("read", "family"), CASES)
def test_numbers_do_not_depend_on_the_mesh(read: Read, family: str, assert_close: Any) -> None:
    model = loaded(family)
    on_mesh, alone = read(divided(model, MESH)), read(model)
    assert_close(*jax.tree.map(np.nan_to_num, (on_mesh, alone)), 1e-5)


def test_no_device_gathers_a_whole_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ZOO["esm2"].config.replace(num_layers=9)
    whole = dataclasses.replace(
        loaded("esm2"), model=build(config), params=init_params(build(config), 0)
    )
    model, texts = divided(whole, {"fsdp": 8}), []
    run = engine._run_divided

    def compiled(*arguments: Any) -> Any:
        texts.append(run.lower(*arguments).compile().as_text())
        return run(*arguments)

    monkeypatch.setattr(engine, "_run_divided", compiled)
    embedded(model)
    kernel = model.params["encoder"]["mlp"]["wi"]["kernel"]
    sizes = ",".join(map(str, kernel.shape))
    local = ",".join(map(str, kernel.addressable_shards[0].data.shape))
    assert texts and all(f"f32[{local}]" in text for text in texts)
    assert not any(re.search(rf"f32\[{sizes}\]", text) for text in texts)


@pytest.mark.parametrize("family", ["t5", "electra"])
def test_a_folder_and_a_run_are_read_onto_the_mesh(
    family: str, tmp_path: Path, assert_close: Any
) -> None:
    whole = loaded(family)
    export(whole, tmp_path / "hf")
    paths = [tmp_path / "hf"]
    if family == "t5":
        import_model(tmp_path / "hf", tmp_path / "run")
        paths.append(tmp_path / "run")
    for path in paths:
        model = load_model(path, {"fsdp": 4, "tensor": 2})
        assert model.mesh is not None and model.mesh.shape["fsdp"] == 4
        shares = [x.size / x.addressable_shards[0].data.size for x in jax.tree.leaves(model.params)]
        assert max(shares) == 8
        assert_close(model.params, whole.params, 0)


def test_mesh_from_text() -> None:
    assert parse_mesh("auto") == "auto" and parse_mesh("data=2,fsdp=4") == {"data": 2, "fsdp": 4}
    for text in ("", "fsdp", "fsdp=x", "fsdp=2,fsdp=2", "model=2"):
        with pytest.raises(ProtlmError, match="write auto, or sizes such as"):
            parse_mesh(text)
    with pytest.raises(ProtlmError, match="does not fit"):
        mesh_for(loaded("bert").model, {"fsdp": 3})


def test_auto_divides_what_one_device_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("bert")
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert mesh_for(model.model, "auto") is None  # a CPU names no limit
    for limit, fsdp in ((3 * size, None), (1.5 * size, 2), (0.6 * size, 4), (0.01 * size, 8)):
        monkeypatch.setattr(
            "protlm_jax.huggingface.placement.memory_of", lambda _, limit=limit: limit
        )
        mesh = mesh_for(model.model, "auto")
        assert (mesh and mesh.shape["fsdp"]) == fsdp
