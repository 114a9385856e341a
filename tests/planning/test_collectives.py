"""Collectives read from the text of programs, written out by hand and compiled here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from protlm_jax import partitioning
from protlm_jax.planning.collectives import (
    Collective,
    axes_of,
    calls,
    collectives,
    groups_of,
    unsplit,
)
from protlm_jax.planning.hlo import read

MESH = {"data": 2, "fsdp": 4, "tensor": 1}
HALVES = [[0, 1, 2, 3], [4, 5, 6, 7]]  # along fsdp
PAIRS = [[0, 4], [1, 5], [2, 6], [3, 7]]  # along data
ALL = [[0, 1, 2, 3, 4, 5, 6, 7]]


def groups(attributes: str, operation: str = "all-reduce") -> np.ndarray:
    text = f"ENTRY %main (a: f32[]) -> f32[] {{\n  ROOT %r = f32[8]{{0}} {operation}(%a)"
    program = read(f"{text}, channel_id=1, {attributes}, to_apply=%add\n}}\n")
    (instruction,) = program.computations["main"].values()
    return groups_of(instruction, tuple(MESH.values()))


@pytest.mark.parametrize(
    ("written", "expected", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", HALVES, "fsdp"),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", PAIRS, "data"),
        ("replica_groups={}", ALL, "data, fsdp"),
        ("replica_groups=[2,4]<=[8]", HALVES, "fsdp"),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", PAIRS, "data"),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", HALVES, "fsdp"),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", PAIRS, "data"),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", ALL, "data, fsdp"),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", [[0, 1], [2, 3], [4, 5], [6, 7]], "fsdp"),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]], "fsdp"),
        ("source_target_pairs={{0,1},{1,2},{2,3}}", [[0, 1], [1, 2], [2, 3]], "fsdp"),
    ],
)
def test_groups_and_the_axes_along_which_they_extend(
    written: str, expected: list[list[int]], axes: str
) -> None:
    permuted = written.startswith("source")
    found = groups(written, "collective-permute" if permuted else "all-reduce")
    assert found.tolist() == expected
    assert axes_of(found, MESH) == axes


def test_an_unknown_form_of_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="the groups of r have an unknown form"):
        groups("replica_groups=everyone")


SEND = """\
ENTRY %main (a: f32[]) -> f32[] {
  %send.1 = (bf16[6,8,128]{2,1,0}, u32[], token[]) send(%a, %after-all.1), channel_id=2,\
 is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:7}",\
 _xla_megascale_transfer_type="ALL_REDUCE"}
  %send.2 = (f32[8]{0}, u32[], token[]) send(%a, %after-all.2), channel_id=4, is_host_transfer=true
}
"""


def test_exchanges_between_slices() -> None:
    mesh = {"slices": 2, "data": 1, "fsdp": 4, "tensor": 1}
    (sent,) = calls(read(SEND))
    assert (sent.kind, sent.bytes) == ("all-reduce", 6 * 8 * 128 * 2)
    found = groups_of(sent.instruction, tuple(mesh.values()))
    assert found.tolist() == PAIRS
    assert axes_of(found, mesh) == "slices"


TEXT = """\
HloModule jit_step, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.7 (x: bf16[64,8]) -> bf16[8,8] {
  %all-reduce.9 = bf16[64,8]{1,0:T(8,128)(2,1)} all-reduce(%x), channel_id=3, to_apply=%add.1
  ROOT %mine = bf16[8,8]{1,0} dynamic-slice(%all-reduce.9, %start)
}

%layer (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %all-gather.1 = bf16[1,16,8]{2,1,0:T(8,128)(2,1)} all-gather(%w), channel_id=1, dimensions={1}
  %fusion.2 = bf16[8,8]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.7
  ROOT %next = (s32[], f32[4,8]{1,0}) tuple(%i, %h)
}

%more (state: (s32[], f32[4,8])) -> pred[] {
  %constant.4 = s32[]{:T(256)} constant(30)
  ROOT %lt = pred[]{:T(1024)} compare(%i, %constant.4), direction=LT
}

ENTRY %main (w: f32[2,8]) -> f32[2,8] {
  %while.1 = (s32[], f32[4,8]{1,0}) while(%begin), condition=%more, body=%layer
  %all-gather-start.3 = (bf16[2,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%w), channel_id=5
  %all-gather-done.3 = bf16[16,8]{1,0} all-gather-done(%all-gather-start.3)
  ROOT %all-reduce.2 = (f32[10]{0}, f32[]) all-reduce(%a, %b), channel_id=6, to_apply=%add.1
}
"""


def test_collectives_in_a_loop_count_as_often_as_it_runs() -> None:
    assert collectives(TEXT) == {
        "all-gather": Collective(count=31, bytes=30 * 256 + 256, largest=256),
        "all-reduce": Collective(count=1, bytes=44, largest=44),
        "reduce-scatter": Collective(count=30, bytes=30 * 1024, largest=1024),
    }


def test_a_compiled_scan_gathers_each_layer_once() -> None:
    mesh = partitioning.make_mesh({"fsdp": 8})
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    everywhere = partitioning.replicated(mesh)

    def run(layers: jax.Array, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, everywhere)), None

        return jax.lax.scan(layer, x, layers)[0]

    jitted = jax.jit(run, in_shardings=(split, everywhere), out_shardings=everywhere)
    text = jitted.lower(jnp.zeros((5, 16, 16)), jnp.zeros((3, 16))).compile().as_text()
    found = collectives(text)["all-gather"]
    assert found.bytes == 5 * 16 * 16 * 4
    assert found.count * found.largest == found.bytes


def test_activations_of_all_rows_are_found() -> None:
    text = "%a = bf16[30,32,512,1024]{3,2,1,0} copy(%b)\n%c = s32[1024,512]{1,0} parameter(0)"
    assert unsplit(text, rows=1024, length=512) == []
    assert unsplit(text, rows=32, length=512) == ["bf16[30,32,512,1024]"]
    assert unsplit("%x = f32[32,512,64]{2,1,0} add(%y)", 32, 512) == ["f32[32,512,64]"]
