"""Objectives: how a batch is corrupted, and how the model's predictions are scored."""

from __future__ import annotations

from typing import Any

from protlm_jax.errors import ProtlmError
from protlm_jax.objectives.base import Objective, Score
from protlm_jax.objectives.causal import CausalObjective
from protlm_jax.objectives.diffusion import DiffusionObjective
from protlm_jax.objectives.labels import LabelsObjective
from protlm_jax.objectives.masked import MaskedObjective
from protlm_jax.objectives.permutation import PermutationObjective
from protlm_jax.objectives.replaced_token import ReplacedTokenObjective
from protlm_jax.objectives.seq2seq import DenoisingObjective
from protlm_jax.vocabularies import Vocabulary

OBJECTIVES: dict[str, type[Objective]] = {
    "masked": MaskedObjective,
    "denoising": DenoisingObjective,
    "causal": CausalObjective,
    "permutation": PermutationObjective,
    "diffusion": DiffusionObjective,
    "replaced_token": ReplacedTokenObjective,
    "labels": LabelsObjective,
}

__all__ = ["OBJECTIVES", "Objective", "Score", "build_objective", "objective_class"]


def objective_class(name: str) -> type[Objective]:
    """The objective called `name`; raises a ProtlmError for a name that does not exist."""
    if name not in OBJECTIVES:
        raise ProtlmError(f"unknown objective {name!r}; there are {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name]


def build_objective(name: str, vocabulary: Vocabulary, **options: Any) -> Objective:
    """The objective called `name`, with the options of its dataclass.

    Raises:
        ProtlmError: for a name or an option that does not exist.
    """
    try:
        return objective_class(name)(vocabulary, **options)
    except TypeError as error:
        raise ProtlmError(f"objective {name!r} does not take these options: {error}") from error
