"""Dropout's share, scale and repetition; and the device's own bits on a mesh, part by part."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protlm_jax.models import dropout as module
from protlm_jax.models.dropout import Dropout, hardware_dropout
from protlm_jax.partitioning import make_mesh, on_mesh

KEY = jax.random.key(3)
NAMES = ("batch", "length", "mlp")


def test_elsewhere_it_is_that_of_flax() -> None:
    x = jax.random.normal(jax.random.key(0), (4, 8, 16))
    for rate in (0.0, 0.1, 0.6):
        ours = Dropout(rate).apply({}, x, False, rngs={"dropout": KEY})
        theirs = nn.Dropout(rate).apply({}, x, deterministic=False, rngs={"dropout": KEY})
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(Dropout(rate).apply({}, x, True), x)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_bits_of_the_device_keep_a_share_and_the_mean(rate: float) -> None:
    x = jnp.ones((64, 32, 64))
    y = np.asarray(hardware_dropout(x, rate, KEY, NAMES))
    assert np.mean(y == 0) == pytest.approx(rate, abs=4 * (rate * (1 - rate) / x.size) ** 0.5)
    assert np.unique(y).size == 2 and y.max() == pytest.approx(1 / (1 - rate), rel=1e-4)
    again = hardware_dropout(x, rate, KEY, NAMES)
    np.testing.assert_array_equal(y, again)
    for key in (jax.random.PRNGKey(3), jax.random.key(3, impl="rbg")):
        assert np.mean(np.asarray(hardware_dropout(x, rate, key, NAMES)) == 0) < rate + 0.01
    other = hardware_dropout(x, rate, jax.random.key(4), NAMES)
    assert np.mean(y == other) == pytest.approx(rate**2 + (1 - rate) ** 2, abs=0.02)


@pytest.mark.parametrize("names", [NAMES, ("batch", "length", "embed"), (None, None, None)])
def test_each_device_draws_its_own_part_and_copies_agree(names: Any) -> None:
    shape = (8, 16, 32)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})

    def dropped(x: jax.Array, key: jax.Array) -> jax.Array:
        return hardware_dropout(x, 0.5, key, names)

    with on_mesh(mesh):
        program = str(jax.make_jaxpr(dropped)(jnp.ones(shape), KEY))
        drawn = jax.jit(dropped)(jnp.ones(shape), KEY)
        seen = {str(s.index): np.asarray(s.data) for s in drawn.addressable_shards}
        for shard in drawn.addressable_shards:  # what two devices hold of one part is equal
            np.testing.assert_array_equal(seen[str(shard.index)], shard.data)
    parts = {NAMES: [2, 16, 16], ("batch", "length", "embed"): [2, 16, 32]}
    part = ",".join(map(str, parts.get(names, shape)))
    assert f"u16[{part}] = rng_bit_generator" in program, program
    whole = np.asarray(drawn)
    assert np.mean(whole == 0) == pytest.approx(0.5, abs=0.03)
    halves = (whole == 0).reshape(8, 16, 2, 16).transpose(0, 2, 1, 3).reshape(16, -1)
    alike = [np.mean(halves[i] == halves[j]) for i in range(16) for j in range(i)]
    assert max(alike) < 0.7  # parts of different devices have different masks


def test_forward_and_backward_see_one_mask_under_remat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "device_kind", lambda: "TPU v3")
    monkeypatch.setattr(module, "is_placed", lambda: True)
    layer = Dropout(0.3)

    def loss(x: jax.Array) -> jax.Array:
        y = jax.checkpoint(lambda x: layer.apply({}, x, False, rngs={"dropout": KEY}))(x)
        return jnp.sum(y)

    x = jnp.ones((4, 8, 16))
    y = layer.apply({}, x, False, rngs={"dropout": KEY})
    np.testing.assert_array_equal(jax.grad(loss)(x), y)
    assert not np.array_equal(y, nn.Dropout(0.3).apply(
        {}, x, deterministic=False, rngs={"dropout": KEY}))  # fmt: skip
