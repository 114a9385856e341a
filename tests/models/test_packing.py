"""A protein sees exactly what it would see alone, however its row is filled."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from zoo import KINDS, ROW, WATCHED, ZOO, kinds_alone, loaded, row


@functools.cache
def network(family: str) -> tuple[Any, Any, Any]:
    """Model, parameters, and a jitted function giving all that can be seen of a batch."""
    model, params = loaded(family).model, loaded(family).params

    @jax.jit
    def outputs(batch: dict[str, Any]) -> dict[str, jax.Array]:
        h, context = model.apply({"params": params}, batch, method="embed")
        out, taps = model.apply({"params": params}, h, context, method="stack")
        streams = {f"{name} stream": taps[name]["stream"] for name in taps}
        hidden = model.apply({"params": params}, batch, method="hidden")
        logits = model.apply({"params": params}, out, method="head")
        return {**streams, "hidden": hidden[None], "logits": logits[None]}

    return model, params, outputs


def cut(outputs: dict[str, jax.Array], where: slice) -> dict[str, np.ndarray]:
    return {name: np.asarray(x)[:, 0, where] for name, x in outputs.items()}


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.exact] * (f in KINDS)) for f in ZOO]
)
def test_packed_alone_and_padded_are_the_same(family: str, assert_close) -> None:
    _, _, outputs = network(family)
    alone = cut(outputs(row(family, [1], 9)), slice(0, 9))
    padded = cut(outputs(row(family, [1], ROW)), slice(0, 9))
    packed_row = row(family, [0, 1, 2], ROW)
    packed = cut(outputs(packed_row), WATCHED)
    for name, expected in alone.items():
        assert_close(padded[name], expected, 1e-5, f"{name}, padded")
        assert_close(packed[name], expected, 1e-5, f"{name}, packed between others")
    # The comparison can fail: without segments the neighbours are seen.
    blind = {k: np.ones_like(v) if "segment" in k else v for k, v in packed_row.items()}
    leaked = cut(outputs(blind), WATCHED)
    for name in ("hidden", "logits"):
        assert np.abs(leaked[name] - alone[name]).max() > 1e-2 * np.abs(alone[name]).max()


@pytest.mark.parametrize("family", kinds_alone())
def test_no_other_segment_has_any_influence(family: str) -> None:
    """The gradient of what is read at one protein is exactly zero in all the others' streams."""
    model, params, _ = network(family)
    h, context = model.apply({"params": params}, row(family, [0, 1, 2], ROW), method="embed")
    logits = model.apply({"params": params}, h, method="head")
    direction = np.random.default_rng(1).standard_normal(logits.shape).astype(np.float32)

    @jax.jit
    def read(h: dict[str, jax.Array]) -> jax.Array:
        out, _ = model.apply({"params": params}, h, context, method="stack")
        logits = model.apply({"params": params}, out, method="head")
        return jax.numpy.sum((logits * direction)[:, WATCHED])

    for stack, gradient in jax.grad(read)(h).items():
        reached = np.abs(np.asarray(gradient[0])).max(axis=-1)
        assert (reached[WATCHED] > 0).all(), stack
        assert np.delete(reached, np.r_[WATCHED]).max() == 0, stack


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_only_the_decoder_is_causal(stack: str) -> None:
    """What is read at one position reaches forwards in the encoder, and never in the decoder."""
    model, params, _ = network("t5")
    h, context = model.apply({"params": params}, row("t5", [1], 9), method="embed")

    def read(h: dict[str, jax.Array]) -> jax.Array:
        out, _ = model.apply({"params": params}, h, context, method="stack")
        return jax.numpy.sum(model.apply({"params": params}, out, method="head")[0, 4, :7])

    reached = np.abs(np.asarray(jax.jit(jax.grad(read))(h)[stack][0])).max(axis=-1) > 0
    assert reached.tolist() == [True] * 5 + [stack == "encoder"] * 4
