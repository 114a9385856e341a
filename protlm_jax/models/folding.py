"""Remedies folded into parameters: the same function, of a model that other programs know.

A norm's scale takes up what divides the norm (LayerNorm Scaling); the map that ends a sublayer, or
the norm behind it, takes up what multiplies the sublayer (branch scales, DeepNorm).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from protlm_jax.models.build import build
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.loaded import LoadedModel

BRANCH = {"branch_scale": 1.0, "branch_power": 0.0, "branch_learned": "none"}
LAST = {"attention": "out", "cross_attention": "out", "mlp": "wo"}  # the map that ends a sublayer


def folded(loaded: LoadedModel, divisor: float | None = None) -> LoadedModel:
    """The model without the fields that can be folded exactly; the same one where there are none.

    Where all layers share their parameters, what differs from layer to layer stays.

    Args:
        divisor: `residual_divisor` of the result; None leaves it as it is.
    """
    config = loaded.config
    divisor = config.residual_divisor if divisor is None else divisor
    neutral = ModelConfig.from_dict({**config.to_dict(), **BRANCH, "residual_divisor": divisor})
    if not config.share_layers:
        neutral = neutral.replace(norm_scale="none")
    if neutral == config:
        return loaded
    params = {
        name: _stack(config, neutral, layers, name) if name in loaded.model.stack_names else layers
        for name, layers in loaded.params.items()
    }
    return dataclasses.replace(loaded, model=build(neutral, loaded.missing), params=params)


def _stack(config: ModelConfig, neutral: ModelConfig, params: Any, name: str) -> Any:
    """The parameters of one stack, every leaf [layers, ...]."""
    flat = {path: np.asarray(x) for path, x in flatten_dict(params).items()}
    count = config.num_decoder_layers if name == "decoder" else config.num_layers
    if neutral.norm_scale != config.norm_scale:
        factor = np.asarray([jnp.float32(1 / np.sqrt(layer + 1)) for layer in range(count)])
        for path in flat:
            if path[0] == "norm" or path[0] in {f"{sublayer}_norm" for sublayer in LAST}:
                flat[path] = flat[path] * factor[:, None]
    for sublayer, last in LAST.items():
        scale = flat.pop((f"{sublayer}_scale",), np.float32(config.branch_scale))
        scale = scale * count**-config.branch_power
        scale = scale * neutral.residual_divisor / config.residual_divisor
        peri = config.norm_placement == "peri"
        prefix = (f"{sublayer}_out_norm",) if peri else (sublayer, last)
        for path in [path for path in flat if path[: len(prefix)] == prefix]:
            flat[path] = (flat[path] * _along(scale, flat[path].ndim)).astype(np.float32)
    return unflatten_dict(flat)


def _along(scale: np.ndarray, rank: int) -> np.ndarray:
    """A number, [layers] or [layers, d_model] for a tensor [layers, ..., d_model]."""
    scale = np.asarray(scale)
    if scale.ndim == 0:
        return scale
    return scale.reshape(len(scale), *(1,) * (rank - 2), scale.shape[1] if scale.ndim > 1 else 1)
