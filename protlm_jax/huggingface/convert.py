"""One table, both directions: our stacked arrays and their state dict, bit for bit."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import Exchange, Key
from protlm_jax.models.registry import FAMILIES

EXCHANGES: dict[str, Exchange] = {
    name: family.exchange
    for name, family in FAMILIES.items()
    if isinstance(family.exchange, Exchange)
}
"""By family; those that are written as several folders have none of their own."""

# Fields that say how a model is run or trained, not what it computes; and the vocabulary, which
# the tokenizer's files say.
_NOT_ARCHITECTURE = frozenset(
    {
        "vocabulary",
        "dtype",
        "remat",
        "attention_backend",
        "dropout_rate",
        "mlp_dropout",
        "initializer_range",
        "position_init",
    }
)


def inexpressible(config: ModelConfig) -> list[str]:
    """Names of the fields that are lost on the way through their config.json."""
    exchange = EXCHANGES[config.family]
    there_and_back = exchange.from_config(exchange.to_config(config)).to_dict()
    return [
        field
        for field, value in config.to_dict().items()
        if field not in _NOT_ARCHITECTURE and there_and_back[field] != value
    ]


def tensors(exchange: Exchange, params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the table in their state dict, float32 and contiguous, layer by layer."""
    for keys in _by_tensor(exchange, params):
        arrays = [np.asarray(_leaf(params, key.ours), np.float32) for key in keys]
        for layer, (name, _) in enumerate(_names(keys[0], arrays[0].shape)):
            parts = [array[layer] if _layered(keys[0]) else array for array in arrays]
            yield name, _to_theirs(np.stack(parts) if len(keys) > 1 else parts[0], _layout(keys))


def expected_shapes(exchange: Exchange, abstract: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a folder of this config must hold."""
    shapes: dict[str, tuple[int, ...]] = {}
    for keys in _by_tensor(exchange, abstract):
        for name, shape in _names(keys[0], tuple(_leaf(abstract, keys[0].ours).shape)):
            shapes[name] = their_shape(_stacked(shape, keys), _layout(keys))
    return shapes


def names_of(exchange: Exchange, abstract: Any) -> dict[str, set[str]]:
    """Their names of the tensors below each parameter at the top of our tree."""
    names: dict[str, set[str]] = {}
    for keys in _by_tensor(exchange, abstract):
        for key in keys:
            shape = tuple(_leaf(abstract, key.ours).shape)
            names.setdefault(key.ours.partition("/")[0], set()).update(
                name for name, _ in _names(key, shape)
            )
    return names


def params_from(
    exchange: Exchange, abstract: Any, read: Callable[[str], np.ndarray]
) -> dict[str, Any]:
    """Our tree, filled from `read(name) -> np.ndarray` of the shapes in `expected_shapes`."""
    params: dict[str, Any] = {}
    for keys in _by_tensor(exchange, abstract):
        arrays = [np.empty(_leaf(abstract, key.ours).shape, np.float32) for key in keys]
        for layer, (name, shape) in enumerate(_names(keys[0], arrays[0].shape)):
            whole = _to_ours(read(name), _layout(keys), _stacked(shape, keys))
            for array, part in zip(arrays, whole if len(keys) > 1 else [whole], strict=True):
                target = array[layer] if _layered(keys[0]) else array
                target[...] = part
        for key, array in zip(keys, arrays, strict=True):
            *parents, leaf = key.ours.split("/")
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = array
    return params


def their_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Shape of a tensor after its layout rule."""
    ours, theirs = _parse(layout)
    sizes = dict(zip(itertools.chain(*ours), _split(shape, ours), strict=True))
    return tuple(math.prod(sizes[letter] for letter in group) for group in theirs)


def _to_theirs(array: np.ndarray, layout: str) -> np.ndarray:
    ours, theirs = _parse(layout)
    split = array.reshape(_split(array.shape, ours)).transpose(_order(ours, theirs))
    return np.ascontiguousarray(split).reshape(their_shape(array.shape, layout))


def _to_ours(array: np.ndarray, layout: str, shape: tuple[int, ...]) -> np.ndarray:
    ours, theirs = _parse(layout)
    sizes, order = _split(shape, ours), _order(ours, theirs)
    split = array.reshape([sizes[axis] for axis in order])
    return split.transpose(np.argsort(order)).reshape(shape)


def _layout(keys: list[Key]) -> str:
    """The rule of a tensor: of several parameters, for these stacked along a first axis P."""
    return keys[0].layout if len(keys) == 1 else f"P {keys[0].layout}"


def _stacked(shape: tuple[int, ...], keys: list[Key]) -> tuple[int, ...]:
    return shape if len(keys) == 1 else (len(keys), *shape)


def _parse(layout: str) -> tuple[list[list[str]], list[list[str]]]:
    """Of "D (8 H) -> (8 H) D 1" the letters of each of our axes, and those of each of theirs."""
    ours, theirs = (
        [word.strip("()").split() for word in re.findall(r"\([^)]*\)|\S+", side)]
        for side in layout.split("->")
    )
    return ours, [[] if word == ["1"] else word for word in theirs]


def _split(shape: tuple[int, ...], ours: list[list[str]]) -> list[int]:
    """Our shape with split axes as two."""
    sizes = []
    for size, letters in zip(shape, ours, strict=True):
        sizes += [size] if len(letters) == 1 else [int(letters[0]), size // int(letters[0])]
    return sizes


def _order(ours: list[list[str]], theirs: list[list[str]]) -> list[int]:
    """Where among our letters each of theirs stands."""
    letters = list(itertools.chain(*ours))
    return [letters.index(letter) for letter in itertools.chain(*theirs)]


def _by_tensor(exchange: Exchange, tree: Any) -> list[list[Key]]:
    """The keys of each tensor of theirs: one, or the parts of a fused tensor in their order."""
    groups: dict[str, list[Key]] = {}
    for key in exchange.keys:
        if not key.optional or _holds(tree, key.ours):
            groups.setdefault(key.theirs, []).append(key)
    for theirs, keys in groups.items():
        keys.sort(key=lambda key: key.part or (0, 1))
        count = len(keys)
        if [key.part or (0, 1) for key in keys] != [(i, count) for i in range(count)]:
            raise ValueError(f"the keys of {theirs} are not the parts of one tensor")
    return list(groups.values())


def _names(key: Key, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Their names for one array of ours, with the part of our shape that each stands for."""
    if not _layered(key):
        return [(key.theirs, shape)]
    return [(key.theirs.format(layer=layer), shape[1:]) for layer in range(shape[0])]


def _layered(key: Key) -> bool:
    return "{layer}" in key.theirs


def _holds(tree: Any, path: str) -> bool:
    name, _, rest = path.partition("/")
    return name in tree and (not rest or _holds(tree[name], rest))


def _leaf(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree
