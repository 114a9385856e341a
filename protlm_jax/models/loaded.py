"""A model ready to use, whoever made it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax

from protlm_jax.errors import ProtlmError
from protlm_jax.models.build import absent_heads, build, init_params
from protlm_jax.models.exchange import Exchange
from protlm_jax.models.registry import family_of
from protlm_jax.vocabularies import Rare, RareTally, ResiduePolicy

if TYPE_CHECKING:
    from jax.sharding import Mesh

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
        missing: names of `Exchange.heads` that were not stored; their parameters are NaN, and the
            module refuses to compute with them.
        rare_residues: what becomes of U, Z, O and B: as the model's own tokenizer has it, or its
            training.
        row: tokens in a row that the model was made for, special ones included; None where nobody
            knows.
        tally: where rare residues are counted that are read for this model; None does not count.
        mesh: the devices over which the parameters are divided; None where one device holds them.
    """

    model: nn.Module
    params: Any
    vocabulary: Vocabulary
    name: str
    left: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    rare_residues: Rare = "X"
    row: int | None = None
    tally: RareTally | None = dataclasses.field(default=None, compare=False, repr=False)
    mesh: Mesh | None = None

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def policy(self) -> ResiduePolicy:
        """How sequences are read for this model."""
        return ResiduePolicy(
            rare=self.rare_residues, structure=self.vocabulary.structured, tally=self.tally
        )

    def with_config(self, **changes: Any) -> LoadedModel:
        """The same parameters in a module whose config has other values in some fields."""
        model = build(self.config.replace(**changes), self.missing)
        return dataclasses.replace(self, model=model)

    def reinitialised(self, seed: int, name: str) -> LoadedModel:
        """The same architecture with fresh parameters, as training would have started from."""
        places = jax.tree.map(lambda own: own.sharding, self.params) if self.mesh else None
        return dataclasses.replace(self, params=init_params(self.model, seed, places), name=name)

    def require_whole(self, verb: str) -> None:
        """Raises ProtlmError when a head was not stored with the model."""
        if self.missing:
            raise ProtlmError(
                f"{self.name} was stored without {absent_heads(self.config, self.missing)}, so "
                f"{verb}: take the folder of the whole model, or train a new head with "
                f"--config.init_from"
            )


def parts_of(loaded: LoadedModel) -> dict[str, LoadedModel]:
    """The models that it is made of, by name: itself as "", but for a joint family (ELECTRA)."""
    exchange = family_of(loaded.config).exchange
    if isinstance(exchange, Exchange):
        return {"": loaded}
    parts = {}
    for name, part_of in exchange.parts.items():
        config, params = part_of(loaded.config, loaded.params)
        parts[name] = dataclasses.replace(
            loaded, model=build(config), params=params, name=f"{loaded.name}, {name}", left=()
        )
    return parts
