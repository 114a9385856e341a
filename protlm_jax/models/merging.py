"""Adapters merged into the kernels beside which they stand; see `protlm_jax.models.adapters`.

`run_stack` merges those of one layer at a time, and backward does so again, so that no second copy
of the frozen kernels is ever held.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Params = Any


def merged(params: Params, stacked: bool = False) -> Params:
    """Parameters with the adapters among them merged into the kernels beside them.

    Of one layer; with `stacked`, of a tree of stacks with the layers as the first axis.
    """
    if not isinstance(params, Mapping):
        return params
    if params.keys() & {"lora_a", "ia3_in", "ia3_out"}:
        return jax.vmap(_merged)(params) if stacked else jax.checkpoint(_merged)(params)
    return {name: merged(part, stacked) for name, part in params.items()}


def _merged(node: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The kernel of one map, and its bias, after its adapter."""
    plain = {n: x.astype(jnp.float32) for n, x in node.items() if n in ("kernel", "bias")}
    kernel = plain["kernel"]
    if "ia3_out" in node:  # a bias is part of what a map puts out
        ahead = kernel.ndim - node["ia3_out"].ndim
        kernel = kernel * node["ia3_out"][(None,) * ahead]
        plain |= {n: x * node["ia3_out"] for n, x in plain.items() if n == "bias"}
    elif "ia3_in" in node:
        behind = kernel.ndim - node["ia3_in"].ndim
        kernel = kernel * node["ia3_in"][(..., *(None,) * behind)]
    else:
        a, b = node["lora_a"], node["lora_b"]
        kernel = kernel + jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
        if "magnitude" in node:
            norm = jax.lax.stop_gradient(column_norms(kernel, a.ndim - 1))
            kernel = kernel * (node["magnitude"] / norm)[(None,) * (a.ndim - 1)]
    return plain | {"kernel": kernel}


def column_norms(kernel: jax.Array, inputs: int) -> jax.Array:
    """The norm over what goes into a map, of each number that comes out."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=tuple(range(inputs))))
