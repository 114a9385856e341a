"""Models with fewer layers: what a `LayerProgram` skips, removed from config and parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.models.build import build, logical_axes
from protlm_jax.models.exchange import Joint
from protlm_jax.models.folding import folded
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.models.registry import family_of

LAYERS_FIELD = {"encoder": "num_layers", "decoder": "num_decoder_layers"}


def pruned(loaded: LoadedModel, drop: Mapping[str, Collection[int]]) -> LoadedModel:
    """The model without some of its layers.

    Its outputs are those of the whole model under a program that skips the same layers. The weights
    of a contact head (ESM-2) for the attention maps of removed layers are removed too; the others
    keep their values and are no longer the best fit.

    Args:
        loaded: the model.
        drop: for each stack ("encoder", "decoder") the layers to remove, counted from 0.

    Raises:
        ProtlmError: a stack or a layer does not exist, a stack would be left without layers, the
            model consists of several (ELECTRA), or its layers are not computed from their
            parameters and the stream alone.
    """
    if isinstance(family_of(loaded.config).exchange, Joint):
        raise ProtlmError(
            f"{loaded.name} consists of several models: export it, and prune one of its folders"
        )
    stacks = loaded.model.stack_names
    if unknown := sorted(set(drop) - set(stacks)):
        raise ProtlmError(f"{loaded.name} has no stack {unknown[0]!r}, only {', '.join(stacks)}")
    kept = {stack: _kept(loaded, stack, drop[stack]) for stack in stacks if drop.get(stack)}
    if kept:
        loaded = folded(loaded)
        _require_independent(loaded)
    axes = logical_axes(loaded.model)

    def take(path: tuple[Any, ...], leaf: Any, names: tuple[str | None, ...]) -> Any:
        stack = path[0].key if path[0].key in stacks else "encoder"
        shared = loaded.config.share_layers and path[0].key in stacks
        if names[:1] != ("layers",) or stack not in kept or shared:
            return leaf
        return np.asarray(leaf)[kept[stack]]

    params = jax.tree_util.tree_map_with_path(take, loaded.params, axes)
    fields = {LAYERS_FIELD[stack]: len(layers) for stack, layers in kept.items()}
    model = build(loaded.config.replace(**fields), loaded.missing)
    return dataclasses.replace(loaded, model=model, params=params)


def _require_independent(loaded: LoadedModel) -> None:
    """Raises ProtlmError where a layer knows its number, or reads other layers' values."""
    neutral = {"norm_scale": "none", "value_residual": "none", "long_skips": "none"}
    for field, value in neutral.items():
        if getattr(loaded.config, field) != value:
            raise ProtlmError(
                f"{loaded.name} cannot lose layers: model.{field} makes them depend on each other"
            )
    if loaded.config.norm_placement == "mix":
        raise ProtlmError(f"{loaded.name} cannot lose layers: its norms depend on their number")


def exited(loaded: LoadedModel, depth: int) -> LoadedModel:
    """The first `depth` layers of the stack that its head reads, with that head (the logit lens).

    Raises:
        ProtlmError: it has fewer layers, or consists of several models.
    """
    stack = loaded.model.readouts[0].stack
    layers = getattr(loaded.config, LAYERS_FIELD[stack])
    if not 1 <= depth <= layers:
        raise ProtlmError(f"{loaded.name} has {layers} layers: an exit is 1 to {layers}")
    return pruned(loaded, {stack: range(depth, layers)})


def _kept(loaded: LoadedModel, stack: str, drop: Collection[int]) -> list[int]:
    layers = getattr(loaded.config, LAYERS_FIELD[stack])
    if missing := sorted(set(drop) - set(range(layers))):
        raise ProtlmError(
            f"{loaded.name} has no layer {missing[0]} in its {stack}: its layers are 0 to "
            f"{layers - 1}"
        )
    if len(set(drop)) == layers:
        raise ProtlmError(f"the {stack} of {loaded.name} would be left without layers")
    return [layer for layer in range(layers) if layer not in set(drop)]
