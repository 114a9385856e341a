"""One table, both directions: our stacked arrays and their state dict, bit for bit."""

from __future__ import annotations

import math
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
            parts = [
                _to_theirs(array[layer] if _layered(key) else array, key.layout)
                for key, array in zip(keys, arrays, strict=True)
            ]
            yield name, parts[0] if len(parts) == 1 else np.concatenate(parts)


def expected_shapes(exchange: Exchange, abstract: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a folder of this config must hold."""
    shapes: dict[str, tuple[int, ...]] = {}
    for keys in _by_tensor(exchange, abstract):
        for name, shape in _names(keys[0], tuple(_leaf(abstract, keys[0].ours).shape)):
            first, *rest = their_shape(shape, keys[0].layout)
            shapes[name] = (first * len(keys), *rest)
    return shapes


def params_from(
    exchange: Exchange, abstract: Any, read: Callable[[str], np.ndarray]
) -> dict[str, Any]:
    """Our tree, filled from `read(name) -> np.ndarray` of the shapes in `expected_shapes`."""
    params: dict[str, Any] = {}
    for keys in _by_tensor(exchange, abstract):
        arrays = [np.empty(_leaf(abstract, key.ours).shape, np.float32) for key in keys]
        for layer, (name, shape) in enumerate(_names(keys[0], arrays[0].shape)):
            parts = np.split(read(name), len(keys))
            for key, array, part in zip(keys, arrays, parts, strict=True):
                target = array[layer] if _layered(key) else array
                target[...] = _to_ours(part, key.layout, shape)
        for key, array in zip(keys, arrays, strict=True):
            *parents, leaf = key.ours.split("/")
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = array
    return params


def their_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Shape of a tensor after its layout rule."""
    order, groups = _parse(layout)
    sizes = iter([shape[axis] for axis in order])
    return tuple(math.prod(next(sizes) for _ in range(group)) for group in groups)


def _to_theirs(array: np.ndarray, layout: str) -> np.ndarray:
    order, _ = _parse(layout)
    return np.ascontiguousarray(array.transpose(order)).reshape(their_shape(array.shape, layout))


def _to_ours(array: np.ndarray, layout: str, shape: tuple[int, ...]) -> np.ndarray:
    order, _ = _parse(layout)
    split = array.reshape([shape[axis] for axis in order])
    return split.transpose(np.argsort(order))


def _parse(layout: str) -> tuple[list[int], list[int]]:
    """Of "D H K -> (H K) D": our axes in their order, and how many make up each of theirs."""
    ours, theirs = (side.strip() for side in layout.split("->"))
    letters = ours.split()
    plain = theirs.replace("(", "").replace(")", "").split()
    order = [letters.index(letter) for letter in plain if letter != "1"]
    groups: list[int] = []
    inside = False
    for word in theirs.split():
        if word == "1":
            groups.append(0)
        elif inside:
            groups[-1] += 1
        else:
            groups.append(1)
        inside = (inside or word.startswith("(")) and not word.endswith(")")
    return order, groups


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
