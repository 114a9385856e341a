"""Attention as it is chosen for TPUs of every generation, compiled for them."""

from __future__ import annotations

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

from protlm_jax import partitioning
from protlm_jax.config.files import load_config
from protlm_jax.models.attention import Attention
from protlm_jax.models.attention_context import AttentionContext, choose_backend
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.stack import UNROLL_UP_TO
from protlm_jax.planning.compile import abstract_batch
from protlm_jax.planning.topologies import topology
from protlm_jax.training.assembly import assemble

ROWS, LENGTH = 4, 512
SIZES = {"d_model": 128, "num_layers": 1, "num_heads": 2, "head_dim": 64, "d_ff": 128}
KERNELS = {"splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"}

pytestmark = [
    pytest.mark.libtpu,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs pip install 'protlm-jax[plan]'"
    ),
]


def kernels(text: str) -> set[str]:
    return set(re.findall(r"splash_mha_(?:fwd|dq|dkv)", text))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v2:2x2", "xla"),
        ("v3:2x2", "splash"),
        ("v4:2x2x1", "splash"),
        ("v5e:2x2", "splash"),
        ("v5p:2x2x1", "splash"),
        ("v6e:2x2", "splash"),
    ],
)
def test_every_generation_compiles_what_is_chosen_for_it(name: str, expected: str) -> None:
    config = bert_config(**SIZES, dtype="bfloat16", dropout_rate=0.0)
    mesh = partitioning.make_mesh({"data": 2, "tensor": 2}, topology(name).devices[:4])
    kind = mesh.devices.flat[0].device_kind
    assert choose_backend(config, kind, LENGTH).name == expected
    attention = Attention(config)

    def loss(params, x: jax.Array, segments: jax.Array) -> jax.Array:
        context = AttentionContext(segments, segments)
        return jnp.sum(attention.apply(params, x, x, context, True).astype(jnp.float32))

    x = jnp.zeros((ROWS, LENGTH, config.d_model), jnp.bfloat16)
    segments = jnp.ones((ROWS, LENGTH), jnp.int32)
    shapes = jax.eval_shape(attention.init, jax.random.key(0), x, x, AttentionContext(
        segments, segments), True)  # fmt: skip
    rows = partitioning.batch_sharding(mesh, ROWS)
    step = jax.jit(jax.grad(loss), in_shardings=(partitioning.replicated(mesh), rows, rows))
    with partitioning.on_mesh(mesh):
        text = step.lower(shapes, x, segments).compile().as_text()
    assert kernels(text) == (KERNELS if expected == "splash" else set())
    # A device has half of the rows and one of the two heads.
    scores = re.findall(rf"(?:f32|bf16)\[{ROWS // 2},1,{LENGTH},{LENGTH}\]", text)
    assert bool(scores) == (expected == "xla")


def test_a_causal_train_step_has_the_kernels_too_and_each_of_them_once() -> None:
    """Rematerialisation keeps what the forward kernel made. So many layers are a loop forward and
    one backward, of which the compiler cannot join what both compute."""
    layers = UNROLL_UP_TO + 1
    sizes = [f"model.{name}={size}" for name, size in {**SIZES, "num_layers": layers}.items()]
    config = load_config(
        "configs/tiny.py:gpt2",
        [*sizes, "model.dtype=bfloat16", "model.remat=minimal", f"data.length={LENGTH}"],
    )
    parts = assemble(config, topology("v4:2x2x1").devices)
    lowered = parts.update.lower(parts.abstract, abstract_batch(config))
    calls = re.findall(r"%(splash_mha_[a-z]+)\S* = .* custom-call\(", lowered.compile().as_text())
    assert sorted(calls) == sorted(KERNELS)
