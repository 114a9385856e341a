"""A T5X checkpoint as a model of ours, whichever of the three layouts its parameters have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.convert import expected_shapes, params_from
from protlm_jax.huggingface.tensor_files import StoredTensor
from protlm_jax.models import ModelConfig
from protlm_jax.t5x_bridge import t5_layouts
from protlm_jax.t5x_bridge.checkpoints import MODEL, described, open_parameters


def read_config(checkpoint: Path) -> ModelConfig:
    """The architecture; no parameter is read.

    Raises:
        ProtlmError: as `read_model`, but nothing is said about values.
    """
    model_dir = checkpoint.parent
    if config := described(model_dir):
        return config
    tensors = t5_layouts.unified(checkpoint, open_parameters(checkpoint))
    return t5_layouts.infer_config(checkpoint, tensors)


def read_model(checkpoint: Path) -> tuple[ModelConfig, Any]:
    """The architecture, and the parameters as a nested dict of float32 arrays.

    Args:
        checkpoint: `<model_dir>/checkpoint_<step>`.

    Raises:
        ProtlmError: damaged, no model that we have, or of another shape than what lies beside it
            says; the message names the file and the tensor.
    """
    stored = open_parameters(checkpoint)
    if config := described(checkpoint.parent):
        abstract = models.abstract_params(models.build(config))
        flat = flax.traverse_util.flatten_dict(abstract, sep="/")
        asked = {name: tuple(leaf.shape) for name, leaf in flat.items()}
        _require_all(checkpoint, stored, asked, MODEL)
        read = {name: stored[name].read() for name in asked}
        return config, flax.traverse_util.unflatten_dict(read, sep="/")
    tensors = t5_layouts.unified(checkpoint, stored)
    config = t5_layouts.infer_config(checkpoint, tensors)
    abstract = models.abstract_params(models.build(config))
    asked = expected_shapes(t5_layouts.EXCHANGE, abstract)
    _require_all(checkpoint, tensors, asked, "the T5 of T5X's examples")
    return config, params_from(t5_layouts.EXCHANGE, abstract, lambda name: tensors[name].read())


def _require_all(
    checkpoint: Path,
    there: dict[str, StoredTensor],
    asked: dict[str, tuple[int, ...]],
    by: str,
) -> None:
    for name in sorted(there.keys() | asked.keys()):
        shape = there[name].shape if name in there else None
        if shape != asked.get(name):
            found = f"has shape {list(shape)}" if shape is not None else "is missing"
            wanted = f"has {list(asked[name])}" if name in asked else "has no such tensor"
            raise ProtlmError(
                f"{there[name].file if name in there else checkpoint}: tensor {name} {found}, "
                f"{by} {wanted}: take everything from one place"
            )
