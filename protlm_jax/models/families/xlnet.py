"""XLNet for proteins (Yang et al. 2019; ProtXLNet: Elnaggar et al. 2021).

Post-LN blocks with attention by relative distance, and two streams through the same parameters. The
*content* stream holds each residue with what it may see; the *query* stream holds, for a position
that is to be predicted, what the others say about it: it starts from one learned vector, knows its
position only through the distances, and asks the content stream, its own position left out. The
head, tied to the embedding, reads the query stream.

Who sees whom is a matter of `order`: tokens of order 0 are context, seen by all, and see one
another only; a token of order n > 0 is a target, whose content sees the context, targets of lower
order, and itself, and whose query sees the same but itself. Pretraining gives targets the ranks of
a permutation (`protlm_jax.objectives.permutation`). In evaluation all targets have order 1: none
sees another, so that the answers compare with those of masked models. Without an order there is the
content stream alone and everything sees everything: embedding, probing, depth.

The closing <cls> of a protein is of another token type than all else, as in XLNet's own data: the
attention's type term tells the two apart.

XLNet in Hugging Face's format: `XLNetLMHeadModel`, as Rostlab/prot_xlnet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.attention import relative_sinusoids
from protlm_jax.models.attention_context import AttentionContext, at_places
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import BlockContext
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import Exchange, Field, Key, mlp_keys, norm_keys, typed
from protlm_jax.models.layers import lookup
from protlm_jax.models.memory import RecurrentStack, past_streams
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, Streams
from protlm_jax.vocabularies import get_vocabulary


def xlnet_config(**sizes: Any) -> ModelConfig:
    """An XLNet of any size over our 30 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "xlnet",
        "vocabulary": "prot_xlnet",
        "vocab_size": 30,
        "norm": "layer_norm",
        "norm_placement": "post",
        "norm_eps": 1e-12,
        "activation": "gelu",
        "positions": "relative_xl",
        "type_vocab_size": 2,
        "dropout_rate": 0.1,
        "mlp_dropout": True,
    }
    return ModelConfig(**{**fields, **sizes})


# The size of Rostlab/prot_xlnet's weights says 30 layers of this shape. Its vocabulary (37 tokens)
# and dropout (0.1) are from memory, and nobody here has seen its tokenizer: the token set is ours.
PRESETS = {
    "prot_xlnet": xlnet_config(d_model=1024, num_layers=30, num_heads=16, head_dim=64, d_ff=4096)
}

CLOSING_TYPE = 2  # token type of <cls>; residues and <sep> are of type 0


class XLNet(RecurrentStack):
    """XLNet; see the module's docstring.

    A batch has `input_tokens` and `segment_ids`, and may have:
        order: [batch, length] int32; makes the stream a pair (content, query).
        hidden: [batch, length] bool; the same as an order of 1 where it is true.
        targets: [batch, queries] int32, positions of the row; the query stream, and with it the
            logits, are of these alone instead of all.
        past, past_segments: the content stream of the rows that these continue; see
            `protlm_jax.models.memory`. All of it is seen by all, and its token type is 0, as in
            XLNet's own code.
    """

    readouts = (Readout("query", stack="encoder"),)
    objectives = ("permutation",)

    def make_own_parameters(self) -> None:
        c = self.config
        start = named(nn.initializers.normal(c.initializer_range), "embed")
        self.query_start = self.param("query_start", start, (c.d_model,))

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        def dropped(x: jax.Array) -> jax.Array:
            return self.dropout(x.astype(self.config.compute_dtype), deterministic)

        content = dropped(lookup(self.token, batch["input_tokens"]))
        content = constrain(content, "batch", "length", "embed")
        attention = self._attention(batch, deterministic)
        past = past_streams(batch)
        order = batch.get("order")
        if order is None and "hidden" in batch:
            order = batch["hidden"].astype(jnp.int32)
        if order is None:
            return {"encoder": content}, {"encoder": BlockContext(attention, past=past)}

        sees = before_in_order(order, attention.key_segments.shape[1])
        _, length, keys = sees.shape
        itself = jnp.eye(length, keys, keys - length, dtype=bool)
        asking = dataclasses.replace(attention, allowed=sees)
        if "targets" in batch:
            asking = at_places(asking, batch["targets"])
        shape = (*asking.query_segments.shape, self.config.d_model)
        query = dropped(jnp.broadcast_to(self.query_start[None, None], shape))
        query = constrain(query, "batch", "length", "embed")
        seeing = dataclasses.replace(attention, allowed=sees | itself[None])
        context = BlockContext(seeing, query_attention=asking, past=past)
        return {"encoder": (content, query)}, {"encoder": context}

    def _attention(self, batch: Batch, deterministic: bool) -> AttentionContext:
        """Segments, types and distances of the row's own keys, after those of its past."""
        tokens, segments = batch["input_tokens"], batch["segment_ids"]
        closing = get_vocabulary(self.config.vocabulary).suffix_ids[-1:]
        types = jnp.where(jnp.isin(tokens, jnp.asarray(closing, jnp.int32)), CLOSING_TYPE, 0)
        key_segments, key_types = segments, types
        if "past_segments" in batch:
            older = batch["past_segments"]
            key_segments = jnp.concatenate([older, segments], axis=1)
            key_types = jnp.concatenate([jnp.zeros_like(older), types], axis=1)
        length, keys = segments.shape[1], key_segments.shape[1]
        distances = relative_sinusoids(length, keys, self.config.d_model, causal=False)
        distances = distances.astype(self.config.compute_dtype)
        return AttentionContext(
            segments,
            key_segments,
            distances=self.dropout(distances, deterministic, (None, None)),
            query_types=types,
            key_types=key_types,
        )


def before_in_order(order: jax.Array, key_length: int) -> jax.Array:
    """What each query may see of the row by its order, and of a past, all: [B, L, M] bool.

    Args:
        order: [B, L] int32.
        key_length: M; the row's own keys are the last L.
    """
    own = (order[:, None, :] == 0) | (order[:, None, :] < order[:, :, None])
    return jnp.pad(own, ((0, 0), (0, 0), (key_length - own.shape[2], 0)), constant_values=True)


_LAYER = "transformer.layer.{layer}."

_KERNELS = tuple(
    Key(f"encoder/attention/{ours}/kernel", f"{_LAYER}rel_attn.{theirs}", layout)
    for ours, theirs, layout in (
        ("query", "q", "D H K -> D H K"),
        ("key", "k", "D H K -> D H K"),
        ("value", "v", "D H K -> D H K"),
        ("position", "r", "D H K -> D H K"),
        ("out", "o", "H K D -> D H K"),
    )
)

_BIASES = tuple(
    Key(f"encoder/attention/{ours}", f"{_LAYER}rel_attn.{theirs}", "H K -> H K")
    for ours, theirs in (
        ("content_bias", "r_w_bias"),
        ("position_bias", "r_r_bias"),
        ("type_bias", "r_s_bias"),
    )
)


def _read(fields: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    if fields.get("mem_len") is None or fields.get("use_mems_train") is None:
        return {}
    memory = typed(fields, "mem_len", "int", least=0)
    return {"memory_length": memory if typed(fields, "use_mems_train", "bool") else 0}


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "mem_len": config.memory_length or None,
        "use_mems_train": config.memory_length > 0,
        "use_mems_eval": False,
    }


EXCHANGE = Exchange(
    model_type="xlnet",
    architecture="XLNetLMHeadModel",
    task="fill-mask",
    keys=(
        Key("token", "transformer.word_embedding.weight", "V D -> V D"),
        Key("query_start", "transformer.mask_emb", "D -> 1 1 D"),
        *_KERNELS,
        *_BIASES,
        Key("encoder/attention/type", f"{_LAYER}rel_attn.seg_embed", "T H K -> T H K"),
        *norm_keys("encoder/attention_norm", f"{_LAYER}rel_attn.layer_norm"),
        *mlp_keys(f"{_LAYER}ff.layer_1", f"{_LAYER}ff.layer_2"),
        *norm_keys("encoder/mlp_norm", f"{_LAYER}ff.layer_norm"),
        Key("head_bias", "lm_loss.bias", "V -> V"),
    ),
    make=xlnet_config,
    fields=(
        Field("vocab_size", "n_token vocab_size"),
        Field("d_model", "d_model"),
        Field("num_layers", "n_layer"),
        Field("num_heads", "n_head"),
        Field("head_dim", "d_head", lambda known: known["d_model"] // known["num_heads"]),
        Field("d_ff", "d_inner"),
        Field("activation", "ff_activation", "gelu"),
        Field("norm_eps", "layer_norm_eps", 1e-12),
        Field("initializer_range", "initializer_range", 0.02),
        Field("dropout_rate", "dropout", 0.1),
    ),
    fixed={
        "attn_type": ("bi",),
        "untie_r": (True,),
        "bi_data": (False,),
        "clamp_len": (-1, 0, None),
        "tie_word_embeddings": (True,),
    },
    write=_write,
    read=_read,
    imports="XLNetLMHeadModel",
    usage="""\
model = XLNetLMHeadModel.from_pretrained("{title}")
hidden = model.transformer(**batch).last_hidden_state
# To predict residues, hide them with `perm_mask` and ask for them with `target_mapping`.
""",
    copies={"lm_loss.weight": "transformer.word_embedding.weight"},
    closing_type=CLOSING_TYPE,
    heads={"head_bias": "the language-modelling head (lm_loss)"},
    around=((), ("sep_token", "cls_token")),
)
