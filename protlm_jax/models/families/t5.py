"""T5 v1.0 encoder-decoder for proteins (Raffel et al. 2020; ProtT5: Elnaggar et al. 2021).

Pre-LN blocks with RMSNorm, no biases, ReLU, relative position biases shared by all blocks of a
stack, unscaled attention scores, and a head tied to the embedding after scaling by d_model**-0.5.

T5 in Hugging Face's format: `T5ForConditionalGeneration`, and `T5EncoderModel` alone.

Version 1.0, as Rostlab/prot_t5_xl, and 1.1, with a gated MLP and a head of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.errors import ProtlmError
from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import Block, BlockContext, Taps
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.dropout import Dropout
from protlm_jax.models.exchange import (
    ACTIVATION_NAMES,
    Exchange,
    Key,
    activation_field,
    refuse_unless,
    required,
)
from protlm_jax.models.layers import Normalization, lookup
from protlm_jax.models.positions import relative_bias
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stack import Params, init_stack
from protlm_jax.models.stacked import Batch, Contexts, Programs, Stacked, Streams
from protlm_jax.vocabularies import get_vocabulary


def t5_config(**sizes: Any) -> ModelConfig:
    """A T5 v1.0 of any size over ProtT5's 128 ids; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "t5",
        "vocabulary": "prot_t5",
        "vocab_size": 128,
        "norm": "rms_norm",
        "norm_placement": "pre",
        "norm_eps": 1e-6,
        "activation": "relu",
        "use_bias": False,
        "positions": "relative_bias",
        "relative_buckets": 32,
        "relative_max_distance": 128,
        "attention_scale": False,
        "scale_tied_logits": True,
        "dropout_rate": 0.1,
        "mlp_dropout": True,
        "initializer_range": 1.0,
    }
    return ModelConfig(**{**fields, **sizes})


# ProtT5-XL and -XXL, BFD and UniRef50 alike (config.json of Rostlab/prot_t5_xl_uniref50 and
# prot_t5_xxl_uniref50).
PRESETS = {
    "prot_t5_xl": t5_config(
        d_model=1024, num_layers=24, num_decoder_layers=24, num_heads=32, head_dim=128, d_ff=16_384
    ),
    "prot_t5_xxl": t5_config(
        d_model=1024, num_layers=24, num_decoder_layers=24, num_heads=128, head_dim=128, d_ff=65_536
    ),
}


class Embedder(nn.Module):
    """The token embedding that encoder, decoder and head share."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        init = named(nn.initializers.normal(c.initializer_range), "vocab", "embed")
        self.token = self.param("token", init, (c.vocab_size, c.d_model))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return lookup(self.token, tokens).astype(self.config.compute_dtype)


class T5(Stacked):
    """T5: `embed -> stack -> head`; streams, contexts and taps are keyed by stack name."""

    config: ModelConfig

    stack_names = ("encoder", "decoder")
    readouts = (Readout("denoising", stack="decoder"),)
    objectives = ("denoising",)

    def setup(self) -> None:
        c = self.config
        self.encoder_block = Block(c, parent=None)
        self.decoder_block = Block(c, cross=True, parent=None)
        self.embedder = Embedder(c)
        self.encoder = self.param("encoder", init_stack, self.encoder_block)
        self.decoder = self.param("decoder", init_stack, self.decoder_block)
        bias = named(nn.initializers.normal(c.d_model**-0.5), "relpos_buckets", "heads")
        shape = (c.relative_buckets, c.num_heads)
        self.encoder_relative_bias = self.param("encoder_relative_bias", bias, shape)
        self.decoder_relative_bias = self.param("decoder_relative_bias", bias, shape)
        self.encoder_norm = Normalization(c)
        self.decoder_norm = Normalization(c)
        self.dropout = Dropout(c.dropout_rate)
        if not c.tie_embeddings:
            init = named(nn.initializers.normal(c.d_model**-0.5), "embed", "vocab")
            self.head_kernel = self.param("head_kernel", init, (c.d_model, c.vocab_size))

    def rows(self, stack: str) -> tuple[Block, Params]:
        if stack == "encoder":
            return self.encoder_block, self.encoder
        return self.decoder_block, self.decoder

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        """The streams before each stack's block 0 and what its blocks need, by stack name.

        The decoder's context has no memory yet: `connect` hands it the encoder's output.
        """
        encoder, encoder_context = self._embed_encoder(batch, deterministic)
        tokens, segments = batch["decoder_input_tokens"], batch["decoder_segment_ids"]
        decoder = self.dropout(self.embedder(tokens), deterministic)
        decoder_context = BlockContext(
            AttentionContext(
                segments, segments, self._bias("decoder", tokens.shape[1]), causal=True
            ),
            AttentionContext(segments, batch["encoder_segment_ids"]),
        )
        return (
            {"encoder": encoder, "decoder": constrain(decoder, "batch", "length", "embed")},
            {"encoder": encoder_context, "decoder": decoder_context},
        )

    def stack(
        self,
        h: Streams,
        context: Contexts,
        programs: Programs | None = None,
        deterministic: bool = True,
    ) -> tuple[Streams, dict[str, Taps]]:
        """Runs the encoder, hands its output to the decoder, and runs the decoder."""
        programs = programs or {}
        encoder, encoder_taps = self.run(
            "encoder", h["encoder"], context["encoder"], programs.get("encoder"), deterministic
        )
        context = self.connect({"encoder": encoder}, context, deterministic)
        decoder, decoder_taps = self.run(
            "decoder", h["decoder"], context["decoder"], programs.get("decoder"), deterministic
        )
        return (
            {"encoder": encoder, "decoder": decoder},
            {"encoder": encoder_taps, "decoder": decoder_taps},
        )

    def connect(self, h: Streams, context: Contexts, deterministic: bool = True) -> Contexts:
        """Gives the decoder's context the normed encoder output as its memory."""
        memory = self.dropout(self.encoder_norm(h["encoder"]), deterministic)
        return {**context, "decoder": dataclasses.replace(context["decoder"], memory=memory)}

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits from the decoder's stream at any depth."""
        c = self.config
        x = self.dropout(self.decoder_norm(h["decoder"]), deterministic)
        if c.tie_embeddings:
            if c.scale_tied_logits:
                x = x * jnp.asarray(c.d_model**-0.5, x.dtype)
            kernel = self.embedder.token.T
        else:
            kernel = self.head_kernel
        return jnp.einsum(
            "BLD,DV->BLV", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32
        )

    def hidden(self, batch: Batch) -> jax.Array:
        """The normed encoder output [batch, length, d_model]; needs encoder features only."""
        h, context = self._embed_encoder(batch, deterministic=True)
        return self.encoder_norm(self.run("encoder", h, context)[0])

    def every_layer(self, batch: Batch) -> jax.Array:
        """The encoder's stream at every depth; needs encoder features only."""
        h, context = self._embed_encoder(batch, deterministic=True)
        out, taps = self.run("encoder", h, context)
        return jnp.concatenate([taps["stream"], self.encoder_norm(out)[None]])

    def before_blocks(self, batch: Batch) -> tuple[jax.Array, BlockContext]:
        """The encoder's; needs encoder features only."""
        return self._embed_encoder(batch, deterministic=True)

    def _embed_encoder(self, batch: Batch, deterministic: bool) -> tuple[jax.Array, BlockContext]:
        tokens, segments = batch["encoder_input_tokens"], batch["encoder_segment_ids"]
        h = self.dropout(self.embedder(tokens), deterministic)
        bias = self._bias("encoder", tokens.shape[1])
        context = BlockContext(AttentionContext(segments, segments, bias))
        return constrain(h, "batch", "length", "embed"), context

    def _bias(self, stack: str, length: int) -> jax.Array:
        tables = {"encoder": self.encoder_relative_bias, "decoder": self.decoder_relative_bias}
        distance = self.config.relative_max_distance
        return relative_bias(tables[stack], length, length, distance, stack == "encoder")


def _attention(ours: str, theirs: str, norm: str) -> tuple[Key, ...]:
    inputs = tuple(
        Key(f"{ours}/{name}/kernel", f"{theirs}.{name[0]}.weight", "D H K -> (H K) D")
        for name in ("query", "key", "value")
    )
    out = Key(f"{ours}/out/kernel", f"{theirs}.o.weight", "H K D -> D (H K)")
    return (*inputs, out, Key(f"{ours}_norm/scale", f"{norm}.weight", "D -> D"))


def _stack(name: str, mlp: int) -> tuple[Key, ...]:
    """One stack; `mlp` is the place of the feed-forward sublayer among their `layer.*`."""
    block = name + ".block.{layer}.layer."
    return (
        *_attention(f"{name}/attention", f"{block}0.SelfAttention", f"{block}0.layer_norm"),
        *(
            Key(
                f"{name}/mlp/{wi}/kernel",
                f"{block}{mlp}.DenseReluDense.{wi}.weight",
                "D F -> F D",
                optional=True,
            )
            for wi in ("wi", "wi_0", "wi_1")
        ),
        Key(f"{name}/mlp/wo/kernel", f"{block}{mlp}.DenseReluDense.wo.weight", "F D -> D F"),
        Key(f"{name}/mlp_norm/scale", f"{block}{mlp}.layer_norm.weight", "D -> D"),
        Key(f"{name}_norm/scale", f"{name}.final_layer_norm.weight", "D -> D"),
        Key(
            f"{name}_relative_bias",
            f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "R H -> R H",
        ),
    )


_CROSS = "decoder.block.{layer}.layer.1."

KEYS = (
    Key("embedder/token", "shared.weight", "V D -> V D"),
    *_stack("encoder", mlp=1),
    *_stack("decoder", mlp=2),
    *_attention("decoder/cross_attention", f"{_CROSS}EncDecAttention", f"{_CROSS}layer_norm"),
    Key("head_kernel", "lm_head.weight", "D V -> V D", optional=True),
)


def _to_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.head_dim,
        "d_ff": config.d_ff,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "dropout_rate": config.dropout_rate,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_factor": config.initializer_range,
        "feed_forward_proj": _feed_forward(config),
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": next(iter(get_vocabulary(config.vocabulary).suffix_ids), None),
        "decoder_start_token_id": 0,
        # Also their sign that the decoder's output is scaled by d_model**-0.5 before the head.
        "tie_word_embeddings": config.tie_embeddings,
    }


def _feed_forward(config: ModelConfig) -> str:
    if not config.gated_mlp:
        return ACTIVATION_NAMES[config.activation]
    # They read "gated-gelu" as the tanh approximation, and have no name for the exact one.
    exact = {"gelu_tanh": "gelu"}.get(config.activation, ACTIVATION_NAMES[config.activation])
    return f"gated-{exact}"


def _read_feed_forward(name: str) -> dict[str, Any]:
    gate, _, activation = name.rpartition("-")
    if gate not in ("", "gated"):
        raise ProtlmError(f"'feed_forward_proj' is {name!r}; only ACTIVATION or gated-ACTIVATION")
    if name == "gated-gelu":
        activation = "gelu_new"
    return {"activation": activation_field(activation), "gated_mlp": gate == "gated"}


def _is_scaled(fields: Mapping[str, Any]) -> bool:
    """Whether the head is the embedding, reached after scaling, or one of its own, unscaled.

    transformers 4 has `tie_word_embeddings` say both. transformers 5 keeps that field at true
    whatever the model does and adds `scale_decoder_outputs`; a model that it has neither scale nor
    untie becomes one whose own head equals the embedding.

    Raises:
        ProtlmError: the two fields contradict each other.
    """
    tied = fields.get("tie_word_embeddings") is not False
    scaled = fields.get("scale_decoder_outputs", tied)
    if scaled and not tied:
        raise ProtlmError(
            "'tie_word_embeddings' is False and 'scale_decoder_outputs' is True; versions of "
            "transformers disagree on what that computes: remove the one that is wrong"
        )
    return bool(scaled)


def _from_config(fields: Mapping[str, Any]) -> ModelConfig:
    # Padding and the decoder's first input are 0 wherever batches are made.
    refuse_unless(fields, "pad_token_id", 0)
    refuse_unless(fields, "decoder_start_token_id", 0)
    return t5_config(
        vocab_size=required(fields, "vocab_size"),
        d_model=required(fields, "d_model"),
        num_layers=required(fields, "num_layers"),
        num_decoder_layers=fields.get("num_decoder_layers") or required(fields, "num_layers"),
        num_heads=required(fields, "num_heads"),
        head_dim=required(fields, "d_kv"),
        d_ff=required(fields, "d_ff"),
        **_read_feed_forward(fields.get("feed_forward_proj", "relu")),
        tie_embeddings=_is_scaled(fields),
        relative_buckets=fields.get("relative_attention_num_buckets", 32),
        relative_max_distance=fields.get("relative_attention_max_distance", 128),
        norm_eps=fields.get("layer_norm_epsilon", 1e-6),
        initializer_range=float(fields.get("initializer_factor", 1.0)),
        dropout_rate=float(fields.get("dropout_rate", 0.1)),
    )


EXCHANGE = Exchange(
    model_type="t5",
    architecture="T5ForConditionalGeneration",
    task="text2text-generation",
    keys=KEYS,
    to_config=_to_config,
    from_config=_from_config,
    imports="T5EncoderModel, T5ForConditionalGeneration",
    usage="""\
model = T5ForConditionalGeneration.from_pretrained("{title}")
encoder = T5EncoderModel.from_pretrained("{title}")  # enough for embeddings
hidden = encoder(**batch).last_hidden_state
# A hidden residue is written <extra_id_0>; the decoder spells the whole protein out.
""",
    copies={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
    heads={"head_kernel": "the language-modelling head (lm_head)"},
    unused={
        # Early T5 files hold a table that no version of the model ever read.
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": "never read",
    },
)


def _encoder_to_config(config: ModelConfig) -> dict[str, Any]:
    # The class reads none of the decoder's fields, and its files have them.
    return {**_to_config(config), "num_decoder_layers": config.num_layers}


def _encoder_from_config(fields: Mapping[str, Any]) -> ModelConfig:
    whole = _from_config(fields)
    return whole.replace(
        family="t5_encoder", num_decoder_layers=0, tie_embeddings=True, scale_tied_logits=True
    )


ENCODER = Exchange(
    model_type="t5",
    architecture="T5EncoderModel",
    task="feature-extraction",
    keys=(KEYS[0], *_stack("encoder", mlp=1)),
    to_config=_encoder_to_config,
    from_config=_encoder_from_config,
    imports="T5EncoderModel",
    usage="""\
model = T5EncoderModel.from_pretrained("{title}")
hidden = model(**batch).last_hidden_state
""",
    copies={"encoder.embed_tokens.weight": "shared.weight"},
    only_named=True,
    also=("T5ForTokenClassification",),
)
