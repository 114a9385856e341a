"""T5X's checkpoints, `<model_dir>/checkpoint_<step>/`, opened and written without T5X.

T5X stores the tree {"target": parameters, "state": {"step", "param_states"}} in one of two ways:
with Orbax in `state/`, its default; or, as it did before and still can, each array as a folder in
zarr's format beside a msgpack file `checkpoint` that names them all.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax
import numpy as np
import orbax.checkpoint as ocp

from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.folders import written_whole
from protlm_jax.huggingface.tensor_files import StoredTensor
from protlm_jax.models import ModelConfig, preset
from protlm_jax.storage.json_files import read_json
from protlm_jax.training.checkpoints import restore_field, stored_field
from protlm_jax.training.initial import Source
from protlm_jax.vocabularies import VOCABULARIES, get_vocabulary
from protlm_jax.vocabularies.files import custom_vocabulary

# What T5X writes beside a checkpoint. It is read without gin, which would import all that the file
# names, T5X too; the few values that are read here are literals.
GIN = "config.gin"
MODEL = "protlm_model.json"  # what `write_checkpoint` leaves beside a checkpoint: its architecture

_SPEC = {"driver", "kvstore", "metadata"}  # what stands for an array in the msgpack file


def open_parameters(checkpoint: Path) -> dict[str, StoredTensor]:
    """Every parameter by its path in T5X's tree, "encoder/encoder_norm/scale"; none is read yet.

    Raises:
        ProtlmError: the checkpoint is damaged, or holds no parameters.
    """
    opened = _open_orbax if (checkpoint / "state").is_dir() else _open_legacy
    tensors = opened(checkpoint)
    if not tensors:
        raise ProtlmError(
            f"{checkpoint} holds no parameters: its tree has no 'target', so T5X did not write it"
        )
    return tensors


def described(model_dir: Path) -> ModelConfig | None:
    """The architecture that protlm_model.json says, or a recipe of gin/ in config.gin; else None.

    The vocabulary is known by its name then.

    Raises:
        ProtlmError: a file is damaged, or was written by a version that knows other fields.
    """
    file = model_dir / MODEL
    if not file.exists():
        return _asked_for(model_dir)
    fields = read_json(file)
    try:
        config = ModelConfig.from_dict(fields["model"])
        vocabulary = {**fields["vocabulary"]}
        if vocabulary.pop("name") not in VOCABULARIES:
            custom_vocabulary(**vocabulary)
        get_vocabulary(config.vocabulary)
    except (KeyError, TypeError, ProtlmError) as error:
        raise ProtlmError(
            f"{file} describes no model ({error}): copy it again from where it was written"
        ) from error
    return config


def _asked_for(model_dir: Path) -> ModelConfig | None:
    """What config.gin binds of `models.architecture`; see protlm_jax.t5x_bridge.models."""
    fields = {
        field: literal(model_dir, f"architecture.{field}", value)
        for field, value in bound(model_dir, "architecture").items()
    }
    try:
        return preset(fields.pop("name")).replace(**fields) if "name" in fields else None
    except (TypeError, ProtlmError) as error:
        raise ProtlmError(f"{model_dir / GIN}: models.architecture: {error}") from error


def bound(model_dir: Path, name: str) -> dict[str, str]:
    """Values bound to the parameters of a configurable, as they are written, macros resolved.

    Args:
        model_dir: without a config.gin in it nothing is bound.
        name: of the configurable, without its module: "T5Config".
    """
    file = model_dir / GIN
    if not file.exists():
        return {}
    text = file.read_text().replace("\\\n", " ")  # gin breaks lines that are long
    macros = dict(re.findall(r"^(\w+) *= *(.+)$", text, re.MULTILINE))
    found = re.findall(rf"^(?:[\w.]+\.)?{name}\.(\w+) *= *(.+)$", text, re.MULTILINE)
    return {field: _resolved(value.strip(), macros) for field, value in found}


def literal(model_dir: Path, field: str, value: str) -> Any:
    """The value of what `bound` found.

    Raises:
        ProtlmError: it is no literal, but a reference to something.
    """
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise ProtlmError(
            f"{model_dir / GIN}: {field} is {value}, which T5X alone can tell: write its value"
        ) from error


def _resolved(value: str, macros: dict[str, str]) -> str:
    seen: set[str] = set()
    while value.startswith("%") and value not in seen:
        seen.add(value)
        value = macros.get(value[1:], value).strip()
    return value


def write_checkpoint(source: Source, model_dir: str | Path) -> Path:
    """Writes a model_dir with one checkpoint, parameters and step, from which T5X can start.

    The optimizer's state is not in it: T5X makes a new one where RestoreCheckpointConfig has
    `fallback_to_scratch`.

    Args:
        source: what `load_source` gave; of a checkpoint of ours, T5X goes on counting its steps.
        model_dir: a new folder, or an empty one.

    Returns:
        The checkpoint's folder.

    Raises:
        ProtlmError: the folder holds something, or the disk is full.
    """
    target = Path(model_dir).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ProtlmError(f"{target} is not an empty folder: choose another output")
    step = int(source.checkpoint.name) if source.checkpoint else 0
    tree = {
        "target": source.model.params,
        "state": {"step": np.asarray(step, np.int32)},
    }
    with written_whole(target) as folder:
        _describe(folder, source.model.config)
        options = ocp.CheckpointManagerOptions(step_prefix="checkpoint")
        with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
            manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree)))
    return target / f"checkpoint_{step}"


def _describe(model_dir: Path, config: ModelConfig) -> None:
    vocabulary = get_vocabulary(config.vocabulary)
    content = {"model": config.to_dict(), "vocabulary": vocabulary.to_dict()}
    (model_dir / MODEL).write_text(json.dumps(content, indent=2) + "\n")


def _open_orbax(checkpoint: Path) -> dict[str, StoredTensor]:
    folder = checkpoint / "state"

    @functools.cache  # Orbax reads a tree at once, on many threads
    def arrays() -> dict[str, Any]:
        return _flat(restore_field(folder, "target"))

    def read(name: str) -> np.ndarray:
        return np.asarray(arrays()[name], np.float32)

    shapes = _flat(stored_field(folder, "target") or {})
    return {
        name: StoredTensor(folder, tuple(leaf.shape), partial(read, name))
        for name, leaf in shapes.items()
    }


def _open_legacy(checkpoint: Path) -> dict[str, StoredTensor]:
    file = checkpoint / "checkpoint"
    try:
        content = flax.serialization.msgpack_restore(file.read_bytes())
        leaves = _flat(content["optimizer"]["target"])
    except OSError as error:
        raise ProtlmError(f"{file} cannot be read: {error.strerror}") from error
    except Exception as error:  # of msgpack, by what is wrong in the bytes
        raise ProtlmError(
            f"{file} is no index of a T5X checkpoint ({error!r}): copy the checkpoint again"
        ) from error
    return {name: _legacy_tensor(checkpoint, name, leaf) for name, leaf in leaves.items()}


def _legacy_tensor(checkpoint: Path, name: str, leaf: Any) -> StoredTensor:
    """A parameter that lies in a folder of its own, or, where it was not split, in the index."""
    if not isinstance(leaf, dict):
        return StoredTensor(
            checkpoint / "checkpoint", leaf.shape, lambda: np.asarray(leaf, np.float32)
        )
    kept = leaf["kvstore"].get("path") or leaf["path"]
    folder = checkpoint / Path(kept).name  # written with a relative path, or one of a bucket
    return StoredTensor(folder, tuple(leaf["metadata"]["shape"]), partial(_read_zarr, folder, name))


def _read_zarr(folder: Path, name: str) -> np.ndarray:
    import tensorstore

    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder)}}
    try:
        return np.asarray(tensorstore.open(spec).result().read().result(), np.float32)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ProtlmError(
            f"{folder}: tensor {name} cannot be read ({reason}): copy the checkpoint again"
        ) from error


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path, the indices of arrays in a legacy checkpoint among them."""
    return dict(
        flax.traverse_util.flatten_dict(tree, is_leaf=lambda _, node: node.keys() >= _SPEC, sep="/")
    )
