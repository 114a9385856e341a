"""Our stacked arrays and their state dict, bit for bit, by one table in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from protlm_jax.huggingface.placement import Placement
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
        "layer_drop",
        "initializer_range",
        "init_depth",
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
    flat = flatten_dict(params, sep="/")
    for keys in by_tensor(exchange, flat):
        arrays = [np.asarray(flat[key.ours], np.float32) for key in keys]
        for layer, (name, _) in enumerate(layer_names(keys[0], arrays[0].shape)):
            parts = [array[layer] if _layered(keys[0]) else array for array in arrays]
            part = np.stack(parts) if len(keys) > 1 else parts[0]
            ours, theirs, sizes = pattern(_layout(keys), part.shape)
            yield name, np.ascontiguousarray(rearrange(part, f"{ours} -> {theirs}", **sizes))


def expected_shapes(exchange: Exchange, abstract: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a folder of this config must hold."""
    flat = flatten_dict(abstract, sep="/")
    return {
        name: their_shape(_stacked(shape, keys), _layout(keys))
        for keys in by_tensor(exchange, flat)
        for name, shape in layer_names(keys[0], flat[keys[0].ours].shape)
    }


def names_of(exchange: Exchange, abstract: Any) -> dict[str, set[str]]:
    """Their names of the tensors below each parameter at the top of our tree."""
    flat, names = flatten_dict(abstract, sep="/"), dict[str, set[str]]()
    for key in (key for keys in by_tensor(exchange, flat) for key in keys):
        tensors = {name for name, _ in layer_names(key, flat[key.ours].shape)}
        names.setdefault(key.ours.partition("/")[0], set()).update(tensors)
    return names


def params_from(
    exchange: Exchange,
    abstract: Any,
    read: Callable[[str], np.ndarray],
    placement: Placement = Placement(),
) -> dict[str, Any]:
    """Our tree, filled from `read(name) -> np.ndarray` of the shapes in `expected_shapes`.

    One tensor of theirs is held at a time, beside what `placement` holds.
    """
    flat, params = flatten_dict(abstract, sep="/"), dict[str, jax.Array]()
    for keys in by_tensor(exchange, flat):
        names = [key.ours for key in keys]
        arrays = [placement.start(name, flat[name].shape) for name in names]
        for layer, (tensor, shape) in enumerate(layer_names(keys[0], flat[names[0]].shape)):
            ours, theirs, sizes = pattern(_layout(keys), _stacked(shape, keys))
            whole = rearrange(read(tensor), f"{theirs} -> {ours}", **sizes)
            parts = whole if len(keys) > 1 else [whole]
            index = layer if _layered(keys[0]) else ...
            arrays = [
                placement.fill(name, array, index, part)
                for name, array, part in zip(names, arrays, parts, strict=True)
            ]
        params |= {n: placement.finish(array) for n, array in zip(names, arrays, strict=True)}
    return unflatten_dict(params, sep="/")


def their_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Shape of a tensor of ours after its layout rule."""
    ours, theirs, sizes = pattern(layout, shape)
    nothing = np.broadcast_to(np.float32(0.0), shape)  # no memory is taken
    return rearrange(nothing, f"{ours} -> {theirs}", **sizes).shape


def pattern(layout: str, shape: tuple[int, ...]) -> tuple[str, str, dict[str, int]]:
    """Both sides of a rule for einops, and sizes: an axis of 8 parts is called n8."""
    ours, theirs = re.sub(r"\b([2-9]|\d\d+)\b", r"n\1", layout).split("->")
    sizes = {name: int(name[1:]) for name in re.findall(r"n\d+", ours)}
    axes = re.findall(r"\([^)]*\)|\S+", ours)
    return (
        ours,
        theirs,
        sizes | {axis: size for axis, size in zip(axes, shape, strict=True) if axis[0] != "("},
    )


def _layout(keys: list[Key]) -> str:
    """The rule of a tensor: of several parameters, for these stacked along a first axis P."""
    return keys[0].layout if len(keys) == 1 else f"P {keys[0].layout}"


def _stacked(shape: tuple[int, ...], keys: list[Key]) -> tuple[int, ...]:
    return shape if len(keys) == 1 else (len(keys), *shape)


def by_tensor(exchange: Exchange, flat: Mapping[str, Any]) -> list[list[Key]]:
    """The keys of each tensor of theirs: one, or the parts of a fused tensor in their order."""
    groups: dict[str, list[Key]] = {}
    for key in exchange.keys:
        if not key.optional or key.ours in flat:
            groups.setdefault(key.theirs, []).append(key)
    for theirs, keys in groups.items():
        keys.sort(key=lambda key: key.part or (0, 1))
        count = len(keys)
        if [key.part or (0, 1) for key in keys] != [(i, count) for i in range(count)]:
            raise ValueError(f"the keys of {theirs} are not the parts of one tensor")
    return list(groups.values())


def layer_names(key: Key, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Their names for one array of ours, with the part of our shape that each stands for."""
    if not _layered(key):
        return [(key.theirs, tuple(shape))]
    return [(key.theirs.format(layer=layer), tuple(shape[1:])) for layer in range(shape[0])]


def _layered(key: Key) -> bool:
    return "{layer}" in key.theirs
