"""All model families: what builds them, their published sizes, and their Hugging Face form.

Adding a family is adding its file to `families/` and one line here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from protlm_jax.errors import ProtlmError
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import Exchange, Joint
from protlm_jax.models.families import (
    albert,
    bert,
    dplm,
    electra,
    esm2,
    esmc,
    gpt2,
    progen2,
    rita,
    roberta,
    t5,
    transformer_xl,
    xlnet,
)
from protlm_jax.models.stacked import Stacked


@dataclasses.dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        module: the linen module, called with a ModelConfig.
        exchange: how its models look in Hugging Face's format.
        presets: architectures of published models, by name.
        models_in: the configs of the models that a token passes through; more than one in a joint
            family.
    """

    module: type[Stacked]
    exchange: Exchange | Joint
    presets: Mapping[str, ModelConfig] = dataclasses.field(default_factory=dict)
    models_in: Callable[[ModelConfig], tuple[ModelConfig, ...]] = lambda config: (config,)


FAMILIES: dict[str, Family] = {
    "albert": Family(albert.Albert, albert.EXCHANGE, albert.PRESETS),
    "bert": Family(bert.Bert, bert.EXCHANGE, bert.PRESETS),
    "dplm": Family(dplm.Dplm, dplm.EXCHANGE, dplm.PRESETS),
    "electra": Family(electra.Electra, electra.JOINT, electra.PRESETS, electra.both_configs),
    "electra_discriminator": Family(electra.ElectraDiscriminator, electra.DISCRIMINATOR),
    "electra_generator": Family(electra.ElectraGenerator, electra.GENERATOR),
    "esm2": Family(esm2.Esm2, esm2.EXCHANGE, esm2.PRESETS),
    "esmc": Family(esmc.Esmc, esmc.EXCHANGE, esmc.PRESETS),
    "gpt2": Family(gpt2.Gpt2, gpt2.EXCHANGE, gpt2.PRESETS),
    "progen2": Family(progen2.ProGen2, progen2.EXCHANGE, progen2.PRESETS),
    "rita": Family(rita.Rita, rita.EXCHANGE, rita.PRESETS),
    "roberta": Family(roberta.Roberta, roberta.EXCHANGE),
    "t5": Family(t5.T5, t5.EXCHANGE, t5.PRESETS),
    "t5_encoder": Family(t5.T5Encoder, t5.ENCODER),
    "transformer_xl": Family(
        transformer_xl.TransformerXL, transformer_xl.EXCHANGE, transformer_xl.PRESETS
    ),
    "xlnet": Family(xlnet.XLNet, xlnet.EXCHANGE, xlnet.PRESETS),
}


def family_of(config: ModelConfig) -> Family:
    """The family that builds a config.

    Raises:
        ProtlmError: for a family that does not exist.
    """
    if config.family not in FAMILIES:
        raise ProtlmError(
            f"unknown model family {config.family!r}; there are {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[config.family]


def preset(name: str) -> ModelConfig:
    """The architecture of a published model.

    Raises:
        ProtlmError: for a name that does not exist.
    """
    presets = {
        key: config for family in FAMILIES.values() for key, config in family.presets.items()
    }
    if name not in presets:
        raise ProtlmError(f"unknown preset {name!r}; there are {', '.join(sorted(presets))}")
    return presets[name]
