"""Protein language models: `embed -> a row of residual blocks -> head`.

`config.py` describes an architecture, `block.py` is one residual block, `stack.py` runs a row of
them (whole, by a layer program, or from a depth on), and `families/` holds one file per family.
"""

from __future__ import annotations

from protlm_jax.models.build import (
    abstract_params,
    build,
    init_params,
    logical_axes,
    parameter_count,
)
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.models.registry import FAMILIES, preset
from protlm_jax.models.stack import LayerProgram

__all__ = [
    "FAMILIES",
    "LayerProgram",
    "LoadedModel",
    "ModelConfig",
    "abstract_params",
    "build",
    "init_params",
    "logical_axes",
    "parameter_count",
    "preset",
]
