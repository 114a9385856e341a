"""One table, both directions: our stacked arrays and their state dict, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import Exchange, Key
from protlm_jax.models.registry import FAMILIES

EXCHANGES: dict[str, Exchange] = {name: family.exchange for name, family in FAMILIES.items()}

# Fields that say how a model is run or trained, not what it computes.
_NOT_ARCHITECTURE = frozenset(
    {
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
    """Every tensor of their state dict, float32 and contiguous, layer by layer."""
    for key in exchange.keys:
        array = np.asarray(_leaf(params, key.ours), np.float32)
        if "{layer}" not in key.theirs:
            yield key.theirs, _to_theirs(array, key.layout)
            continue
        for layer, part in enumerate(array):
            yield key.theirs.format(layer=layer), _to_theirs(part, key.layout)


def expected_shapes(exchange: Exchange, abstract: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a folder of this config must hold."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key in exchange.keys:
        shape = tuple(_leaf(abstract, key.ours).shape)
        for name, part in _names(key, shape):
            shapes[name] = their_shape(part, key.layout)
    return shapes


def params_from(
    exchange: Exchange, abstract: Any, read: Callable[[str], np.ndarray]
) -> dict[str, Any]:
    """Our tree, filled from `read(name) -> np.ndarray` of the shapes in `expected_shapes`."""
    params: dict[str, Any] = {}
    for key in exchange.keys:
        shape = tuple(_leaf(abstract, key.ours).shape)
        array = np.empty(shape, np.float32)
        for layer, (name, part) in enumerate(_names(key, shape)):
            target = array[layer] if "{layer}" in key.theirs else array
            target[...] = _to_ours(read(name), key.layout, part)
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
    order = [letters.index(letter) for letter in theirs.replace("(", "").replace(")", "").split()]
    groups: list[int] = []
    inside = False
    for word in theirs.split():
        if inside:
            groups[-1] += 1
        else:
            groups.append(1)
        inside = (inside or word.startswith("(")) and not word.endswith(")")
    return order, groups


def _names(key: Key, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Their names for one array of ours, with the part of our shape that each stands for."""
    if "{layer}" not in key.theirs:
        return [(key.theirs, shape)]
    return [(key.theirs.format(layer=layer), shape[1:]) for layer in range(shape[0])]


def _leaf(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree
