"""GPT-2 for proteins (Radford et al. 2019; ProtGPT2: Ferruz et al. 2022).

Pre-LN blocks that see the tokens before them alone, learned absolute positions, a norm after the
last block, and an output tied to the token table. Each position predicts the next token.

ProtGPT2 itself reads pieces of several residues (byte-pair encoding), and says nothing about single
ones: here a token is a residue, and its folder is refused.

GPT-2 in Hugging Face's format: `GPT2LMHeadModel`.

Its maps are `Conv1D`: kernels of [in, out], where a Linear has [out, in].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import BlockContext
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.dropout import Dropout
from protlm_jax.models.exchange import (
    ACTIVATION_NAMES,
    Exchange,
    Key,
    activation_field,
    linear_keys,
    norm_keys,
    refuse_unless,
    required,
)
from protlm_jax.models.layers import Normalization, lookup
from protlm_jax.models.positions import sinusoidal
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, SingleStack, Streams
from protlm_jax.vocabularies import get_vocabulary


def gpt2_config(**sizes: Any) -> ModelConfig:
    """A GPT-2 of any size over our 29 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "gpt2",
        "vocabulary": "prot_txl",
        "vocab_size": 29,
        "norm": "layer_norm",
        "norm_placement": "pre",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "positions": "learned",
        "max_positions": 1024,
        "dropout_rate": 0.1,
    }
    return ModelConfig(**{**fields, **sizes})


# The shape of ProtGPT2, which is that of GPT-2 large, from memory; its table has 50,257 rows.
PRESETS = {
    "prot_gpt2": gpt2_config(d_model=1280, num_layers=36, num_heads=20, head_dim=64, d_ff=5120)
}


class Gpt2(SingleStack):
    """GPT-2; see the module's docstring."""

    readouts = (Readout("causal", stack="encoder"),)
    objectives = ("causal",)

    def setup(self) -> None:
        super().setup()
        c = self.config
        normal = nn.initializers.normal(c.initializer_range)
        start = normal if c.position_init == "normal" else sinusoidal(c.initializer_range)
        self.token = self.param("token", named(normal, "vocab", "embed"), (c.vocab_size, c.d_model))
        self.position = self.param(
            "position", named(start, "positions", "embed"), (c.max_positions, c.d_model)
        )
        self.final_norm = Normalization(c)
        self.dropout = Dropout(c.dropout_rate)

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        h = lookup(self.token, batch["input_tokens"])
        h = h + lookup(self.position, batch["positions"])
        h = self.dropout(h.astype(self.config.compute_dtype), deterministic)
        h = constrain(h, "batch", "length", "embed")
        segments = batch["segment_ids"]
        attention = AttentionContext(segments, segments, causal=True)
        return {"encoder": h}, {"encoder": BlockContext(attention)}

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits of the next token."""
        x = self.final_norm(h["encoder"])
        return jnp.einsum(
            "BLD,VD->BLV", x, self.token.astype(x.dtype), preferred_element_type=jnp.float32
        )

    def finish(self, h: jax.Array) -> jax.Array:
        return self.final_norm(h)


_TOKEN = "transformer.wte.weight"
_LAYER = "transformer.h.{layer}."


def _fused(part: str, layout: str) -> tuple[Key, ...]:
    """Query, key and value, one after the other along the last axis."""
    return tuple(
        Key(
            f"encoder/attention/{name}/{'kernel' if part == 'weight' else 'bias'}",
            f"{_LAYER}attn.c_attn.{part}",
            layout,
            part=(index, 3),
        )
        for index, name in enumerate(("query", "key", "value"))
    )


KEYS = (
    Key("token", _TOKEN, "V D -> V D"),
    Key("position", "transformer.wpe.weight", "P D -> P D"),
    *norm_keys("encoder/attention_norm", f"{_LAYER}ln_1"),
    *_fused("weight", "D H K -> D (P H K)"),
    *_fused("bias", "H K -> (P H K)"),
    *linear_keys("encoder/attention/out", f"{_LAYER}attn.c_proj", "H K D -> (H K) D", "D -> D"),
    *norm_keys("encoder/mlp_norm", f"{_LAYER}ln_2"),
    *linear_keys("encoder/mlp/wi", f"{_LAYER}mlp.c_fc", "D F -> D F", "F -> F"),
    *linear_keys("encoder/mlp/wo", f"{_LAYER}mlp.c_proj", "F D -> F D", "D -> D"),
    *norm_keys("final_norm", "transformer.ln_f"),
)


def _to_config(config: ModelConfig) -> dict[str, Any]:
    vocabulary = get_vocabulary(config.vocabulary)
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "resid_pdrop": config.dropout_rate,
        "embd_pdrop": config.dropout_rate,
        "attn_pdrop": config.dropout_rate,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.initializer_range,
        "pad_token_id": vocabulary.pad_id,
        "bos_token_id": next(iter(vocabulary.prefix_ids), None),
        "eos_token_id": next(iter(vocabulary.suffix_ids), None),
        "tie_word_embeddings": True,
    }


def _from_config(fields: Mapping[str, Any]) -> ModelConfig:
    refuse_unless(fields, "scale_attn_weights", True)
    refuse_unless(fields, "scale_attn_by_inverse_layer_idx", False)
    refuse_unless(fields, "add_cross_attention", False)
    refuse_unless(fields, "tie_word_embeddings", True)
    width, heads = required(fields, "n_embd"), required(fields, "n_head")
    return gpt2_config(
        vocab_size=required(fields, "vocab_size"),
        max_positions=required(fields, "n_positions"),
        d_model=width,
        num_layers=required(fields, "n_layer"),
        num_heads=heads,
        head_dim=width // heads,
        d_ff=fields.get("n_inner") or 4 * width,
        activation=activation_field(fields.get("activation_function", "gelu_new")),
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        initializer_range=fields.get("initializer_range", 0.02),
        dropout_rate=float(fields.get("resid_pdrop", 0.1)),
    )


EXCHANGE = Exchange(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    task="text-generation",
    keys=KEYS,
    to_config=_to_config,
    from_config=_from_config,
    imports="AutoModelForCausalLM",
    usage="""\
model = AutoModelForCausalLM.from_pretrained("{title}")
logits = model(**batch).logits  # logits[:, i] predicts token i + 1
hidden = model.transformer(**batch).last_hidden_state
""",
    keeps_rare=True,
    copies={"lm_head.weight": _TOKEN},
    unused={
        "transformer.h.*.attn.bias": "the causal mask, a constant",
        "transformer.h.*.attn.masked_bias": "the causal mask, a constant",
    },
)
