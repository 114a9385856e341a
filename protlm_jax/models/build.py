"""From a config to a module, its parameters, their shapes and their logical axes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.models.axes import NamedAxes
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import CONTACT_HEAD, Exchange
from protlm_jax.models.registry import family_of
from protlm_jax.models.stacked import Stacked, Streams


def build(config: ModelConfig, missing: Sequence[str] = ()) -> Stacked:
    """The linen module of a config.

    Args:
        config: of the model.
        missing: names of `Exchange.heads` that a folder does not hold. The module has their
            parameters, and refuses to compute with them.

    Raises:
        ProtlmError: for a family that does not exist.
    """
    family = family_of(config)
    if not (absent := absent_heads(config, [name for name in missing if name != CONTACT_HEAD])):
        return family.module(config)
    return _headless(family.module, absent)(config)  # type: ignore[arg-type]


def absent_heads(config: ModelConfig, missing: Sequence[str]) -> str:
    """What the heads of these names are called, for messages; "" without any."""
    exchange = family_of(config).exchange
    heads = exchange.heads if isinstance(exchange, Exchange) else {}
    return " and ".join(dict.fromkeys(heads[name] for name in missing))


@functools.cache
def _headless(module: type[Stacked], absent: str) -> type[Stacked]:
    """The family's class with readouts that give nothing; one class for each, as jit compares."""
    silent = tuple(
        dataclasses.replace(readout, kind="none", both_ways=False, absent=absent)
        for readout in module.readouts
    )

    def head(self: Any, h: Streams, deterministic: bool = True) -> jax.Array:
        if self.is_initializing():
            return module.head(self, h, deterministic)
        raise ProtlmError(f"the model {silent[0].silence}")

    members = {"readouts": silent, "head": head, "__module__": module.__module__}
    return type(f"{module.__name__}Headless", (module,), {**members, "__annotations__": {}})


def example_batch(config: ModelConfig, batch_size: int = 1, length: int = 2) -> dict[str, Any]:
    """A batch of the right features, all ones: for shapes, not for results."""
    ones = jnp.ones((batch_size, length), jnp.int32)
    if config.num_decoder_layers:
        kinds = ("input_tokens", "segment_ids", "positions")
        return {f"{side}_{kind}": ones for side in ("encoder", "decoder") for kind in kinds}
    return {"input_tokens": ones, "segment_ids": ones, "positions": jnp.zeros_like(ones)}


def count_tokens(batch: dict[str, np.ndarray]) -> int:
    """Tokens of a batch that are not padding; of an encoder-decoder, the encoder's."""
    name = "segment_ids" if "segment_ids" in batch else "encoder_segment_ids"
    return int(np.count_nonzero(batch[name]))


def init_boxed(model: nn.Module, rng: jax.Array) -> Any:
    """Fresh parameters with their logical axis names (traceable)."""
    return model.init(rng, example_batch(model.config))["params"]


def init_unboxed(model: nn.Module, rng: jax.Array) -> Any:
    """Fresh parameters as plain arrays (traceable)."""
    return nn.meta.unbox(init_boxed(model, rng))


def init_params(model: nn.Module, seed: int, shardings: Any = None) -> Any:
    """Fresh parameters as plain float32 arrays on the default device, or laid by `shardings`."""
    make = jax.jit(functools.partial(init_unboxed, model), out_shardings=shardings)
    return make(jax.random.key(seed))


def abstract_params(model: nn.Module) -> Any:
    """Shapes and dtypes of the parameters; nothing is allocated."""
    return jax.eval_shape(functools.partial(init_unboxed, model), jax.random.key(0))


def logical_axes(model: nn.Module) -> Any:
    """The parameters' tree with a tuple of logical axis names at each leaf."""
    boxed = jax.eval_shape(functools.partial(init_boxed, model), jax.random.key(0))
    return jax.tree.map(
        lambda box: box.names, boxed, is_leaf=lambda leaf: isinstance(leaf, NamedAxes)
    )


def parameter_count(tree: Any) -> int:
    """How many numbers a tree of arrays or shapes holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
