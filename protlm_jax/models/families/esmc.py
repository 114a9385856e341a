"""ESM-C (EvolutionaryScale 2024, "ESM Cambrian"): the successor of ESM-2 for representations.

Pre-LN blocks with rotary positions, gated MLPs (SwiGLU) and no biases but in the norms. Queries and
keys are normed over all heads together before they are turned. What a sublayer adds is divided by
sqrt(layers / 36), so that streams of deep models grow no faster. The masked-language head has a
table of its own, and <mask> is an ordinary token with an embedding that is learned: there is none
of ESM-2's token dropout.

ESM-C in Hugging Face's format: `EsmcForMaskedLM` of transformers 5.16, as biohub/ESMC-300M.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax

from protlm_jax.errors import ProtlmError
from protlm_jax.models.axes import named
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import Exchange, Field, Key, norm_keys, refuse_unless, typed
from protlm_jax.models.families.bert import SIZES, Head, head_keys
from protlm_jax.models.layers import lookup
from protlm_jax.models.positions import ROTARY_THETA
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, PreNormStack, Streams
from protlm_jax.vocabularies import get_vocabulary

REFERENCE_DEPTH = 36  # layers of the model whose additions are not scaled


def residual_divisor(num_layers: int) -> float:
    """What additions to the stream are divided by in a model of so many layers."""
    return float((num_layers / REFERENCE_DEPTH) ** 0.5)


def esmc_config(num_layers: int, **sizes: Any) -> ModelConfig:
    """An ESM-C of any size over its 33 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "esmc",
        "vocabulary": "esmc",
        "vocab_size": 64,  # rows, of which 33 are tokens
        "norm": "layer_norm",
        "norm_placement": "pre",
        "norm_eps": 1e-5,
        "activation": "silu",
        "gated_mlp": True,
        "use_bias": False,
        "qk_norm": True,
        "residual_divisor": residual_divisor(num_layers),
        "positions": "rotary",
        "tie_embeddings": False,
    }
    return ModelConfig(num_layers=num_layers, **{**fields, **sizes})


def _published(num_layers: int, d_model: int) -> ModelConfig:
    return esmc_config(
        num_layers,
        d_model=d_model,
        num_heads=d_model // 64,
        head_dim=64,
        d_ff=-(-d_model * 8 // 3 // 256) * 256,  # 8/3 of the width, up to a multiple of 256
    )


PRESETS = {
    "esmc_300m": _published(30, 960),
    "esmc_600m": _published(36, 1152),
    "esmc_6b": _published(80, 2560),
}


class Esmc(PreNormStack):
    """ESM-C; see the module's docstring."""

    readouts = (Readout("masked", stack="encoder"),)
    objectives: ClassVar[tuple[str, ...]] = ("masked",)
    dense_head = True

    def setup(self) -> None:
        super().setup()
        c = self.config
        table = named(nn.initializers.normal(c.initializer_range), "vocab", "embed")
        self.decoder = self.param("decoder", table, (c.vocab_size, c.d_model))
        self.head_module = Head(c.replace(activation="gelu"), name="head")

    def tokens(self, batch: Batch, deterministic: bool) -> jax.Array:
        return lookup(self.token, batch["input_tokens"]).astype(self.config.compute_dtype)

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        return self.head_module(self.final_norm(h["encoder"]), self.decoder)


_LAYER = "esmc.layers.{layer}."
_ATTENTION = f"{_LAYER}self_attn."
_MLP = f"{_LAYER}mlp."
_HEAD = "the masked-language head (lm_head)"

KEYS = (
    Key("token", "esmc.embed_tokens.weight", "V D -> V D"),
    *norm_keys("encoder/attention_norm", f"{_LAYER}input_layernorm"),
    *(
        Key(f"encoder/attention/{ours}/kernel", f"{_ATTENTION}{theirs}.weight", "D H K -> (H K) D")
        for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
    ),
    Key("encoder/attention/query_norm/scale", f"{_ATTENTION}q_norm.weight", "H K -> (H K)"),
    Key("encoder/attention/key_norm/scale", f"{_ATTENTION}k_norm.weight", "H K -> (H K)"),
    Key("encoder/attention/out/kernel", f"{_ATTENTION}o_proj.weight", "H K D -> D (H K)"),
    *norm_keys("encoder/mlp_norm", f"{_LAYER}post_attention_layernorm"),
    Key("encoder/mlp/wi_0/kernel", f"{_MLP}gate_proj.weight", "D F -> F D"),
    Key("encoder/mlp/wi_1/kernel", f"{_MLP}up_proj.weight", "D F -> F D"),
    Key("encoder/mlp/wo/kernel", f"{_MLP}down_proj.weight", "F D -> D F"),
    Key("final_norm/scale", "esmc.norm.weight", "D -> D"),
    *head_keys("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder.bias"),
    Key("decoder", "lm_head.decoder.weight", "V D -> V D"),
)


_ROPE = {"rope_type": "default", "rope_theta": ROTARY_THETA}


def _write(config: ModelConfig) -> dict[str, Any]:
    mask_id = get_vocabulary(config.vocabulary).mask_id
    # Tools that open what has an `EsmTokenizer` as an `EsmModel` are refused by its config.
    no_esm2 = {"token_dropout": "not of an ESM-2 model"}
    return {"rope_parameters": _ROPE, "mask_token_id": mask_id, **no_esm2}


def _read(fields: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    refuse_unless(fields, "num_key_value_heads", None, known["num_heads"])
    refuse_unless(fields, "head_dim", None, known["d_model"] // known["num_heads"])
    if fields.get("rope_parameters") is not None:
        rope = typed(fields, "rope_parameters", "dict")
        if {name: rope.get(name, value) for name, value in _ROPE.items()} != _ROPE:
            raise ProtlmError(
                f"'rope_parameters' is {rope!r}; only theta {ROTARY_THETA:g} can be read"
            )
    return {}


EXCHANGE = Exchange(
    model_type="esmc",
    architecture="EsmcForMaskedLM",
    task="fill-mask",
    keys=KEYS,
    make=esmc_config,
    fields=(*SIZES, Field("dropout_rate", "attention_dropout", 0.0)),
    fixed={
        "hidden_act": ("silu", None),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "tie_word_embeddings": (False,),
    },
    write=_write,
    read=_read,
    imports="AutoModelForMaskedLM",
    heads={"head": _HEAD, "decoder": _HEAD},
    keeps_rare=True,
    esm_tokenizer=True,  # theirs, `EsmcTokenizer`, does not take spaces
    row=("max_position_embeddings", 0),
    around=(("cls_token",), ("eos_token",)),
)
