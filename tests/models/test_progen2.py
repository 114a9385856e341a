"""ProGen2 against a reference of its own, written on the published tensors; what a block taps."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from progen2_reference import Blocks

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.convert import EXCHANGES, params_from, tensors
from protlm_jax.models.families.progen2 import progen2_config
from protlm_jax.models.stack import LayerProgram
from protlm_jax.objectives.base import cross_entropy

torch = pytest.importorskip("torch")

LENGTHS = np.array([12, 5, 9])
REAL = np.arange(12)[None] < LENGTHS[:, None]
RNG = np.random.default_rng(3)
TOKENS = np.where(REAL, RNG.integers(3, 30, REAL.shape), 0).astype(np.int32)
NEXT = np.roll(TOKENS, -1, axis=1)
ASKED = REAL & np.roll(REAL, -1, axis=1) & (np.arange(12) < 11)
BATCH = {
    "input_tokens": TOKENS,
    "segment_ids": REAL.astype(np.int32),
    "positions": np.tile(np.arange(12, dtype=np.int32), (3, 1)),
}


def reference(blocks: Blocks, ids: Any) -> dict[str, list[Any]]:
    """Streams, what each sublayer adds, and logits of one protein [L]."""
    h = blocks.embed(ids)
    found: dict[str, list[Any]] = {"stream": [], "attention": [], "mlp": []}
    for layer in range(blocks.number):
        mixed, inner = blocks.added(layer, h)
        for name, x in (("stream", h), ("attention", mixed), ("mlp", inner)):
            found[name].append(x)
        h = h + mixed + inner
    return {**found, "logits": [blocks.head(h)]}


@functools.cache
def both() -> tuple[dict[str, np.ndarray], Any, list[dict[str, list[Any]]], Any]:
    """Ours and the reference's: taps and logits, and gradients of the next tokens' loss."""
    loaded = zoo.loaded("progen2")
    model, exchange = loaded.model, EXCHANGES["progen2"]

    def loss(params: Any) -> tuple[jax.Array, Any]:
        h, context = model.apply({"params": params}, BATCH, method="embed")
        out, taps = model.apply({"params": params}, h, context, method="stack")
        logits = model.apply({"params": params}, out, method="head")
        lost = jnp.sum(cross_entropy(logits, jnp.asarray(NEXT)) * ASKED)
        return lost, {**taps["encoder"], "logits": logits[None]}

    gradients, seen = jax.jit(jax.grad(loss, has_aux=True))(loaded.params)
    state = {
        name: torch.tensor(array).requires_grad_()
        for name, array in tensors(exchange, loaded.params)
    }
    blocks = Blocks(state, loaded.config.num_heads, loaded.config.rotary_dim)
    rows = [torch.tensor(row[:n]).long() for row, n in zip(TOKENS, LENGTHS, strict=True)]
    found = [reference(blocks, row) for row in rows]
    for row, one in enumerate(found):
        targets = torch.tensor(NEXT[row, : LENGTHS[row] - 1]).long()
        logits = one["logits"][0][:-1]
        torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    expected = params_from(
        exchange, models.abstract_params(model), lambda name: state[name].grad.numpy()
    )
    return seen, gradients, found, expected


@pytest.mark.parametrize("name", ["stream", "attention", "mlp", "logits"])
def test_every_tap_is_that_of_the_reference(name: str, assert_close: Any) -> None:
    seen, _, found, _ = both()
    for row, length in enumerate(LENGTHS):
        for depth, expected in enumerate(found[row][name]):
            ours = np.asarray(seen[name])[depth, row, :length]
            assert_close(ours, expected.detach().numpy(), 1e-4, f"{name} {depth} of row {row}")


def test_every_gradient_is_that_of_the_reference(assert_close: Any) -> None:
    _, gradients, _, expected = both()
    for path, one in jax.tree_util.tree_leaves_with_path(expected):
        ours = functools.reduce(lambda tree, key: tree[key.key], path, gradients)
        assert_close(ours, one, 1e-4, jax.tree_util.keystr(path))
        assert np.abs(one).max() > 0


def test_both_sublayers_read_the_stream_before_the_block() -> None:
    """So that ablating one leaves what the other adds as it is."""
    seen, *_ = both()
    np.testing.assert_array_equal(seen["mlp_onto"], seen["stream"])
    np.testing.assert_array_equal(seen["attention_onto"], seen["stream"])
    loaded = zoo.loaded("progen2")
    run = functools.partial(loaded.model.apply, {"params": loaded.params})
    h, context = run(BATCH, method="embed")
    program = LayerProgram.full(loaded.config.num_layers).ablate(0, 0)
    _, taps = run(h, context, {"encoder": program}, method="stack")
    found = taps["encoder"]
    assert not np.asarray(found["attention"][0]).any()
    np.testing.assert_allclose(found["mlp"][0], seen["mlp"][0], atol=1e-6)
    without = np.asarray(seen["stream"][0] + seen["mlp"][0])
    np.testing.assert_allclose(found["stream"][1], without, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "rows", "millions"),
    [
        ("progen2_small", 32, 151.1),
        ("progen2_medium", 32, 764.8),
        ("progen2_large", 51_200, 2779.4),
        ("progen2_xlarge", 32, 6443.6),
    ],
)
def test_presets_have_their_published_sizes(preset: str, rows: int, millions: float) -> None:
    """151, 764 M, 2.7 and 6.4 B; the last two to the first decimal, as counted by their users. The
    original files have 51,200 rows for 30 tokens."""
    config = models.preset(preset).replace(vocab_size=rows)
    total = models.parameter_count(models.abstract_params(models.build(config)))
    assert round(total / 1e6, 1) == millions
    width = config.d_model
    block = 4 * width**2 + 2 * width * 4 * width + 5 * width + 2 * width
    assert total == config.num_layers * block + 2 * rows * width + rows + 2 * width


def test_parts_of_a_head_that_cannot_be_turned_are_refused() -> None:
    for rotary in (3, 6):
        with pytest.raises(ProtlmError, match=f"model.rotary_dim is {rotary}"):
            progen2_config(**{**zoo.SIZES, "head_dim": 4}, rotary_dim=rotary)
    with pytest.raises(ProtlmError, match="model.parallel_block needs"):
        progen2_config(**zoo.SIZES, norm_placement="post")
