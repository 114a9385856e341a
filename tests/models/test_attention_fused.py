"""Fused attention: who gets it, and that it is the reference's attention."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protlm_jax import models, partitioning
from protlm_jax.models.attention import reference_attention
from protlm_jax.models.attention_context import (
    Asked,
    AttentionContext,
    choose,
    choose_backend,
    describe,
)
from protlm_jax.models.attention_kernels import cudnn_attention, splash_attention, tile_of

PLAIN = Asked(512, 512, 64, "bfloat16", biased=False, limited=False, dropping=False)
H, K = 2, 8


@pytest.mark.parametrize(
    ("kind", "changes", "name", "reason"),
    [
        ("TPU v4", {}, "splash", ""),
        ("TPU v5 lite", {"queries": 128}, "splash", ""),
        ("TPU v6 lite", {"head_dim": 24}, "splash", ""),
        ("TPU v3", {}, "splash", ""),
        ("TPU v2", {}, "xla", "not compiled for TPU v2"),
        ("TPU v4", {"biased": True}, "xla", "adds no positions"),
        ("TPU v4", {"limited": True}, "xla", "segments and causal order only"),
        ("TPU v4", {"dropping": True}, "xla", "dropout_rate"),
        ("TPU v4", {"dtype": "float32"}, "xla", "this is float32"),
        ("TPU v4", {"keys": 500}, "xla", "500 tokens"),
        ("NVIDIA H200", {}, "cudnn", ""),
        ("NVIDIA A100-SXM4-40GB", {"biased": True, "limited": True}, "cudnn", ""),
        ("NVIDIA A100-SXM4-40GB", {"dtype": "float32"}, "xla", "this is float32"),
        ("NVIDIA A100-SXM4-40GB", {"head_dim": 160}, "xla", "this is 160"),
        ("NVIDIA A100-SXM4-40GB", {"queries": 511}, "xla", "even"),
        ("NVIDIA A100-SXM4-40GB", {"dropping": True}, "xla", "dropout_rate"),
        ("Tesla V100-SXM2-32GB", {}, "xla", "V100"),
        ("AMD Instinct MI300X", {}, "xla", "MI300X"),
        ("cpu", {}, "xla", "no fused kernel for cpu"),
    ],
)
def test_the_kernel_that_can_is_chosen_and_else_a_reason_given(kind, changes, name, reason) -> None:
    found = choose(kind, dataclasses.replace(PLAIN, **changes))
    assert found.name == name
    assert (reason in found.reason) if reason else not found.reason


def test_presets_are_described() -> None:
    esm2 = models.preset("esm2_650m").replace(dtype="bfloat16")
    t5 = models.preset("prot_t5_xl").replace(dtype="bfloat16", dropout_rate=0.0)
    assert describe(esm2, "TPU v4", 1024) == "splash"
    assert choose_backend(esm2, "TPU v4", 1022).name == "xla"
    assert describe(t5, "TPU v5", 512).endswith("positions to the scores; across splash")
    assert describe(t5, "NVIDIA H200", 512) == "cudnn"
    assert describe(esm2.replace(attention_backend="xla"), "TPU v4", 1024).startswith(
        "xla, because"
    )


def test_tiles_divide_rows() -> None:
    assert [tile_of(n) for n in (128, 384, 512, 640, 1024, 1152)] == [128, 384, 512, 128, 512, 384]


def inputs(queries: int, keys: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    lengths = (queries, keys, keys, queries)
    return tuple(rng.standard_normal((2, n, H, K)).astype(np.float32) for n in lengths)


def segments(length: int, *ends: int) -> np.ndarray:
    """[length] int32: 1 up to the first end, 2 up to the second, and padding at last."""
    place = np.arange(length)
    owner = np.searchsorted(np.asarray(ends), place, side="right") + 1
    return np.where(place < ends[-1], owner, 0).astype(np.int32)


# Queries' and keys' segments of two rows each, and whether order is causal. 640 tokens are five
# tiles; across, a row has padding that no key answers.
CASES = {
    "segments": (*[np.stack([segments(640, 100, 300, 600), segments(640, 640)])] * 2, False),
    "causal": (*[np.stack([segments(640, 500, 640), segments(640, 130)])] * 2, True),
    "after a past": (
        np.stack([segments(128, 60, 128), segments(128, 128)]),
        np.stack([np.concatenate([[1] * 128, segments(128, 60, 128)]), segments(256, 256)]),
        True,
    ),
    "across": (
        np.stack([segments(128, 40, 90), segments(128, 128)]),
        np.stack([segments(256, 100, 256), segments(256, 256)]),
        False,
    ),
}


def value_and_gradients(
    attention: Callable, case: str, dtype: str = "float32", *, biased: bool = False
) -> tuple[jax.Array, ...]:
    """Output and gradients, of the bias too; what padding gives counts for nothing."""
    mine, theirs, causal = CASES[case]
    *arrays, direction = inputs(mine.shape[1], theirs.shape[1])
    direction = direction * (mine > 0)[..., None, None]
    arrays = [jnp.asarray(x, dtype) for x in arrays]
    if biased:
        shape = (1, H, mine.shape[1], theirs.shape[1])
        arrays.append(jax.random.normal(jax.random.key(0), shape))

    def run(q: jax.Array, k: jax.Array, v: jax.Array, *bias: jax.Array):
        context = AttentionContext(jnp.asarray(mine), jnp.asarray(theirs), *bias, causal=causal)
        out = attention(q, k, v, context, lambda weights: weights)
        return jnp.sum(out * direction.astype(dtype)), out

    with_gradients = jax.grad(run, argnums=tuple(range(len(arrays))), has_aux=True)
    gradients, out = jax.jit(with_gradients)(*arrays)
    seen = out * (mine > 0)[..., None, None]
    return tuple(x.astype(jnp.float32) for x in (seen, *gradients))


@pytest.mark.parametrize("case", CASES)
def test_splash_is_the_reference(case: str, assert_close) -> None:
    found = value_and_gradients(functools.partial(splash_attention, interpret=True), case)
    reference = value_and_gradients(reference_attention, case)
    for name, a, b in zip("oqkv", found, reference, strict=True):
        assert_close(a, b, 1e-5, f"{case}: {name}")


def test_splash_goes_over_rows_and_heads_of_a_mesh(assert_close) -> None:
    alone = value_and_gradients(functools.partial(splash_attention, interpret=True), "across")
    mesh = partitioning.make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])
    with partitioning.on_mesh(mesh):
        shared = value_and_gradients(functools.partial(splash_attention, interpret=True), "across")
    assert_close(shared, alone, 1e-6)
    assert shared[0].sharding.spec[0] == "data" and shared[0].sharding.spec[2] == "tensor"


def test_cudnn_is_the_reference() -> None:
    """In a process of its own, because tests run on simulated CPU devices."""
    plugin = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    if not plugin or shutil.which("nvidia-smi") is None:
        pytest.skip("needs an NVIDIA GPU and JAX for CUDA")
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
    )
    if done.returncode == NOT_HERE:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


NOT_HERE = 77


def compare_on_gpu() -> None:
    """Prints the largest difference of each case, relative to the scale, and fails above 0.02."""
    chosen = choose(jax.devices()[0].device_kind, PLAIN)
    if chosen.name != "cudnn":
        print(f"needs another GPU: {chosen.reason}")
        sys.exit(NOT_HERE)
    for case, biased in itertools.product(CASES, (False, True)):
        found = value_and_gradients(cudnn_attention, case, "bfloat16", biased=biased)
        reference = value_and_gradients(reference_attention, case, "bfloat16", biased=biased)
        for name, a, b in zip("oqkvb" if biased else "oqkv", found, reference, strict=True):
            difference = float(jnp.abs(a - b).max() / jnp.abs(b).max())
            print(f"{case}, {name}: {difference:.2g}")
            assert difference < 0.02


if __name__ == "__main__":
    compare_on_gpu()
