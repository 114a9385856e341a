"""The tensors of a Hugging Face folder, whichever of its four ways of storing them it uses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (gives NumPy the bfloat16 that safetensors asks it for)
import numpy as np
from safetensors import SafetensorError, safe_open

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.json_files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

_POINTER = b"version https://git-lfs.github.com/"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk: `read()` gives its values as float32."""

    file: Path
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def open_tensors(folder: Path, stack: ExitStack) -> dict[str, StoredTensor]:
    """Every tensor of the folder by name; nothing is read yet.

    Args:
        folder: holds model.safetensors or pytorch_model.bin, or shards of one with their index.
        stack: closes the files.

    Raises:
        ProtlmError: none of these is there, a shard is missing or lies elsewhere, or a file is
            damaged.
    """
    if (folder / SINGLE).exists():
        return open_safetensors(folder / SINGLE, stack)
    if (folder / INDEX).exists():
        return _open_shards(folder / INDEX, lambda file: open_safetensors(file, stack))
    if (folder / PICKLE).exists():
        return _open_pickle(folder / PICKLE)
    if (folder / PICKLE_INDEX).exists():
        return _open_shards(folder / PICKLE_INDEX, _open_pickle)
    raise ProtlmError(
        f"{folder} holds no weights: {SINGLE}, {INDEX} with its shards, or {PICKLE} is needed"
    )


def _open_shards(
    index: Path, open_one: Callable[[Path], dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    place = read_json(index).get("weight_map")
    if not isinstance(place, dict):
        raise ProtlmError(f"{index} has no weight_map: copy it again")
    for name in place.values():
        if not isinstance(name, str) or not name.isprintable() or name != Path(name).name:
            raise ProtlmError(
                f"{index} names {name!r:.60}, which is not the name of a file in its folder: take "
                f"the index from where the weights came from"
            )
    there = {file.name for file in index.parent.iterdir()}
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(place.values())):
        if name not in there:
            raise ProtlmError(f"{index} names {name:.200}, which is not in the folder: copy it too")
        tensors |= open_one(index.parent / name)
    for name, file in place.items():
        if name not in tensors:
            raise ProtlmError(
                f"{index} says that {file} holds {name}, but it does not: index and shards are of "
                f"different models; copy them again from one place"
            )
    return tensors


def refuse_pointer(file: Path) -> None:
    """Raises ProtlmError for what stands in a file's place: a pointer of Git LFS, or no file."""
    if not file.is_file():  # a named pipe would be waited for
        raise ProtlmError(f"{file} is not an ordinary file: copy it again")
    try:
        with file.open("rb") as opened:
            start = opened.read(len(_POINTER))
    except OSError as error:
        raise ProtlmError(f"{file} cannot be read: {error.strerror}") from error
    if start == _POINTER:
        raise ProtlmError(
            f"{file} is a pointer of Git LFS, not the file itself: run `git lfs pull` in its "
            f"repository (after `git lfs install`), or download the folder with `hf download`"
        )


def open_safetensors(file: Path, stack: ExitStack) -> dict[str, StoredTensor]:
    refuse_pointer(file)
    try:
        opened = stack.enter_context(safe_open(file, framework="np"))
        names = opened.keys()
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ProtlmError(f"{file} cannot be read ({error}): copy it again") from error
    return {
        name: StoredTensor(file, shape, partial(_read, opened.get_tensor, name))
        for name, shape in shapes.items()
    }


def _open_pickle(file: Path) -> dict[str, StoredTensor]:
    refuse_pointer(file)
    try:
        import torch
    except ImportError as error:
        raise ProtlmError(
            f"{file} needs PyTorch to be read: pip install 'protlm-jax[hf]', or convert it to "
            f"{SINGLE}"
        ) from error
    try:
        # Anything but plain tensors is refused, so a hostile file cannot run code here.
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own message is not passed on: it advises to run what is in the file.
        holds_code = "weights_only" in str(error) or "Unsupported" in str(error)
        reason = "it holds objects other than tensors" if holds_code else "it is damaged"
        raise ProtlmError(
            f"{file} cannot be read as plain tensors: {reason}. Nothing in it was run. Copy it "
            f"again, or get the model as {SINGLE}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(t, torch.Tensor) for name, t in state.items()
    ):
        raise ProtlmError(f"{file} is not a state dict of tensors: get the model as {SINGLE}")
    return {
        name: StoredTensor(file, tuple(t.shape), partial(_read, _numpy, t))
        for name, t in state.items()
    }


def _read(get: Callable[[Any], np.ndarray], what: Any) -> np.ndarray:
    return np.asarray(get(what), np.float32)


def _numpy(tensor: Any) -> np.ndarray:
    array: np.ndarray = tensor.float().numpy()
    return array
