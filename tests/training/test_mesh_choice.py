"""Meshes that are chosen: the rule by hand, and what it gives for published runs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import pytest

from protlm_jax import models
from protlm_jax.config.files import load_config
from protlm_jax.config.recipes import load_recipe
from protlm_jax.errors import ProtlmError
from protlm_jax.training.assembly import assemble
from protlm_jax.training.hardware import memory_of
from protlm_jax.training.mesh_choice import choose_mesh, state_and_gradients
from protlm_jax.training.optimizers import build_optimizer
from protlm_jax.training.schedules import build_schedule
from protlm_jax.training.state import TrainState, abstract_state

GIB = 2**30
V3, V5P, H100 = 15.48 * GIB, 95 * GIB, 60 * GIB


@functools.cache
def shapes_of(recipe: str) -> tuple[TrainState, Any]:
    """State of a recipe's last phase, without a memory, and the axes of its parameters."""
    config = load_recipe(f"configs/{recipe}", ["data.fasta=unread"], Path("runs/w"))[-1].config
    model = models.build(config.model.replace(memory_length=0, same_length=False))
    axes = models.logical_axes(model)
    schedule = build_schedule(config.schedule, config.train.steps)
    return abstract_state(model, build_optimizer(config.optimizer, schedule, axes)), axes


def chosen(recipe: str, rows: int, devices: int, memory: float, slices: int = 1) -> Any:
    return choose_mesh(*shapes_of(recipe), rows, devices, int(memory), slices)


@pytest.mark.parametrize(
    ("recipe", "rows", "devices", "memory", "slices", "expected"),
    [
        # ProtBert: 420 million parameters x (4 + 8 + 4) bytes = 6.3 GiB, of 7.7 that are half.
        ("prot_bert_bfd.py", 32_768, 1024, V3, 1, (1024, 1, 1)),
        ("prot_bert_bfd.py", 32_768, 1024, V3, 2, (1024, 1, 1)),
        ("prot_bert_bfd.py", 32_768, 8, 0, 1, (8, 1, 1)),
        # ESM-2 with 650 million: 9.7 GiB.
        ("esm2_uniref50.py:650m", 2048, 512, V3, 1, (256, 2, 1)),
        ("esm2_uniref50.py:650m", 2048, 8, H100, 1, (8, 1, 1)),
        # ESM-2 with 2.8 billion: 42 GiB.
        ("esm2_uniref50.py:3b", 2048, 8, V5P, 1, (8, 1, 1)),
        ("esm2_uniref50.py:3b", 2048, 512, V3, 1, (64, 8, 1)),
        # Rows for 64 of 512 devices: eight do a row together.
        ("esm2_uniref50.py:3b", 64, 512, V3, 1, (64, 1, 8)),
        ("esm2_uniref50.py:3b", 96, 8, V3, 1, (1, 8, 1)),
        ("esm2_uniref50.py:3b", 12, 8, V3, 1, (1, 4, 2)),
    ],
)
def test_the_rule(
    recipe: str, rows: int, devices: int, memory: float, slices: int, expected: tuple[int, ...]
) -> None:
    shape, _ = chosen(recipe, rows, devices, memory, slices)
    assert shape == {
        "slices": slices,
        **dict(zip(("data", "fsdp", "tensor"), expected, strict=True)),
    }


@pytest.mark.parametrize(
    ("recipe", "rows", "devices", "memory", "slices", "reason"),
    [
        (
            *("esm2_uniref50.py:3b", 2048, 512, V3, 1),
            "mesh: data 64 x fsdp 8 x tensor 1, chosen: state and gradients take 5.30 GiB of a "
            "device with 15.48; a whole copy would take 42.30",
        ),
        ("esm2_uniref50.py:3b", 96, 8, 4 * GIB, 1, "8 x tensor 1, chosen"),
        ("esm2_uniref50.py:3b", 96, 8, 4 * GIB, 1, "and cannot be split"),
        ("esm2_uniref50.py:3b", 12, 8, V3, 1, "12 rows at once do not divide"),
        ("prot_bert_bfd.py", 32, 8, V3, 2, "on each of 2 slices"),
        ("prot_bert_bfd.py", 32, 8, 0, 1, "memory is not known"),
    ],
)
def test_a_choice_has_a_reason(
    recipe: str, rows: int, devices: int, memory: float, slices: int, reason: str
) -> None:
    assert reason in chosen(recipe, rows, devices, memory, slices)[1]


def test_state_and_gradients_are_what_the_optimizer_keeps() -> None:
    abstract, axes = shapes_of("prot_bert_bfd.py")
    parameters = models.parameter_count(abstract.params)
    whole = state_and_gradients(abstract, axes, {})
    assert whole == pytest.approx(16 * parameters, rel=1e-6)  # itself, two moments, the gradient
    assert state_and_gradients(abstract, axes, {"fsdp": 4}) == pytest.approx(whole / 4, rel=1e-2)


def test_a_run_trains_on_the_mesh_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protlm_jax.training.assembly.memory_of", lambda device: 12 * 2**20)
    parts = assemble(load_config("configs/tiny.py:bert", ["mesh.fsdp=8", "mesh=auto"]))
    assert dict(parts.mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert parts.chosen.startswith("mesh: data 4 x fsdp 2 x tensor 1, chosen: state and gradients")
    stated = assemble(load_config("configs/tiny.py:bert", ["mesh.fsdp=4"]))
    assert dict(stated.mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1} and not stated.chosen
    assert memory_of(jax.devices()[0]) == 0
    few = assemble(load_config("configs/tiny.py:bert", ["train.accumulate=2", "mesh=auto"]))
    assert dict(few.mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert few.chosen.endswith("replicas; the stream between sublayers is split by length")
    assert few.rules[-1] == ("length", "tensor") and stated.rules[-1] != ("length", "tensor")


def test_a_mesh_is_chosen_or_given() -> None:
    with pytest.raises(ProtlmError, match="to be chosen .* and given .* at once; leave out one"):
        load_config("configs/tiny.py:bert", ["mesh=auto", "mesh.fsdp=2"])
    config = load_config("configs/tiny.py:bert", ["mesh.slices=2", "mesh.fsdp=2", "mesh=auto"])
    assert config.mesh.auto and config.mesh.slices == 2 and config.mesh.fsdp == 1


def test_a_memory_is_split_as_the_rows_are() -> None:
    config = load_config("configs/tiny.py:txl", ["train.batch_size=16"])
    model = models.build(config.model)
    axes = models.logical_axes(model)
    schedule = build_schedule(config.schedule, config.train.steps)
    abstract = abstract_state(model, build_optimizer(config.optimizer, schedule, axes), 16)
    memory = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract.carry))
    one, eight, two = (
        state_and_gradients(abstract, axes, shape)
        for shape in ({"data": 1}, {"data": 8, "fsdp": 1}, {"slices": 2, "data": 8})
    )
    assert one - eight == memory - memory // 8
    assert one - two == memory - memory // 16
