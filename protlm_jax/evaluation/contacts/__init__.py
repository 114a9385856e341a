"""Contacts predicted from attention, and how many of the surest ones are true."""

from __future__ import annotations

from protlm_jax.evaluation.contacts.precision import (
    RANGES,
    contact_map,
    evaluate,
    precisions,
    read_contacts,
    summary,
)
from protlm_jax.evaluation.contacts.predict import Weights, own_head, predict
from protlm_jax.evaluation.contacts.regression import fit

__all__ = [
    "RANGES",
    "Weights",
    "contact_map",
    "evaluate",
    "fit",
    "own_head",
    "precisions",
    "predict",
    "read_contacts",
    "summary",
]
