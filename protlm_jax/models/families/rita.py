"""RITA (Hesslow et al. 2022): proteins read from either end, each token from those before it.

Pre-LN blocks with biases and rotary positions over the whole head, a norm after the last block, and
an output with weights of its own and no bias. A protein is followed by <EOS>, in whichever
direction it is read; no token stands before it, so that its first residue is never predicted.

RITA in the published format: `RITAModelForCausalLM`, as lightonai/RITA_s. `transformers` has no
such class; an export carries one. The published files are in half precision, the rotary frequencies
too.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import Exchange, Field, Key, attention_keys, mlp_keys, norm_keys
from protlm_jax.models.layers import Logits
from protlm_jax.models.positions import rotary_frequencies
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import PreNormStack, Streams


def rita_config(**sizes: Any) -> ModelConfig:
    """A RITA of any size over its 23 known tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "rita",
        "vocabulary": "rita",
        "vocab_size": 26,  # rows of the published tables
        "norm": "layer_norm",
        "norm_placement": "pre",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "positions": "rotary",
        "max_positions": 1024,
        "tie_embeddings": False,
    }
    return ModelConfig(**{**fields, **sizes})


def _published(num_layers: int, d_model: int) -> ModelConfig:
    return rita_config(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=d_model // 64,
        head_dim=64,
        d_ff=4 * d_model,
    )


PRESETS = {
    "rita_s": _published(12, 768),
    "rita_m": _published(24, 1024),
    "rita_l": _published(24, 1536),
    "rita_xl": _published(24, 2048),
}


class Rita(PreNormStack):
    """RITA; see the module's docstring."""

    readouts = (Readout("causal", stack="encoder", both_ways=True),)
    objectives = ("causal",)
    causal = True
    stored_frequencies = True

    def setup(self) -> None:
        super().setup()
        self.head_module = Logits(self.config, bias=False, name="head")

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits of the next token."""
        return self.head_module(self.final_norm(h["encoder"]))


_LAYER = "transformer.layers.{layer}."
_ATTENTION = f"{_LAYER}self_attention."
_FREQUENCIES = "transformer.inv_freq"
_TOKEN = "transformer.embedding.weight"

EXCHANGE = Exchange(
    model_type="rita",
    architecture="RITAModelForCausalLM",
    task="text-generation",
    keys=(
        Key("token", _TOKEN, "V D -> V D"),
        Key("frequencies", _FREQUENCIES, "R -> R"),
        *norm_keys("encoder/attention_norm", f"{_LAYER}attn_norm"),
        *attention_keys(_ATTENTION, f"{_ATTENTION}proj"),
        *norm_keys("encoder/mlp_norm", f"{_LAYER}mlp_norm"),
        *mlp_keys(f"{_LAYER}mlp.0", f"{_LAYER}mlp.2"),
        *norm_keys("final_norm", "transformer.final_norm"),
        Key("head/kernel", "lm_head.weight", "D V -> V D"),
    ),
    make=rita_config,
    fields=(
        Field("d_model", "d_model"),
        Field("num_layers", "num_layers"),
        Field("num_heads", "num_heads"),
        Field("d_ff", "d_feedforward", lambda known: 4 * known["d_model"]),
        Field("vocab_size", "vocab_size"),
        Field("max_positions", "max_seq_len"),
        Field("dropout_rate", "dropout", 0.0),
        Field("initializer_range", "initializer_range", 0.02),
    ),
    # Versions of transformers before 5 tie the two on loading, whatever the file holds.
    fixed={"tie_word_embeddings": (False, True)},
    imports="AutoModelForCausalLM",
    copies={"lm_head.weight": _TOKEN},
    aliases={"transformer.layers.*.self_attention.rotary_embedding.inv_freq": _FREQUENCIES},
    defaults={_FREQUENCIES: lambda config: np.asarray(rotary_frequencies(config.head_dim))},
    heads={"head": "the language-modelling head (lm_head)"},
    around=((), ("eos_token",)),
    keeps_rare=True,
    code=("modeling_rita", "RITA"),
)
