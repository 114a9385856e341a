"""Whether the tensors of a folder are those of the model that its config.json describes."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.convert import expected_shapes
from protlm_jax.huggingface.tensor_files import StoredTensor
from protlm_jax.models import ModelConfig
from protlm_jax.models.exchange import Exchange

log = logging.getLogger(__name__)

# How TensorFlow's LayerNorm called its parameters; transformers reads these names in every model,
# and 5.23 writes them back where it has read them.
_OLD_NORMS = {"*LayerNorm.gamma": "weight", "*LayerNorm.beta": "bias"}


def matched(
    folder: Path,
    exchange: Exchange,
    config: ModelConfig,
    abstract: Any,
    stored: dict[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors that the model needs, and what is left of the others: a line and reason each.

    Args:
        folder: where the tensors lie, for messages.
        exchange: the family's table.
        config: of the model.
        abstract: shapes of its parameters.
        stored: every tensor of the folder.

    Raises:
        ProtlmError: a tensor is missing, has another shape, has no place in the model, or is not
            what it must be equal to; the message names it.
    """
    expected = expected_shapes(exchange, abstract)
    stored = _by_todays_names(exchange.aliases, stored)
    for name, compute in exchange.defaults.items():
        if name not in stored:
            stored[name] = StoredTensor(folder, expected[name], partial(compute, config))
            log.info("%s: %s is not there and follows from config.json", folder, name)
    notes = []
    for copy, original in exchange.copies.items():
        if copy in expected and copy not in stored and original in stored:
            stored[copy] = stored[original]
            log.info("%s: %s is not there, %s is taken for it", folder, copy, original)
        if copy in expected or copy not in stored:
            continue
        tensor = stored.pop(copy)
        if original not in stored:
            stored[original] = tensor
        elif not _equal(tensor, stored[original]):
            raise ProtlmError(
                f"{tensor.file}: {copy} differs from {original}, which config.json says it is tied "
                f"to: with untied weights, this model cannot be read"
            )
        else:
            notes.append(f"{copy} (equals {original})")
    for pattern, reason in exchange.unused.items():
        for name in fnmatch.filter(stored, pattern):
            stored.pop(name)
            notes.append(f"{name} ({reason})")
    for name in exchange.constants.keys() & stored.keys():
        _require_constant(stored.pop(name), name, exchange.constants[name](config))
        notes.append(f"{name} (follows from config.json)")
    if notes:
        log.info("%s: not taken over: %s", folder, "; ".join(sorted(notes)))
    _require_all(folder, expected, stored)
    return stored, tuple(sorted(notes))


def _by_todays_names(
    aliases: Mapping[str, str], stored: dict[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The tensors under the names that the table has."""
    renamed: dict[str, StoredTensor] = {}
    for old, tensor in stored.items():
        name = next((new for pattern, new in aliases.items() if fnmatch.fnmatch(old, pattern)), old)
        for pattern, leaf in _OLD_NORMS.items():
            if fnmatch.fnmatch(old, pattern):
                name = f"{old.rpartition('.')[0]}.{leaf}"
        if name in renamed and not _equal(renamed[name], tensor):
            raise ProtlmError(
                f"{tensor.file}: {old} differs from another tensor that stands for {name}; the "
                f"model has one: take the weights from where they came from"
            )
        renamed[name] = tensor
    return renamed


def _require_constant(tensor: StoredTensor, name: str, asked: np.ndarray) -> None:
    if tensor.shape != asked.shape or not np.allclose(tensor.read(), asked, rtol=1e-3):
        raise ProtlmError(
            f"{tensor.file}: tensor {name} is not the constant that follows from config.json: take "
            f"both from one place"
        )


def _require_all(
    folder: Path, expected: dict[str, tuple[int, ...]], stored: dict[str, StoredTensor]
) -> None:
    if missing := [name for name in expected if name not in stored]:
        shape = list(expected[missing[0]])
        raise ProtlmError(
            f"{folder}: tensor {missing[0]} of shape {shape} is missing{_more(missing)}; found "
            f"{len(stored)} of {len(expected)}. The weights are of another model class or size "
            f"than config.json says: copy both again from one place"
        )
    if unexpected := sorted(stored.keys() - expected.keys()):
        tensor = stored[unexpected[0]]
        raise ProtlmError(
            f"{tensor.file}: tensor {unexpected[0]} of shape {list(tensor.shape)} has no place in "
            f"the model of config.json{_more(unexpected)}: take config.json and weights from one "
            f"place, or remove the tensor from the file"
        )
    for name, asked in expected.items():
        if stored[name].shape != asked:
            raise ProtlmError(
                f"{stored[name].file}: tensor {name} has shape {list(stored[name].shape)}, "
                f"config.json asks for {list(asked)}: take both from one place"
            )


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    return a.shape == b.shape and bool((a.read() == b.read()).all())


def _more(names: list[str]) -> str:
    return "" if len(names) == 1 else f" (and {len(names) - 1} more: {', '.join(names[1:4])}...)"
