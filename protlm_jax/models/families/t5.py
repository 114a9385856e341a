"""T5 v1.0 encoder-decoder for proteins (Raffel et al. 2020; ProtT5: Elnaggar et al. 2021).

Pre-LN blocks with RMSNorm, no biases, ReLU, relative position biases shared by all blocks of a
stack, unscaled attention scores, and a head tied to the embedding after scaling by d_model**-0.5.

T5 in Hugging Face's format: `T5ForConditionalGeneration`, and `T5EncoderModel` alone.

Version 1.0, as Rostlab/prot_t5_xl, and 1.1, with a gated MLP and a head of its own. The encoder
alone, as in prot_t5_xl_half_uniref50-enc, is a family of its own, without head and likelihood.
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
    Field,
    Key,
    activation_field,
    typed,
)
from protlm_jax.models.layers import Normalization, lookup
from protlm_jax.models.positions import relative_bias
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stack import Params
from protlm_jax.models.stacked import Batch, Contexts, Programs, SingleStack, Stacked, Streams


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


class SharedEmbedding(nn.Module):
    """The token embedding that encoder, decoder and head share."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        init = named(nn.initializers.normal(c.initializer_range), "vocab", "embed")
        self.token = self.param("token", init, (c.vocab_size, c.d_model))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return lookup(self.token, tokens).astype(self.config.compute_dtype)


class T5(Stacked):
    """Encoder and decoder; what reads the encoder alone needs its features only."""

    stack_names = ("encoder", "decoder")
    readouts = (Readout("denoising", stack="decoder"),)
    objectives = ("denoising",)

    def setup(self) -> None:
        c = self.config
        self.encoder_block = Block(c, parent=None)
        self.decoder_block = Block(c, cross=True, parent=None)
        self.embedder = SharedEmbedding(c)
        self.encoder = self.stacked("encoder", self.encoder_block)
        self.decoder = self.stacked("decoder", self.decoder_block)
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
        decoder = self.decoder_block, self.decoder
        return (self.encoder_block, self.encoder) if stack == "encoder" else decoder

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        # The decoder's context has no memory yet: `connect` gives it the encoder's output.
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
        kernel = kernel.astype(x.dtype)
        return jnp.einsum("BLD,DV->BLV", x, kernel, preferred_element_type=jnp.float32)

    def hidden(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        h, context = self._embed_encoder(batch, deterministic)
        h, _ = self.run("encoder", h, context, deterministic=deterministic)
        return self.encoder_norm(h)

    def every_layer(self, batch: Batch) -> jax.Array:
        h, context = self._embed_encoder(batch, deterministic=True)
        out, taps = self.run("encoder", h, context)
        return jnp.concatenate([taps["stream"], self.encoder_norm(out)[None]])

    def before_blocks(self, batch: Batch) -> tuple[jax.Array, BlockContext]:
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


class T5Encoder(SingleStack):
    """The encoder half of `T5`, with its parameters' names."""

    readouts = (Readout("none", stack="encoder"),)

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.embedder = SharedEmbedding(c)
        bias = named(nn.initializers.normal(c.d_model**-0.5), "relpos_buckets", "heads")
        shape = (c.relative_buckets, c.num_heads)
        self.encoder_relative_bias = self.param("encoder_relative_bias", bias, shape)
        self.encoder_norm = Normalization(c)
        self.dropout = Dropout(c.dropout_rate)

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        tokens, segments = batch["input_tokens"], batch["segment_ids"]
        h = self.dropout(self.embedder(tokens), deterministic)
        table, length = self.encoder_relative_bias, tokens.shape[1]
        bias = relative_bias(table, length, length, self.config.relative_max_distance, True)
        context = BlockContext(AttentionContext(segments, segments, bias))
        return {"encoder": constrain(h, "batch", "length", "embed")}, {"encoder": context}

    def finish(self, h: jax.Array) -> jax.Array:
        return self.encoder_norm(h)

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Raises ProtlmError: there is none."""
        raise ProtlmError(f"an encoder alone {self.readouts[0].silence}")

    def __call__(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        """The embedding [batch, length, d_model], for want of a head."""
        return self.hidden(batch)


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

_TOKEN = Key("embedder/token", "shared.weight", "V D -> V D")


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

    In transformers 4 `tie_word_embeddings` says both. transformers 5 leaves that field at true and
    adds `scale_decoder_outputs`; a model that is neither scaled nor untied there becomes one whose
    own head equals the embedding.
    """
    tied = fields.get("tie_word_embeddings") is not False
    scaled = fields.get("scale_decoder_outputs", tied)
    if scaled and not tied:
        raise ProtlmError(
            "'tie_word_embeddings' is False and 'scale_decoder_outputs' is True; versions of "
            "transformers disagree on what that computes: remove the one that is wrong"
        )
    return bool(scaled)


def _read(fields: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    name = typed({"feed_forward_proj": "relu", **fields}, "feed_forward_proj", "str")
    return {**_read_feed_forward(name), "tie_embeddings": _is_scaled(fields)}


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "feed_forward_proj": _feed_forward(config),
        "is_encoder_decoder": True,
        # Also their sign that the decoder's output is scaled by d_model**-0.5 before the head.
        "tie_word_embeddings": config.tie_embeddings,
    }


EXCHANGE = Exchange(
    model_type="t5",
    architecture="T5ForConditionalGeneration",
    task="text2text-generation",
    keys=(
        _TOKEN,
        *_stack("encoder", mlp=1),
        *_stack("decoder", mlp=2),
        *_attention("decoder/cross_attention", f"{_CROSS}EncDecAttention", f"{_CROSS}layer_norm"),
        Key("head_kernel", "lm_head.weight", "D V -> V D", optional=True),
    ),
    make=t5_config,
    fields=(
        Field("vocab_size", "vocab_size"),
        Field("d_model", "d_model"),
        Field("num_layers", "num_layers"),
        Field("num_decoder_layers", "num_decoder_layers", lambda known: known["num_layers"]),
        Field("num_heads", "num_heads"),
        Field("head_dim", "d_kv"),
        Field("d_ff", "d_ff"),
        Field("relative_buckets", "relative_attention_num_buckets", 32),
        Field("relative_max_distance", "relative_attention_max_distance", 128),
        Field("norm_eps", "layer_norm_epsilon", 1e-6),
        Field("initializer_range", "initializer_factor", 1.0),
        Field("dropout_rate", "dropout_rate", 0.1),
    ),
    # Padding and the decoder's first input are 0 wherever batches are made.
    fixed={"pad_token_id": (0,), "decoder_start_token_id": (0,)},
    write=_write,
    read=_read,
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
    around=((), ("eos_token",)),
)


def _encoder_config(**sizes: Any) -> ModelConfig:
    alone = {"num_decoder_layers": 0, "tie_embeddings": True, "scale_tied_logits": True}
    return t5_config(**{**sizes, **alone, "family": "t5_encoder"})


ENCODER = dataclasses.replace(
    EXCHANGE,
    architecture="T5EncoderModel",
    task="feature-extraction",
    keys=(_TOKEN, *_stack("encoder", mlp=1)),
    make=_encoder_config,
    # The class reads none of the decoder's fields, and its files have them.
    write=lambda config: {**_write(config), "num_decoder_layers": config.num_layers},
    imports="T5EncoderModel",
    usage="""\
model = T5EncoderModel.from_pretrained("{title}")
hidden = model(**batch).last_hidden_state
""",
    copies={"encoder.embed_tokens.weight": "shared.weight"},
    heads={},
    unused={},
    only_named=True,
    also=("T5ForTokenClassification",),
)
