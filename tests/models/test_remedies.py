"""Remedies for unused depth: formulas against PyTorch, folding, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import zoo
from flax.traverse_util import flatten_dict

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import export
from protlm_jax.huggingface.convert import inexpressible
from protlm_jax.huggingface.save import _folded
from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.block import Block, BlockContext
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.models.pruning import pruned
from protlm_jax.models.stack import (
    LayerProgram,
    init_stack,
    prepared,
    resume_stack,
    run_stack,
)

CASES: dict[str, dict[str, Any]] = {
    "scaled": {"norm_scale": "inverse_sqrt_depth", "branch_power": 1.0, "branch_scale": 0.7,
               "branch_learned": "scalar", "value_residual": "half", "long_skips": "unet"},
    "peri": {"norm_placement": "peri", "branch_learned": "channels", "branch_scale": 0.4,
             "value_residual": "learned", "long_skips": "unet", "num_layers": 5},
    "mix": {"norm_placement": "mix", "post_share": 0.5, "branch_scale": 0.5,
            "value_residual": "half"},
    "deepnorm": {"norm_placement": "post", "branch_scale": 2**-0.25, "branch_power": 0.25},
}  # fmt: skip


def block_of(changes: dict[str, Any]) -> Block:
    config = zoo.ZOO["gpt2"].config.replace(num_layers=4, num_heads=2)
    return Block(config.replace(norm_placement="pre").replace(**changes))


def fresh(block: Block) -> Any:
    return nn.meta.unbox(init_stack(jax.random.key(0), block))


def inputs(block: Block) -> tuple[Any, jax.Array, BlockContext]:
    params = zoo.perturbed(fresh(block), 1, 0.2)
    h = jax.random.normal(jax.random.key(2), (2, 6, block.config.d_model))
    ones = jnp.ones((2, 6), jnp.int32)
    return params, h, BlockContext(AttentionContext(ones, ones))


def norm(x: Any, p: dict[str, Any], layer: int) -> Any:
    return torch.nn.functional.layer_norm(
        x, x.shape[-1:], p["scale"][layer], p["bias"][layer], 1e-5
    )


def reference(c: models.ModelConfig, p: dict[str, Any], x: Any) -> Any:
    """The papers' formulas, layer by layer, from 1."""
    number, left, first = c.num_layers, [], None
    deep = (2 * number) ** 0.25
    for i in range(number):
        l = i + 1  # noqa: E741
        post = c.norm_placement == "post" or (
            c.norm_placement == "mix" and l <= c.post_share * number
        )
        if c.long_skips == "unet" and 2 * l > number + 1:
            x = x + p["long_skip_scale"][i] * left[number + 1 - l - 1]
        for name in ("attention", "mlp"):
            read = x if post else norm(x, p[f"{name}_norm"], i)
            if c.norm_scale != "none":
                read = read / math.sqrt(l)
            q = p[name]
            if name == "attention":
                maps = {
                    m: torch.einsum("bld,dhk->blhk", read, q[m]["kernel"][i]) + q[m]["bias"][i]
                    for m in ("query", "key", "value")
                }
                v = maps["value"]
                first = v if first is None else first
                if c.value_residual == "half":
                    v = v / 2 + first / 2
                if c.value_residual == "learned":
                    v = q["value_scale"][i, 0] * v + q["value_scale"][i, 1] * first
                scores = torch.einsum("blhk,bmhk->bhlm", maps["query"], maps["key"])
                weights = torch.softmax(scores / math.sqrt(c.head_dim), -1)
                mixed = torch.einsum("bhlm,bmhk->blhk", weights, v)
                f = torch.einsum("blhk,hkd->bld", mixed, q["out"]["kernel"][i])
                f = f + q["out"]["bias"][i]
            else:
                wide = read @ q["wi"]["kernel"][i] + q["wi"]["bias"][i]
                wide = torch.nn.functional.gelu(wide, approximate="tanh")
                f = wide @ q["wo"]["kernel"][i] + q["wo"]["bias"][i]
            if c.norm_placement == "peri":
                f = norm(f, p[f"{name}_out_norm"], i)
            if c.norm_placement == "post":  # DeepNorm as it is written: N(a x + f)
                x = torch.nn.functional.layer_norm(
                    deep * x + f, x.shape[-1:], p[f"{name}_norm"]["scale"][i],
                    p[f"{name}_norm"]["bias"][i], 1e-5 * deep**2,
                )  # fmt: skip
                continue
            scale = c.branch_scale if c.branch_learned == "none" else p[f"{name}_scale"][i]
            x = x + scale * f / number**c.branch_power
            x = norm(x, p[f"{name}_norm"], i) if post else x
        left.append(x)
    return x


@pytest.mark.exact
@pytest.mark.parametrize("case", CASES)
def test_a_stack_and_its_gradients_are_those_of_the_formulas(case: str) -> None:
    block = block_of(CASES[case])
    params, h, context = inputs(block)
    weight = np.random.default_rng(3).normal(size=h.shape).astype(np.float32)

    def loss(params: Any, h: jax.Array) -> tuple[jax.Array, Any]:
        out, taps = run_stack(block, params, h, context)
        return jnp.sum(out * weight), (out, taps)

    (_, (out, taps)), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, h)
    theirs = jax.tree.map(lambda x: torch.tensor(np.array(x), requires_grad=True), (params, h))
    expected = reference(block.config, *theirs)
    (expected * torch.tensor(weight)).sum().backward()
    close(out, expected.detach().numpy())
    largest = max(float(x.grad.abs().max()) for x in jax.tree.leaves(theirs))
    jax.tree.map(lambda a, b: close(a, b.grad.numpy(), scale=largest), grads, theirs)
    if block.config.adds_alone:  # every tap is what was added, after all scales
        streams = jnp.concatenate([taps["stream"], out[None]])
        added = sum(taps[name] for name in block.sublayers)
        close(streams[1:] - streams[:-1], added)


def close(actual: Any, expected: Any, tolerance: float = 1e-5, scale: float = 0.0) -> None:
    scale = scale or float(np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def test_a_skip_that_is_resumed_is_the_program_that_skips() -> None:
    """With values of layer 1 and long skips, which forget what the skipped layer added."""
    block = block_of({**CASES["scaled"], "num_layers": 5})
    params, h, context = inputs(block)
    out, taps = run_stack(block, params, h, context)
    streams = jnp.concatenate([taps["stream"], out[None]])
    ready = prepared(block, params, h, context)
    ready = dataclasses.replace(ready, skips=streams[1:3])
    for layer in (0, 1, 3):
        program = LayerProgram.full(5, 3).skip(layer)
        expected, _ = run_stack(block, params, h, context, program=program)
        found, _ = resume_stack(
            block, params, streams[layer], ready, layer + 1, lambda carry, *_: carry, ()
        )
        close(found, expected)
    cut = LayerProgram.full(5, 3).replace(gate=jnp.ones((5, 3)).at[:, 0].set(0.0))
    without = Block(block.config.replace(long_skips="none"))
    plain = {name: part for name, part in params.items() if name != "long_skip_scale"}
    close(
        run_stack(block, params, h, context, program=cut)[0],
        run_stack(without, plain, h, context)[0],
    )


def test_an_encoder_decoder_has_them_in_both_stacks() -> None:
    changes = {**CASES["peri"], "num_layers": 2}
    loaded = changed("t5", **changes)
    names = {n for n in flatten_dict(loaded.params, sep="/") if n.endswith("value_scale")}
    assert names == {f"{stack}/attention/value_scale" for stack in ("encoder", "decoder")}
    batch = zoo.row("t5", [0, 1])
    plain = loaded.model.apply({"params": loaded.params}, batch)
    assert np.isfinite(np.asarray(plain)).all()


def test_dropped_layers_are_zero_or_scaled_up() -> None:
    block = block_of({"num_layers": 1, "layer_drop": 0.75})
    params, h, context = inputs(block)
    added = run_stack(block, params, h, context)[0] - h
    run = jax.jit(lambda key: run_stack(block, params, h, context, dropout_rng=key)[0])
    gates = LayerProgram.full(1).replace(gate=jnp.full((1, 2), 4.0))
    scaled = run_stack(block, params, h, context, program=gates)[0]
    kept = 0
    for seed in range(64):
        out = run(jax.random.key(seed))
        dropped = bool(jnp.all(out == h))
        kept += not dropped
        if not dropped:
            close(out, scaled)
    assert 6 < kept < 28 and float(jnp.abs(added).max()) > 0


@pytest.mark.parametrize(
    ("kind", "gains"), [("sqrt_2l", (8**-0.5, 1)), ("deepnorm", (32**-0.25, 32**-0.25))]
)
def test_initial_sizes(kind: str, gains: tuple[float, float]) -> None:
    sizes = []
    for changes in ({}, {"init_depth": kind}):
        block = block_of({"d_model": 64, "d_ff": 256, **changes})
        flat = flatten_dict(fresh(block), sep="/")
        sizes.append({name: float(np.std(x)) for name, x in flat.items() if "kernel" in name})
    out, into = gains
    ratios = {name: sizes[1][name] / sizes[0][name] for name in sizes[0]}
    expected = {"attention/query/kernel": 1, "attention/key/kernel": 1}
    expected |= {"attention/value/kernel": into, "mlp/wi/kernel": into}
    expected |= {"attention/out/kernel": out, "mlp/wo/kernel": out}
    assert ratios == pytest.approx(expected, rel=1e-5)


def changed(family: str, **changes: Any) -> LoadedModel:
    specimen = zoo.ZOO[family]
    model = models.build(specimen.config.replace(**changes))
    params = zoo.perturbed(models.init_params(model, 0), 1)
    return LoadedModel(model, params, specimen.vocabulary, f"tiny-{family}")


def logits(loaded: LoadedModel, programs: Any = None) -> np.ndarray:
    batch = zoo.row(loaded.config.family, [0, 1])

    def run(params: Any) -> jax.Array:
        h, context = loaded.model.apply(params, batch, method="embed")
        h, _ = loaded.model.apply(params, h, context, programs, method="stack")
        return loaded.model.apply(params, h, method="head")

    return np.asarray(jax.jit(run)({"params": loaded.params}))


FOLDS = {
    "esm2": {"norm_scale": "inverse_sqrt_depth", "branch_learned": "channels", "branch_power": 1.0},
    "bert": {"branch_scale": 2**-0.25, "branch_power": 0.25},  # DeepNorm
    "progen2": {"norm_scale": "inverse_sqrt_depth", "branch_learned": "scalar"},
    "albert": {"branch_learned": "scalar", "branch_power": 1.0},
    "esmc": {"branch_scale": 0.3, "residual_divisor": 3.0},
}


@pytest.mark.exact
@pytest.mark.parametrize("family", FOLDS)
def test_folding_is_exact(family: str) -> None:
    loaded = changed(family, **FOLDS[family])
    plain = _folded(loaded)
    assert inexpressible(loaded.config) and not inexpressible(plain.config)
    assert plain.config.family == family
    close(logits(plain), logits(loaded))


def test_an_export_is_what_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    loaded = changed("esm2", **FOLDS["esm2"])
    folder = export(loaded, tmp_path / "hf")
    ids = loaded.vocabulary.encode("MKTAYIAKQR")[None]
    batch = {"input_tokens": ids, "segment_ids": np.ones_like(ids)}
    batch["positions"] = np.arange(ids.shape[1], dtype=np.int32)[None]
    own = np.asarray(loaded.model.apply({"params": loaded.params}, batch))
    with torch.no_grad():
        theirs = AutoModelForMaskedLM.from_pretrained(folder)(torch.tensor(ids)).logits.numpy()
    close(own[..., : theirs.shape[-1]], theirs)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("esm2", {"norm_placement": "peri"}), ("esm2", {"value_residual": "half"}),
     ("esm2", {"long_skips": "unet"}), ("bert", {"norm_placement": "mix"}),
     ("albert", {"norm_placement": "pre", "norm_scale": "inverse_sqrt_depth"})],
)  # fmt: skip
def test_what_cannot_be_folded_is_refused(family: str, changes: Any, tmp_path: Path) -> None:
    loaded = changed(family, **changes)
    (field, value), *_ = reversed(changes.items())
    with pytest.raises(ProtlmError, match=f"no way to say .*model.{field} = '{value}'"):
        export(loaded, tmp_path / "hf")
    if value != "peri":
        with pytest.raises(ProtlmError, match="cannot lose layers"):
            pruned(loaded, {"encoder": [0]})


@pytest.mark.exact
def test_a_pruned_model_keeps_the_scales_of_its_layers() -> None:
    loaded = changed("esm2", num_layers=3, **FOLDS["esm2"])
    program = {"encoder": LayerProgram.full(3).skip(1)}
    close(logits(pruned(loaded, {"encoder": [1]})), logits(loaded, program), 1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"norm_scale": "inverse_sqrt_depth", "norm_placement": "post"}, "norm_scale needs"),
     ({"long_skips": "unet", "num_layers": 1}, "at least two layers"),
     ({"value_residual": "half", "positions": "relative_xl"}, "is not defined for"),
     ({"layer_drop": 1.0}, "layer_drop is 1.0"),
     ({"parallel_block": True, "norm_placement": "mix"}, "parallel_block needs")],
)  # fmt: skip
def test_settings_without_a_meaning_are_named(changes: Any, message: str) -> None:
    with pytest.raises(ProtlmError, match=message):
        block_of(changes)
