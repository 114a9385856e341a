"""DPLM (Wang et al. 2024): the body of ESM-2, trained to undo any amount of noise.

The network is ESM-2's, token dropout included, so that its folders have ESM-2's tensors. What
differs is the training (`protlm_jax.objectives.diffusion`): any share of the residues may be
hidden, and so it can generate proteins. Token dropout then makes the scale of what is embedded a
function of the noise: 17.6 times at 95 % hidden. The paper starts from masked language modelling,
which trains this family too.

DPLM in Hugging Face's format: ESM-2's tensors, and a field that says what they are.

`EsmForMaskedLM` of transformers makes a model of the folder, which predicts hidden residues and
knows nothing of diffusion. An ESM-2 has the same class: the field `dplm_type`, which the published
models have (airkingbd/dplm_650m), tells the two apart.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.families import esm2


def dplm_config(**sizes: Any) -> ModelConfig:
    """A DPLM of any size over ESM-2's 33 tokens; `sizes` override the fields given here."""
    return esm2.esm2_config(**{"family": "dplm", **sizes})


# As many layers as the ESM-2 that each has the size of.
PRESETS = {
    f"dplm_{size}": esm2.PRESETS[f"esm2_{size}"].replace(family="dplm")
    for size in ("150m", "650m", "3b")
}


class Dplm(esm2.Esm2):
    """DPLM; see the module's docstring."""

    objectives: ClassVar[tuple[str, ...]] = ("diffusion", "masked")


_MARK = "dplm_type"

EXCHANGE = dataclasses.replace(
    esm2.EXCHANGE,
    make=dplm_config,
    write=lambda config: {**esm2.EXCHANGE.write(config), _MARK: "dplm_esm"},
    mark=_MARK,
)
