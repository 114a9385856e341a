"""Objectives: what is hidden, what is asked, and how the answer is scored."""

from __future__ import annotations

from typing import Any

from protlm_jax.errors import ProtlmError
from protlm_jax.objectives.base import Objective, Score
from protlm_jax.objectives.masked import MaskedObjective
from protlm_jax.objectives.seq2seq import DenoisingObjective
from protlm_jax.vocabularies import Vocabulary

_OBJECTIVES: dict[str, Any] = {"masked": MaskedObjective, "denoising": DenoisingObjective}

__all__ = ["DenoisingObjective", "MaskedObjective", "Objective", "Score", "build_objective"]


def build_objective(name: str, vocabulary: Vocabulary, **options: float) -> Objective:
    """The objective called `name`, with the options of its dataclass.

    Raises:
        ProtlmError: for a name or an option that does not exist.
    """
    if name not in _OBJECTIVES:
        raise ProtlmError(f"unknown objective {name!r}; there are {', '.join(sorted(_OBJECTIVES))}")
    try:
        return _OBJECTIVES[name](vocabulary, **options)
    except TypeError as error:
        raise ProtlmError(f"objective {name!r} does not take these options: {error}") from error
