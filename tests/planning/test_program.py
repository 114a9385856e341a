"""Collectives read from the text of programs: written out by hand, and compiled here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from protlm_jax import partitioning
from protlm_jax.planning.collectives import Collective, collectives, unsplit

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


def test_what_a_loop_says_counts_as_often_as_it_runs() -> None:
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
