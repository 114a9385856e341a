"""Every family gives, for every metric and stack, numbers or a reason; traced, and not compiled."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import zoo

from protlm_jax import models
from protlm_jax.evaluation.depth.ablation import erase
from protlm_jax.evaluation.depth.batches import prepare
from protlm_jax.evaluation.depth.gradients import attribute
from protlm_jax.evaluation.depth.metrics import DEFAULT, METRICS, forwards, measure, why_not
from protlm_jax.evaluation.depth.sweep import Sweep, compiled
from protlm_jax.evaluation.depth.tuned_lens import measured_lens
from protlm_jax.models.loaded import LoadedModel

# What each metric's quantities are called.
PREFIX = {
    "contributions": "cosine",
    "angles": "block_influence",
    "similarity": "streams",
    "logit_lens": "lens_kl",
    "skips": "skip_effect",
    "sublayer_skips": "sublayer_skip_effect",
    "local_effects": "local_effect",
    "swaps": "swap_kl",
    "repeats": "repeat_kl",
    "block_deletions": "delete_kl",
    "reversals": "reverse_kl",
    "erasure": "erasure_kl",
    "gradients": "context_share",
    "tuned_lens": "tuned_lens_kl",
}


def encoder_alone() -> LoadedModel:
    """ProtT5's encoder, which is no specimen because nothing trains it."""
    config = zoo.ZOO["t5"].config.replace(family="t5_encoder", num_decoder_layers=0)
    model = models.build(config)
    return LoadedModel(model, models.init_params(model, 0), zoo.ZOO["t5"].vocabulary, "encoder")


def found(loaded: LoadedModel, stack: str, metrics: tuple[str, ...]) -> set[str]:
    """Names of what these metrics give, by tracing alone."""
    proteins = prepare(loaded, {"P": "MKTAYIAKQRQISFVKSHFSRQ"}, None, 0)
    batch, sweep = proteins.batch(loaded, 0), Sweep(loaded, proteins, stack)

    def shapes(function: Any, *more: Any, **fixed: Any) -> Any:
        bound = functools.partial(compiled, function, tuple(fixed.items()), loaded.model, stack)
        return jax.eval_shape(bound, loaded.params, sweep.shown(batch), more)

    streamed = tuple(name for name in metrics if METRICS[name].how != "sweep")
    quantities, sample = shapes(measure, metrics=streamed, points=4)
    names, c = {*quantities, *sample}, loaded.config
    if "erasure" in metrics:
        means, places = jnp.zeros((3, c.d_model)), jnp.zeros((8, 2), jnp.int32)
        names |= set(shapes(erase, means, places, depths=(1,)))
    if "gradients" in metrics:
        real = jnp.asarray(batch.protein >= 0)
        share, _ = shapes(attribute, real, depths=(1,), steps=2)
        assert share.shape == (1, *real.shape)
        names.add("context_share")
    if "tuned_lens" in metrics:
        maps = {"A": jnp.zeros((2, c.d_model, c.d_model)), "b": jnp.zeros((2, c.d_model))}
        names |= set(shapes(measured_lens, maps))
    return names


def model_of(family: str) -> LoadedModel:
    return encoder_alone() if family == "t5_encoder" else zoo.loaded(family)


@pytest.mark.parametrize("family", [*zoo.ZOO, "t5_encoder"])
def test_what_is_not_defined_has_a_reason(family: str) -> None:
    model = model_of(family).model
    for stack in model.stack_names:
        reasons = {name: why_not(name, model, stack, 3) for name in METRICS}
        assert not any(reasons[name] for name in ("contributions", "angles", "similarity", "skips"))
        for name, reason in reasons.items():
            if METRICS[name].needs in ("answer", "lens") and not model.readouts[0].reads_stream:
                assert reason == f"the model {model.readouts[0].silence}", name
            assert reason is None or len(reason) > 20
        assert why_not("swaps", model, stack, 1) == "needs 2 layers, and there are 1"
    masked = ("albert", "bert", "dplm", "esm2", "esmc", "roberta", "saprot")
    assert (model.readouts[0].why_no_noise is None) == (family in masked)


TRACED = ("bert", "electra", "xlnet", "t5_encoder")  # others are seen to by test_summary, in part


@pytest.mark.parametrize(
    "family",
    [*TRACED, *(pytest.param(f, marks=pytest.mark.slow) for f in zoo.ZOO if f not in TRACED)],
)
def test_what_is_defined_has_numbers(family: str) -> None:
    loaded = model_of(family)
    for stack in loaded.model.stack_names:
        small = [name for name in METRICS if METRICS[name].layers < 3]  # the models have two
        reasons = {name: why_not(name, loaded.model, stack, 2) for name in small}
        names = found(loaded, stack, tuple(n for n in small if reasons[n] is None))
        for name, reason in reasons.items():
            assert (PREFIX[name] in names) == (reason is None), (stack, name, reason)


@pytest.mark.parametrize("layers", [6, 24, 33, 48])
def test_the_default_costs_less_than_two_and_a_half_forwards_a_layer(layers: int) -> None:
    assert forwards(DEFAULT, layers, 2) <= 2.5 * layers
