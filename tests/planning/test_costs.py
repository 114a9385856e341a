"""FLOPs and bytes of programs: written out by hand, and compiled here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protlm_jax.planning.costs import cost, pairs
from protlm_jax.planning.hlo import read

# What the TPU compiler makes of products: batched scores as a dilated convolution, a projection to
# heads as one over a window that is slid past the input.
TEXT = """\
%fused_computation.1 (p0: bf16[24,64,32], p1: s32[]) -> bf16[64,32] {
  %p0 = bf16[24,64,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(256)} parameter(1)
  %dynamic-slice.1 = bf16[1,64,32]{2,1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,64,32}
  ROOT %bitcast.1 = bf16[64,32]{1,0} bitcast(%dynamic-slice.1)
}

%fused_computation.2 (p0.1: f32[24,8,16], p1.1: f32[8,16], p2.1: s32[]) -> f32[24,8,16] {
  %p0.1 = f32[24,8,16]{2,1,0} parameter(0)
  %p1.1 = f32[8,16]{1,0} parameter(1)
  %p2.1 = s32[] parameter(2)
  %bitcast.2 = f32[1,8,16]{2,1,0} bitcast(%p1.1)
  ROOT %dus = f32[24,8,16]{2,1,0} dynamic-update-slice(%p0.1, %bitcast.2, %p2.1)
}

ENTRY %main (a: bf16[4,512,64,1]) -> f32[] {
  %q = bf16[4,512,16,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[4,512,16,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %x = bf16[4,512,1024,1]{2,1,3,0} parameter(2)
  %w = bf16[1024,16,64,1]{2,0,1,3} parameter(3)
  %near = f32[32,8]{1,0:T(8,128)S(1)} parameter(4)
  %stack = bf16[24,64,32]{2,1,0} parameter(5)
  %i = s32[]{:T(256)} parameter(6)
  %kept = f32[24,8,16]{2,1,0} parameter(7)
  %new = f32[8,16]{1,0} parameter(8)
  %mask = s8[1,1,1]{2,1,0} parameter(9)
  %scores = f32[4,16,512,512]{2,3,1,0:T(8,128)} convolution(%q, %k), \
    window={size=4x16 stride=3x15 lhs_dilate=4x16}, dim_labels=0b1f_0o1i->01bf
  %heads = bf16[4,512,16,64]{1,3,2,0} convolution(%x, %w), \
    window={size=1x16 pad=0_0x15_15 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f, \
    operand_precision={highest,highest}
  %twice = f32[32,8]{1,0} add(%near, %near), \
    backend_config={"window_config":{"estimated_cycles":"263"}}
  %splash_mha_fwd.1 = f32[4,512,64]{2,1,0} custom-call(%mask, %scores, %q), frontend_attributes={
}}, backend_config={"custom_call_config":{}}
  %slice = bf16[64,32]{1,0} fusion(%stack, %i), kind=kLoop, calls=%fused_computation.1
  %update = f32[24,8,16]{2,1,0} fusion(%kept, %new, %i), kind=kLoop, calls=%fused_computation.2
  %begin = (f32[8,16]{1,0:S(1)}, f32[8,16]{1,0}, u32[]{:S(2)}) copy-start(%new)
  ROOT %end = f32[8,16]{1,0:S(1)} copy-done(%begin)
}
"""
QKV = 4 * 512 * 16 * 64 * 2  # bytes
SCORES = 4 * 16 * 512 * 512


def of(name: str) -> tuple[int, int, int, int]:
    program = read(TEXT)
    found = cost(program, "main", program.computations["main"][name])
    return found.flops, found.passed, found.bytes, found.cycles


FLOPS = 2 * SCORES * 64
HEADS = 2 * 4 * 512 * 1024 * 16 * 64
WEIGHTS = 1024 * 16 * 64 * 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scores", (FLOPS, FLOPS, 2 * QKV + 4 * SCORES, 0)),  # a convolution that is a product
        ("heads", (HEADS, 6 * HEADS, 4 * 512 * 1024 * 2 + WEIGHTS + QKV, 0)),
        ("twice", (0, 0, 4 * 32 * 8, 263)),  # operands on the chip
        ("slice", (0, 0, 2 * (64 * 32 * 2) + 4, 0)),  # one slice of 24, and its index
        ("update", (0, 0, 2 * (8 * 16 * 4) + 4, 0)),  # in place
        ("begin", (0, 0, 8 * 16 * 4, 0)),  # into the memory of the chip
        ("end", (0, 0, 0, 0)),
        ("q", (0, 0, 0, 0)),
    ],
)
def test_flops_passes_bytes_and_cycles(name: str, expected: tuple[int, ...]) -> None:
    assert of(name) == expected


def test_attention_kernels_count_by_their_products() -> None:
    # Queries [.., 512, 512], keys [.., 16, 64].
    assert of("splash_mha_fwd.1")[0] == 2 * 2 * (SCORES * 16)


@pytest.mark.parametrize("seed", range(20))
def test_pairs_that_meet_are_those_of_a_brute_force_convolution(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, kernel, stride, padding, spread, apart = (int(n) for n in rng.integers(1, 6, 6))
    row = np.zeros((size - 1) * spread + 1)
    row[::spread] = 1
    row = np.pad(row, padding)
    reach = (kernel - 1) * apart + 1
    out = max(0, (len(row) - reach) // stride + 1)
    met = sum(row[o * stride + k * apart] for o in range(out) for k in range(kernel))
    assert pairs(size, kernel, out, stride, padding, spread, apart) == met


def test_a_compiled_scan_of_products_is_counted_exactly() -> None:
    def run(layers: jax.Array, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ w), None

        return jnp.sum(jax.lax.scan(layer, x, layers)[0])

    args = jnp.zeros((5, 16, 16)), jnp.zeros((3, 16))
    text = jax.jit(jax.grad(run)).lower(*args).compile().as_text()
    program = read(text)
    total = sum(
        times * cost(program, where, instruction).flops
        for times, where, instruction in program.executed(program.entry)
        if instruction.operation in ("dot", "convolution")
    )
    forward = 5 * 2 * 3 * 16 * 16
    # No gradient is asked of x, but that of each layer's input is needed by the layer before.
    assert total in (3 * forward, 3 * forward - 2 * 3 * 16 * 16)
