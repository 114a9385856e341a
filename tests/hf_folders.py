"""Changes to a Hugging Face folder that tests make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import load_model


def rewrite(folder: Path, **changes: np.ndarray | None) -> None:
    """Adds or replaces tensors of model.safetensors, or (None) removes them."""
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {name: x for name, x in tensors.items() if x is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def reconfigure(folder: Path, *gone: str, **fields: object) -> None:
    """Sets fields of config.json, and removes those that are gone."""
    config = json.loads((folder / "config.json").read_text()) | fields
    kept = {name: value for name, value in config.items() if name not in gone}
    (folder / "config.json").write_text(json.dumps(kept))


def require_named(folder: Path, name: str) -> None:
    """Asserts that a tensor that is missing, or of another size, is named with its shape."""
    shape = list(load_file(folder / "model.safetensors")[name].shape)
    for array, said in (
        (np.zeros((3, 5), np.float32), f"has shape [3, 5], config.json asks for {shape}"),
        (None, f"of shape {shape} is missing"),
    ):
        rewrite(folder, **{name: array})
        with pytest.raises(ProtlmError) as error:
            load_model(folder)
        assert f"tensor {name} {said}" in str(error.value)
