"""Transformer-XL for proteins (Dai et al. 2019; ProtTXL: Elnaggar et al. 2021).

Post-LN blocks that see the tokens before them alone, by relative distance, and, in every layer, the
streams of the rows before (`protlm_jax.models.memory`). Each position predicts the next token. The
embedding is scaled by the root of the width and tied to the output. The softmax is a plain one over
all tokens: the paper's adaptive softmax, made for 267,735 words, is the same thing with one cluster
of 29 tokens.

Neither ProtTXL nor ProtTXL-BFD was ever released: no file is there to compare with.

Transformer-XL in Hugging Face's format: `TransfoXLLMHeadModel` of transformers 4.

With no cutoffs and the embedding as wide as the model, its adaptive embedding and softmax are one
table and one bias. Version 5 of transformers has no such class any more: an export carries one of
our own, which reads the same tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import BlockContext
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.dropout import Dropout
from protlm_jax.models.exchange import (
    Exchange,
    Key,
    linear_keys,
    norm_keys,
    refuse_unless,
    required,
)
from protlm_jax.models.layers import lookup
from protlm_jax.models.memory import (
    RecurrentStack,
    causal_context,
    past_streams,
)
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, Streams
from protlm_jax.vocabularies import get_vocabulary


def transformer_xl_config(**sizes: Any) -> ModelConfig:
    """A Transformer-XL of any size over our 29 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "transformer_xl",
        "vocabulary": "prot_txl",
        "vocab_size": 29,
        "norm": "layer_norm",
        "norm_placement": "post",
        "norm_eps": 1e-5,
        "activation": "relu",
        "positions": "relative_xl",
        "mlp_dropout": True,
        "dropout_rate": 0.15,  # from memory of the paper
        "memory_length": 512,  # from memory of the paper
    }
    return ModelConfig(**{**fields, **sizes})


# From memory of the paper: all sizes of both but the 562 M parameters of ProtTXL-BFD (from notes on
# it) and the head size there. 14 heads do not divide a width of 1024; Transformer-XL's head size is
# free, and of the usual ones only 128 gives 562 M (64 gives 416 M).
PRESETS = {
    "prot_txl": transformer_xl_config(
        d_model=1024, num_layers=30, num_heads=16, head_dim=64, d_ff=4096
    ),
    "prot_txl_bfd": transformer_xl_config(
        d_model=1024, num_layers=32, num_heads=14, head_dim=128, d_ff=4096
    ),
}


class TransformerXL(RecurrentStack):
    """Transformer-XL; see the module's docstring.

    A batch has `input_tokens` and `segment_ids`, and may have a memory; see `models.memory`.
    """

    readouts = (Readout("causal", stack="encoder"),)
    objectives = ("causal",)

    def setup(self) -> None:
        super().setup()
        c = self.config
        normal = nn.initializers.normal(c.initializer_range)
        zeros = nn.initializers.zeros_init()
        self.token = self.param("token", named(normal, "vocab", "embed"), (c.vocab_size, c.d_model))
        self.head_bias = self.param("head_bias", named(zeros, "vocab"), (c.vocab_size,))
        self.dropout = Dropout(c.dropout_rate)

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        c = self.config
        h = lookup(self.token, batch["input_tokens"]) * c.d_model**0.5
        h = self.dropout(h.astype(c.compute_dtype), deterministic)
        h = constrain(h, "batch", "length", "embed")
        context = BlockContext(causal_context(c, batch), past=past_streams(batch))
        return {"encoder": h}, {"encoder": context}

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits of the next token."""
        x = self.dropout(h["encoder"], deterministic)
        logits = jnp.einsum(
            "BLD,VD->BLV", x, self.token.astype(x.dtype), preferred_element_type=jnp.float32
        )
        return logits + self.head_bias[None, None]


_CODE = Path(__file__).parents[2] / "huggingface" / "remote" / "modeling_prot_txl.py"
_EMBEDDING = "transformer.word_emb.emb_layers.0.weight"
_ATTENTION = "transformer.layers.{layer}.dec_attn."
_MLP = "transformer.layers.{layer}.pos_ff."


KEYS = (
    Key("token", _EMBEDDING, "V D -> V D"),
    *(
        Key(
            f"encoder/attention/{name}/kernel",
            f"{_ATTENTION}qkv_net.weight",
            "D H K -> (P H K) D",
            part=(index, 3),
        )
        for index, name in enumerate(("query", "key", "value"))
    ),
    Key("encoder/attention/position/kernel", f"{_ATTENTION}r_net.weight", "D H K -> (H K) D"),
    Key("encoder/attention/out/kernel", f"{_ATTENTION}o_net.weight", "H K D -> D (H K)"),
    Key("encoder/attention/content_bias", f"{_ATTENTION}r_w_bias", "H K -> H K"),
    Key("encoder/attention/position_bias", f"{_ATTENTION}r_r_bias", "H K -> H K"),
    *norm_keys("encoder/attention_norm", f"{_ATTENTION}layer_norm"),
    *linear_keys("encoder/mlp/wi", f"{_MLP}CoreNet.0", "D F -> F D", "F -> F"),
    *linear_keys("encoder/mlp/wo", f"{_MLP}CoreNet.3", "F D -> D F", "D -> D"),
    *norm_keys("encoder/mlp_norm", f"{_MLP}layer_norm"),
    Key("head_bias", "crit.out_layers.0.bias", "V -> V"),
)


def _frequencies(config: ModelConfig) -> np.ndarray:
    """Of the sinusoids: a buffer that their class does not fill in where a file lacks it."""
    exponent = np.arange(0, config.d_model, 2, dtype=np.float32) / np.float32(config.d_model)
    return (1 / 10_000.0**exponent).astype(np.float32)


def _to_config(config: ModelConfig) -> dict[str, Any]:
    vocabulary = get_vocabulary(config.vocabulary)
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_embed": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "d_head": config.head_dim,
        "d_inner": config.d_ff,
        "cutoffs": [],
        "div_val": 1,
        "adaptive": False,
        "pre_lnorm": False,
        "untie_r": True,
        "attn_type": 0,
        "mem_len": config.memory_length,
        "same_length": config.same_length,
        "clamp_len": config.clamp_length,
        "layer_norm_epsilon": config.norm_eps,
        "init_std": config.initializer_range,
        "dropout": config.dropout_rate,
        "dropatt": config.dropout_rate,
        "pad_token_id": vocabulary.pad_id,
        "bos_token_id": next(iter(vocabulary.prefix_ids), None),
        "eos_token_id": next(iter(vocabulary.suffix_ids), None),
        "tie_word_embeddings": True,
        "auto_map": {
            auto: f"{_CODE.stem}.ProtTXL{name}"
            for auto, name in (
                ("AutoConfig", "Config"),
                ("AutoModel", "Model"),
                ("AutoModelForCausalLM", "ForCausalLM"),
            )
        },
    }


def _from_config(fields: Mapping[str, Any]) -> ModelConfig:
    width = required(fields, "d_model")
    refuse_unless(fields, "cutoffs", [])
    refuse_unless(fields, "d_embed", width)
    refuse_unless(fields, "div_val", 1)
    refuse_unless(fields, "pre_lnorm", False)
    refuse_unless(fields, "untie_r", True)
    refuse_unless(fields, "attn_type", 0)
    refuse_unless(fields, "tie_word_embeddings", True)
    return transformer_xl_config(
        vocab_size=required(fields, "vocab_size"),
        d_model=width,
        num_layers=required(fields, "n_layer"),
        num_heads=required(fields, "n_head"),
        head_dim=required(fields, "d_head"),
        d_ff=required(fields, "d_inner"),
        memory_length=required(fields, "mem_len"),
        same_length=required(fields, "same_length"),
        clamp_length=max(0, required(fields, "clamp_len")),
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        initializer_range=fields.get("init_std", 0.02),
        dropout_rate=float(fields.get("dropout", 0.1)),
    )


EXCHANGE = Exchange(
    model_type="transfo-xl",
    architecture="TransfoXLLMHeadModel",
    task="text-generation",
    keys=KEYS,
    to_config=_to_config,
    from_config=_from_config,
    imports="AutoModelForCausalLM",
    usage="""\
model = AutoModelForCausalLM.from_pretrained("{title}", trust_remote_code=True)
output = model(input_ids=batch["input_ids"], output_hidden_states=True)
hidden = output.hidden_states[-1]
# output.logits[:, i] predicts token i + 1; output.mems, given back, continues longer proteins.
""",
    copies={"crit.out_layers.0.weight": _EMBEDDING},
    heads={"head_bias": "the language-modelling head (crit)"},
    files={_CODE.name: lambda config: _CODE.read_text()},
    constants={"transformer.pos_emb.inv_freq": _frequencies},
)
