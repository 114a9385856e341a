"""ELECTRA for proteins (Clark et al. 2020; ProtElectra: Elnaggar et al. 2021).

Two encoders of BERT's kind that own their embeddings once. The generator, a quarter as wide, is a
masked language model; the discriminator says of each token whether it stood in the protein or came
from the generator. Only the discriminator is meant for use: embedding, probing and depth read it.

Three families: "electra", both together, which is what training needs, and each of the two alone,
as Hugging Face's folders hold them.

ELECTRA in Hugging Face's format: `ElectraForMaskedLM`, the generator, and
`ElectraForPreTraining`, the discriminator, as Rostlab/prot_electra_{generator,discriminator}_bfd.

Both have `model_type` "electra"; the folder's `architectures` tells which it is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.errors import ProtlmError
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import Exchange, Joint, linear_keys, typed
from protlm_jax.models.families import bert
from protlm_jax.models.families.bert import Bert, bert_config, block_keys, embedder_keys, head_keys
from protlm_jax.models.layers import ACTIVATIONS, Projection
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Streams


def electra_config(**sizes: Any) -> ModelConfig:
    """An ELECTRA of any size over ProtBert's 30 tokens, described by its discriminator's sizes."""
    return bert_config(**{"family": "electra", "generator_shrink": 4, **sizes})


# 16 heads are from memory, and the generator's 4 follow from the quarter; the rest fits the sizes
# of the published files (Rostlab/prot_electra_discriminator_bfd and _generator_bfd).
PRESETS = {
    "prot_electra_bfd": electra_config(
        d_model=1024, num_layers=30, num_heads=16, head_dim=64, d_ff=4096, max_positions=40_000
    )
}


def discriminator_config(config: ModelConfig) -> ModelConfig:
    """The discriminator of a joint config, as a model of its own."""
    return config.replace(family="electra_discriminator", generator_shrink=0)


def generator_config(config: ModelConfig) -> ModelConfig:
    """The generator of a joint config: width, heads and MLP divided, depth and embeddings kept.

    Raises:
        ProtlmError: the sizes do not divide.
    """
    shrink = config.generator_shrink
    heads = max(1, config.num_heads // shrink) if shrink > 0 else 0
    if not heads or config.d_model % (shrink * heads) or config.d_ff % shrink:
        raise ProtlmError(
            f"model.generator_shrink is {shrink}; it must divide model.d_model {config.d_model} "
            f"and model.d_ff {config.d_ff}, and leave a width that its heads share"
        )
    width = config.d_model // shrink
    narrow = 0 if config.embedding_width == width else config.embedding_width
    return config.replace(
        family="electra_generator",
        generator_shrink=0,
        embedding_size=narrow,
        d_model=width,
        num_heads=heads,
        head_dim=width // heads,
        d_ff=config.d_ff // shrink,
    )


class DetectionHead(nn.Module):
    """Dense, activation, dense to one number: the logit of "replaced" [B, L, 1] float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        c = self.config
        h = Projection(
            "BLD,DE->BLE",
            ("embed", "embed_out"),
            (c.d_model, c.d_model),
            1,
            c.initializer_range,
            c.compute_dtype,
            name="dense",
        )(h)
        return Projection(
            "BLD,DA->BLA",
            ("embed", "answers"),
            (c.d_model, 1),
            1,
            c.initializer_range,
            jnp.dtype("float32"),
            name="prediction",
        )(ACTIVATIONS[c.activation](h))


class ElectraGenerator(Bert):
    """The generator alone: an ordinary masked language model."""


class ElectraDiscriminator(Bert):
    """The discriminator alone; it cannot be trained without a generator."""

    readouts = (Readout("detection", stack="encoder"),)
    objectives: ClassVar[tuple[str, ...]] = ()
    make_head = DetectionHead

    @classmethod
    def head_flops(cls, config: ModelConfig) -> int:
        return 2 * config.d_model * (config.d_model + 1)

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits [batch, length, 1] float32 of "replaced" from the stream at any depth."""
        return cast(jax.Array, self.head_module(h["encoder"]))


class Electra(ElectraDiscriminator):
    """Both, the generator reading the discriminator's embeddings; as a model it is the latter."""

    objectives = ("replaced_token",)

    def setup(self) -> None:
        super().setup()
        self.generator = ElectraGenerator(
            generator_config(self.config), shared_embedder=self.embedder
        )

    def generate(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        """The generator's logits [batch, length, vocab] float32."""
        return self.generator(batch, deterministic)

    def __call__(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        if self.is_initializing():
            self.generate(batch)
        return super().__call__(batch, deterministic)


_PROJECTION = linear_keys("projection", "electra.embeddings_project", "E D -> D E")

_ENCODER = (
    *embedder_keys("electra.embeddings"),
    *(dataclasses.replace(key, optional=True) for key in _PROJECTION),
    *block_keys("electra.encoder.layer.{layer}."),
)


def _read(fields: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    width = typed({"embedding_size": 128, **fields}, "embedding_size", "int")
    return {"embedding_size": 0 if width == known["d_model"] else width}


def _alone(family: str) -> Callable[..., ModelConfig]:
    return functools.partial(electra_config, family=family, generator_shrink=0)


GENERATOR = Exchange(
    model_type="electra",
    architecture="ElectraForMaskedLM",
    task="fill-mask",
    keys=(
        *_ENCODER,
        *head_keys(
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head.bias",
        ),
    ),
    make=_alone("electra_generator"),
    fields=bert.fields("gelu", 0.1),
    # The activation of their head, whatever the blocks have.
    fixed={**bert.FIXED, "hidden_act": ("gelu", None)},
    write=lambda config: {"embedding_size": config.embedding_width},
    read=_read,
    imports="ElectraForMaskedLM",
    copies={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    unused={"electra.embeddings.position_ids": "a constant range"},
    only_named=True,
    heads={"head": "the masked-language head (generator_predictions, generator_lm_head)"},
    around=bert.EXCHANGE.around,
)

DISCRIMINATOR = dataclasses.replace(
    GENERATOR,
    architecture="ElectraForPreTraining",
    task="feature-extraction",
    keys=(
        *_ENCODER,
        *linear_keys("head/dense", "discriminator_predictions.dense", "D E -> E D"),
        *linear_keys("head/prediction", "discriminator_predictions.dense_prediction", "D A -> A D"),
    ),
    make=_alone("electra_discriminator"),
    fixed=bert.FIXED,
    imports="ElectraForPreTraining",
    usage="""\
model = ElectraForPreTraining.from_pretrained("{title}")
replaced = model(**batch).logits.sigmoid()  # probability that each residue was replaced
hidden = model.electra(**batch).last_hidden_state
""",
    copies={},
    only_named=False,
    heads={"head": "the detection head (discriminator_predictions)"},
)


def both_configs(config: ModelConfig) -> tuple[ModelConfig, ModelConfig]:
    """Generator and discriminator of a joint config."""
    return generator_config(config), discriminator_config(config)


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
