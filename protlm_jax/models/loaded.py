"""A model ready to use, whoever made it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from protlm_jax.models.build import build
from protlm_jax.models.exchange import Exchange
from protlm_jax.models.registry import family_of

if TYPE_CHECKING:
    from protlm_jax.models.config import ModelConfig
    from protlm_jax.vocabularies import Vocabulary


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """What evaluation and export read.

    Attributes:
        model: a family's linen module.
        params: its parameters, a nested dict of float32 arrays without boxes.
        vocabulary: the token set the model was trained with.
        name: for people: a run's or a folder's name.
        left: what was stored beside the parameters and not taken over, one line each.
    """

    model: nn.Module
    params: Any
    vocabulary: Vocabulary
    name: str
    left: tuple[str, ...] = ()

    @property
    def config(self) -> ModelConfig:
        return self.model.config


def parts_of(loaded: LoadedModel) -> dict[str, LoadedModel]:
    """The models that it is made of, by name: itself as "", but for a joint family (ELECTRA)."""
    exchange = family_of(loaded.config).exchange
    if isinstance(exchange, Exchange):
        return {"": loaded}
    parts = {}
    for name, part_of in exchange.parts.items():
        config, params = part_of(loaded.config, loaded.params)
        title = f"{loaded.name}, {name}"
        parts[name] = LoadedModel(build(config), params, loaded.vocabulary, title)
    return parts
