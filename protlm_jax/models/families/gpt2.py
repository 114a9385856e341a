"""GPT-2 for proteins (Radford et al. 2019; ProtGPT2: Ferruz et al. 2022).

Pre-LN blocks that see the tokens before them alone, learned absolute positions, a norm after the
last block, and an output tied to the token table. Each position predicts the next token.

ProtGPT2 itself reads pieces of several residues (byte-pair encoding), and says nothing about single
ones: here a token is a residue, and its folder is refused.

GPT-2 in Hugging Face's format: `GPT2LMHeadModel`.

Its maps are `Conv1D`: kernels of [in, out], where a Linear has [out, in].
"""

from __future__ import annotations

from typing import Any

import jax

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import Exchange, Field, Key, fused_keys, linear_keys, norm_keys
from protlm_jax.models.layers import logits_of
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import PreNormStack, Streams


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


class Gpt2(PreNormStack):
    """GPT-2; see the module's docstring."""

    readouts = (Readout("causal", stack="encoder"),)
    objectives = ("causal",)
    causal = True

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits of the next token."""
        return logits_of(self.final_norm(h["encoder"]), self.token)


_TOKEN = "transformer.wte.weight"
_LAYER = "transformer.h.{layer}."


FIELDS = (
    Field("d_model", "n_embd"),
    Field("max_positions", "n_positions"),
    Field("num_layers", "n_layer"),
    Field("num_heads", "n_head"),
    Field("d_ff", "n_inner", lambda known: 4 * known["d_model"]),
    Field("activation", "activation_function", "gelu_tanh"),
    Field("norm_eps", "layer_norm_epsilon", 1e-5),
    Field("initializer_range", "initializer_range", 0.02),
)

MASKS = {
    "transformer.h.*.attn.bias": "the causal mask, a constant",
    "transformer.h.*.attn.masked_bias": "the causal mask, a constant",
}

EXCHANGE = Exchange(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    task="text-generation",
    keys=(
        Key("token", _TOKEN, "V D -> V D"),
        Key("position", "transformer.wpe.weight", "P D -> P D"),
        *norm_keys("encoder/attention_norm", f"{_LAYER}ln_1"),
        *fused_keys(f"{_LAYER}attn.c_attn.weight", "D H K -> D (P H K)"),
        *fused_keys(f"{_LAYER}attn.c_attn.bias", "H K -> (P H K)", "bias"),
        *linear_keys("encoder/attention/out", f"{_LAYER}attn.c_proj", "H K D -> (H K) D"),
        *norm_keys("encoder/mlp_norm", f"{_LAYER}ln_2"),
        *linear_keys("encoder/mlp/wi", f"{_LAYER}mlp.c_fc", "D F -> D F"),
        *linear_keys("encoder/mlp/wo", f"{_LAYER}mlp.c_proj", "F D -> F D"),
        *norm_keys("final_norm", "transformer.ln_f"),
    ),
    make=gpt2_config,
    fields=(
        *FIELDS,
        Field("vocab_size", "vocab_size"),
        Field("dropout_rate", "resid_pdrop", 0.1, ("embd_pdrop", "attn_pdrop")),
    ),
    fixed={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
    imports="AutoModelForCausalLM",
    keeps_rare=True,
    unspaced=True,
    copies={"lm_head.weight": _TOKEN},
    unused=MASKS,
)
