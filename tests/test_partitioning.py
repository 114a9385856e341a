"""Meshes, the rules that lay names on them, and constraints that act."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from protlm_jax import models, partitioning
from protlm_jax.errors import ProtlmError
from protlm_jax.models.axes import logical_spec, undivided
from protlm_jax.models.build import example_batch
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.partitioning import RULES, make_mesh, split_slices

SIZES = {"d_model": 32, "num_layers": 2, "num_heads": 4, "head_dim": 8, "d_ff": 64}
MODELS = {"bert": bert_config(**SIZES), "t5": t5_config(**SIZES, num_decoder_layers=2)}


def spec(names: tuple[str | None, ...], shape: tuple[int, ...], **mesh: int) -> PartitionSpec:
    return logical_spec(names, shape, mesh, RULES)


@pytest.mark.parametrize(
    ("names", "shape", "mesh", "expected"),
    [
        (("embed", "heads", "kv"), (32, 4, 8), {"fsdp": 2, "tensor": 2}, ("fsdp", "tensor", None)),
        (("layers", "embed", "mlp"), (8, 32, 64), {"fsdp": 8, "tensor": 1}, (None, "fsdp", None)),
        # What does not divide stays whole: 30 rows over 4, 20 heads over 8.
        (("vocab", "embed"), (30, 64), {"fsdp": 2, "tensor": 4}, (None, "fsdp")),
        (("vocab", "embed"), (30, 64), {"fsdp": 2, "tensor": 2}, ("tensor", "fsdp")),
        (("embed", "heads", "kv"), (640, 20, 32), {"tensor": 8}, (None, None, None)),
        # The batch takes both data axes, and then the width cannot have one of them.
        (("batch", "length", "embed"), (8, 4, 32), {"data": 2, "fsdp": 2}, (("data", "fsdp"),)),
        (("batch", "length", "embed"), (3, 4, 32), {"data": 2, "fsdp": 2}, (None, None, "fsdp")),
        (("batch", "length", "embed"), (8, 4, 32), {"data": 8, "fsdp": 1}, ("data",)),
        # Two dimensions want the same axis: the more important rule has it.
        (("mlp", "heads"), (64, 4), {"tensor": 4}, (None, "tensor")),
        (("mlp", "heads"), (64, 6), {"tensor": 4}, ("tensor", None)),
        ((None, "unheard"), (8, 8), {"data": 2, "fsdp": 2, "tensor": 2}, (None, None)),
    ],
)
def test_names_become_mesh_axes(names, shape, mesh, expected) -> None:
    padded = (*expected, *(None,) * (len(shape) - len(expected)))
    assert spec(names, shape, **mesh) == PartitionSpec(*padded)


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (("vocab", "embed"), (30, 64), [("vocab", 30, ("tensor",), 8)]),
        (("embed", "mlp"), (33, 60), [("mlp", 60, ("tensor",), 8), ("embed", 33, ("fsdp",), 2)]),
        (("heads", "kv"), (8, 3), []),
        # Another dimension has the axis instead: nothing is lost.
        (("heads", "mlp"), (20, 64), []),
        ((None, "unheard"), (3, 3), []),
    ],
)
def test_what_does_not_divide_is_named(names, shape, expected) -> None:
    mesh = {"data": 4, "fsdp": 2, "tensor": 8}
    assert undivided(names, shape, mesh, RULES) == expected


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_every_parameter_can_be_laid_out(family: str, shape: tuple[int, ...]) -> None:
    """No mesh axis twice in an array, layers never split, every split even."""
    mesh = make_mesh(dict(zip(partitioning.MESH_AXES, shape, strict=True)))
    model = models.build(MODELS[family])
    abstract, axes = models.abstract_params(model), models.logical_axes(model)
    layout = partitioning.shardings(abstract, axes, mesh)
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(abstract), jax.tree.leaves(layout), strict=True
    ):
        parts = [p for p in sharding.spec if p is not None]
        used = list(itertools.chain(*[(p,) if isinstance(p, str) else p for p in parts]))
        assert len(used) == len(set(used)), path
        sharding.shard_shape(leaf.shape)  # raises where a split is uneven
        if "coder/" in jax.tree_util.keystr(path, simple=True, separator="/"):
            assert sharding.spec[0] is None, path


def test_meshes() -> None:
    assert dict(make_mesh({"data": -1}).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    rest = make_mesh({"data": 2, "fsdp": -1, "tensor": 2})
    assert dict(rest.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(rest.axis_types) == {AxisType.Auto}
    two = make_mesh({"tensor": 2}, jax.devices()[4:])
    assert list(two.devices.flat) == jax.devices()[4:6]


class Device(NamedTuple):
    """What a mesh asks of a device."""

    id: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "of a test"


def test_slices_stand_outermost_in_the_order_that_devices_know() -> None:
    mesh = make_mesh({"slices": 2, "data": -1, "tensor": 2})
    assert dict(mesh.shape) == {"slices": 2, "data": 2, "fsdp": 1, "tensor": 2}
    assert list(mesh.devices.flat) == jax.devices()
    mixed = [Device(0, 1), Device(1, 0), Device(2, 1), Device(3, 0)]
    assert split_slices(mixed) == split_slices(mixed, 2) == [[*mixed[1::2]], [*mixed[::2]]]
    # Hosts of a GPU cluster have numbers too, but are one slice unless the config says otherwise.
    nodes = [device._replace(platform="gpu") for device in mixed]
    assert split_slices(nodes) == [nodes]
    assert split_slices(nodes, 2) == [nodes[:2], nodes[2:]]


@pytest.mark.parametrize(
    ("devices", "slices", "message"),
    [
        ([Device(0, 0), Device(1, 1)], 4, "mesh.slices is 4; the devices are of 2 slices"),
        ([Device(0, 0)] * 8, 3, r"mesh.slices is 3; 8 device\(s\) do not divide so"),
        ([Device(0, 0)] * 8, 0, "mesh.slices is 0; 8"),
    ],
)
def test_slices_that_cannot_be(devices: list[Device], slices: int, message: str) -> None:
    with pytest.raises(ProtlmError, match=message):
        split_slices(devices, slices)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"data": 3}, r"\(3, 1, 1\) does not fit 8 device\(s\); choose another mesh"),
        ({"data": 16}, r"\(16, 1, 1\) does not fit 8 device"),
        ({"data": -1, "tensor": 16}, r"\(-1, 1, 16\) does not fit 8 device"),
        ({"data": -1, "fsdp": -1}, "at most one may be -1"),
        ({"data": 0}, "sizes are positive"),
        ({"data": -2}, "sizes are positive"),
        ({"slices": 2, "data": 8}, r"does not fit 4 device\(s\) of each of 2 slices"),
        ({"model": 2}, "unknown mesh axis 'model'; the axes are data, fsdp, tensor"),
    ],
)
def test_meshes_that_cannot_be(shape: dict[str, int], message: str) -> None:
    with pytest.raises(ProtlmError, match=message):
        make_mesh(shape)


def test_rows_go_over_the_data_axes() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    sharding = partitioning.batch_sharding(mesh, 8)
    placed = jax.device_put(np.zeros((8, 3), np.int32), sharding)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
    with pytest.raises(ProtlmError, match=r"batch_size 6 does not divide over .* = 4 replicas"):
        partitioning.batch_sharding(mesh, 6)
    several = make_mesh({"slices": 2, "data": 2, "fsdp": 2})
    assert partitioning.batch_sharding(several, 8).spec[0] == ("slices", "data", "fsdp")
    with pytest.raises(ProtlmError, match="12 does not divide over slices x data x fsdp = 8"):
        partitioning.batch_sharding(several, 12)


def test_a_split_stream_leaves_attention_to_the_heads() -> None:
    mesh = make_mesh({"data": 2, "tensor": 4})
    sizes = {"length": 16, "embed": 32}
    found = {
        stream: logical_spec(
            ("batch", "length", "embed"),
            (8, 16, 32),
            mesh.shape,
            partitioning.step_rules(stream, sizes, mesh),
        )
        for stream in ("whole", "length", "embed")
    }
    assert found == {
        "whole": PartitionSpec("data", None, None),
        "length": PartitionSpec("data", "tensor", None),
        "embed": PartitionSpec("data", None, "tensor"),
    }
    rules = partitioning.step_rules("length", sizes, mesh)
    names = ("batch", "length", "heads", "kv")
    heads = logical_spec(names, (8, 16, 4, 8), mesh.shape, rules)
    assert heads == PartitionSpec("data", None, "tensor", None)
    with pytest.raises(ProtlmError, match="mesh.stream=length: its size 18 does not divide over"):
        partitioning.step_rules("length", {"length": 18, "embed": 32}, mesh)


def test_the_description_names_each_parameter_and_adds_them_up() -> None:
    model = models.build(MODELS["bert"].replace(max_positions=16))
    abstract, axes = models.abstract_params(model), models.logical_axes(model)
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    lines = partitioning.describe(abstract, axes, mesh).splitlines()
    whole, *lines = [lines[-1], *lines[:-1]]
    assert whole == (
        "vocab of 30 does not divide over tensor = 4: whole on each device in embedder/token, "
        "head/bias"
    )
    assert len(lines) == 2 + len(jax.tree.leaves(abstract))
    rows = {line.split("  ")[0]: " ".join(line.split()) for line in lines[1:-1]}
    query = "(2, 32, 4, 8) float32 layers, embed, heads, kv None, fsdp, tensor, None"
    assert rows["encoder/attention/query/kernel"].endswith(query)
    assert rows["embedder/token"].endswith("(30, 32) float32 vocab, embed None, fsdp")
    assert rows["head/bias"].endswith("(30,) float32 vocab None")
    total = models.parameter_count(abstract)
    layout = partitioning.shardings(abstract, axes, mesh)
    here = sum(
        np.prod(s.shard_shape(a.shape))
        for a, s in zip(jax.tree.leaves(abstract), jax.tree.leaves(layout), strict=True)
    )
    assert lines[-1].startswith(f"{total:,} parameters, {here:,} per device, on mesh")
    assert here < 0.4 * total


@pytest.mark.parametrize("family", MODELS)
def test_constraints_act_inside_the_mesh_and_nowhere_else(family: str) -> None:
    model = models.build(MODELS[family])
    features = example_batch(model.config, 8, 4)
    abstract = models.abstract_params(model)

    def constraints() -> int:
        run = jax.make_jaxpr(lambda params, batch: model.apply({"params": params}, batch))
        return str(run(abstract, features)).count(" sharding_constraint[")

    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with partitioning.on_mesh(mesh):
        inside = constraints()
    # The program holds each stack's block once: q, k, v, the mixed heads of each attention, and
    # each sum. Besides, what goes into each stack, and each table that is looked up.
    assert inside == {"bert": 6 + 1 + 2, "t5": 6 + 11 + 2 + 2}[family]
    assert constraints() == 0
