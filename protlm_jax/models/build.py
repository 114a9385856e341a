"""From a config to a module, its parameters, their shapes and their logical axes."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.models.axes import NamedAxes
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.registry import family_of
from protlm_jax.models.stacked import Stacked


def build(config: ModelConfig) -> Stacked:
    """The linen module of a config.

    Raises:
        ProtlmError: for a family that does not exist.
    """
    return family_of(config).module(config)


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


def init_params(model: nn.Module, seed: int) -> Any:
    """Fresh parameters as plain float32 arrays on the default device."""
    return jax.jit(functools.partial(init_unboxed, model))(jax.random.key(seed))


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
