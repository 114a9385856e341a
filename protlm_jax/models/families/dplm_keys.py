"""DPLM in Hugging Face's format: ESM-2's tensors, and a field that says what they are.

`EsmForMaskedLM` of transformers makes a model of the folder, which predicts hidden residues and
knows nothing of diffusion. An ESM-2 has the same class: the field `dplm_type`, which the published
models have (airkingbd/dplm_650m), tells the two apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.families import esm2_keys

_MARK = "dplm_type"


def _to_config(config: ModelConfig) -> dict[str, Any]:
    return {**esm2_keys.EXCHANGE.to_config(config), _MARK: "dplm_esm"}


def _from_config(fields: Mapping[str, Any]) -> ModelConfig:
    return esm2_keys.EXCHANGE.from_config(fields).replace(family="dplm")


EXCHANGE = dataclasses.replace(
    esm2_keys.EXCHANGE, to_config=_to_config, from_config=_from_config, mark=_MARK
)
