"""ELECTRA in Hugging Face's format: `ElectraForMaskedLM`, the generator, and
`ElectraForPreTraining`, the discriminator, as Rostlab/prot_electra_{generator,discriminator}_bfd.

Both have `model_type` "electra"; the folder's `architectures` tells which it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from protlm_jax.errors import ProtlmError
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import Exchange, Joint, Key, linear_keys, norm_keys, refuse_unless
from protlm_jax.models.families import bert_keys
from protlm_jax.models.families.bert_keys import block_keys, embedder_keys
from protlm_jax.models.families.electra import (
    discriminator_config,
    electra_config,
    generator_config,
)

_PROJECTION = linear_keys("projection", "electra.embeddings_project", "E D -> D E", "D -> D")

_ENCODER = (
    *embedder_keys("electra.embeddings"),
    *(Key(key.ours, key.theirs, key.layout, optional=True) for key in _PROJECTION),
    *block_keys("electra.encoder.layer.{layer}."),
)

_UNUSED = {"electra.embeddings.position_ids": "a constant range"}


def _to_config(config: ModelConfig) -> dict[str, Any]:
    return {**bert_keys.to_config(config), "embedding_size": config.embedding_width}


def _from_config(family: str, fields: Mapping[str, Any]) -> ModelConfig:
    sizes = bert_keys.shared_fields(fields, activation="gelu", dropout=0.1)
    width = fields.get("embedding_size", 128)
    narrow = 0 if width == sizes["d_model"] else width
    return electra_config(**sizes, family=family, generator_shrink=0, embedding_size=narrow)


def _generator_from_config(fields: Mapping[str, Any]) -> ModelConfig:
    # Their generator's head has this one whatever the blocks have.
    refuse_unless(fields, "hidden_act", "gelu")
    return _from_config("electra_generator", fields)


def _discriminator_from_config(fields: Mapping[str, Any]) -> ModelConfig:
    return _from_config("electra_discriminator", fields)


GENERATOR = Exchange(
    model_type="electra",
    architecture="ElectraForMaskedLM",
    task="fill-mask",
    keys=(
        *_ENCODER,
        *linear_keys("head/dense", "generator_predictions.dense", "D E -> E D", "E -> E"),
        *norm_keys("head/norm", "generator_predictions.LayerNorm"),
        Key("head/bias", "generator_lm_head.bias", "V -> V"),
    ),
    to_config=_to_config,
    from_config=_generator_from_config,
    imports="ElectraForMaskedLM",
    usage="""\
model = ElectraForMaskedLM.from_pretrained("{title}")
logits = model(**batch).logits  # over all tokens, at each residue
hidden = model.electra(**batch).last_hidden_state
""",
    copies={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    unused=_UNUSED,
    only_named=True,
    heads={"head": "the masked-language head (generator_predictions, generator_lm_head)"},
)

DISCRIMINATOR = Exchange(
    model_type="electra",
    architecture="ElectraForPreTraining",
    task="feature-extraction",
    keys=(
        *_ENCODER,
        *linear_keys("head/dense", "discriminator_predictions.dense", "D E -> E D", "E -> E"),
        *linear_keys(
            "head/prediction", "discriminator_predictions.dense_prediction", "D A -> A D", "A -> A"
        ),
    ),
    to_config=_to_config,
    from_config=_discriminator_from_config,
    imports="ElectraForPreTraining",
    usage="""\
model = ElectraForPreTraining.from_pretrained("{title}")
replaced = model(**batch).logits.sigmoid()  # probability that each residue was replaced
hidden = model.electra(**batch).last_hidden_state
""",
    unused=_UNUSED,
    heads={"head": "the detection head (discriminator_predictions)"},
)


def generator_part(config: ModelConfig, params: Any) -> tuple[ModelConfig, Any]:
    """The generator of a joint model, with the embeddings that it shares."""
    return generator_config(config), {**params["generator"], "embedder": params["embedder"]}


def discriminator_part(config: ModelConfig, params: Any) -> tuple[ModelConfig, Any]:
    """The discriminator of a joint model."""
    own = {name: part for name, part in params.items() if name != "generator"}
    return discriminator_config(config), own


def join_configs(parts: Mapping[str, ModelConfig]) -> ModelConfig:
    """The joint model of two folders.

    Raises:
        ProtlmError: the generator is not what a joint model of the discriminator's size has.
    """
    generator, discriminator = parts["generator"], parts["discriminator"]
    whole = discriminator.replace(
        family="electra", generator_shrink=discriminator.d_model // generator.d_model
    )
    if generator_config(whole) != generator:
        raise ProtlmError(
            "the generator is no generator of this discriminator: apart from its width, heads and "
            "MLP, smaller by one factor, all must be equal"
        )
    return whole


def join_params(parts: Mapping[str, Any]) -> Any:
    """The parameters of the joint model of two folders.

    Raises:
        ProtlmError: the two have different embeddings, which a joint model shares.
    """
    generator, whole = dict(parts["generator"]), parts["discriminator"]
    shared = generator.pop("embedder")
    same = jax.tree.map(lambda a, b: bool((a == b).all()), shared, whole["embedder"])
    if not all(jax.tree.leaves(same)):
        raise ProtlmError(
            "generator and discriminator have different embeddings: they were not trained together"
        )
    return {**whole, "generator": generator}


JOINT = Joint(
    {"generator": generator_part, "discriminator": discriminator_part}, join_configs, join_params
)
