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
from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import BlockContext
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import (
    Exchange,
    Key,
    linear_keys,
    norm_keys,
    refuse_unless,
    required,
)
from protlm_jax.models.families.bert import Head
from protlm_jax.models.layers import Normalization, lookup
from protlm_jax.models.positions import ROTARY_THETA, rotary_frequencies, rotation
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, SingleStack, Streams
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


class Esmc(SingleStack):
    """ESM-C; see the module's docstring."""

    readouts = (Readout("masked", stack="encoder"),)
    objectives: ClassVar[tuple[str, ...]] = ("masked",)

    def setup(self) -> None:
        super().setup()
        c = self.config
        table = named(nn.initializers.normal(c.initializer_range), "vocab", "embed")
        self.token = self.param("token", table, (c.vocab_size, c.d_model))
        self.decoder = self.param("decoder", table, (c.vocab_size, c.d_model))
        self.final_norm = Normalization(c, bias=False)
        self.head_module = Head(c.replace(activation="gelu"), name="head")

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        c, segments = self.config, batch["segment_ids"]
        h = lookup(self.token, batch["input_tokens"]).astype(c.compute_dtype)
        h = constrain(h, "batch", "length", "embed")
        turn = rotation(batch["positions"], rotary_frequencies(c.rotary_size))
        attention = AttentionContext(segments, segments, query_rotation=turn, key_rotation=turn)
        return {"encoder": h}, {"encoder": BlockContext(attention)}

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        return self.head_module(self.final_norm(h["encoder"]), self.decoder)

    def finish(self, h: jax.Array) -> jax.Array:
        return self.final_norm(h)


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
    *linear_keys("head/dense", "lm_head.dense", "D E -> E D", "E -> E"),
    *norm_keys("head/norm", "lm_head.layer_norm"),
    Key("decoder", "lm_head.decoder.weight", "V D -> V D"),
    Key("head/bias", "lm_head.decoder.bias", "V -> V"),
)


def _to_config(config: ModelConfig) -> dict[str, Any]:
    vocabulary = get_vocabulary(config.vocabulary)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_THETA},
        "attention_dropout": config.dropout_rate,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": config.initializer_range,
        "mask_token_id": vocabulary.mask_id,
        "pad_token_id": vocabulary.pad_id,
        "bos_token_id": next(iter(vocabulary.prefix_ids), None),
        "eos_token_id": next(iter(vocabulary.suffix_ids), None),
        "tie_word_embeddings": False,
    }


def _from_config(fields: Mapping[str, Any]) -> ModelConfig:
    width, heads = required(fields, "hidden_size"), required(fields, "num_attention_heads")
    refuse_unless(fields, "hidden_act", "silu")
    refuse_unless(fields, "attention_bias", False)
    refuse_unless(fields, "mlp_bias", False)
    refuse_unless(fields, "tie_word_embeddings", False)
    refuse_unless(fields, "num_key_value_heads", None, heads)
    refuse_unless(fields, "head_dim", None, width // heads)
    rope = fields.get("rope_parameters") or {}
    if (rope.get("rope_type", "default"), rope.get("rope_theta", ROTARY_THETA)) != (
        "default",
        ROTARY_THETA,
    ):
        raise ProtlmError(f"'rope_parameters' is {rope!r}; only theta {ROTARY_THETA:g} can be read")
    return esmc_config(
        required(fields, "num_hidden_layers"),
        vocab_size=required(fields, "vocab_size"),
        d_model=width,
        num_heads=heads,
        head_dim=width // heads,
        d_ff=required(fields, "intermediate_size"),
        initializer_range=fields.get("initializer_range", 0.02),
        dropout_rate=float(fields.get("attention_dropout") or 0.0),
    )


EXCHANGE = Exchange(
    model_type="esmc",
    architecture="EsmcForMaskedLM",
    task="fill-mask",
    keys=KEYS,
    to_config=_to_config,
    from_config=_from_config,
    imports="AutoModelForMaskedLM",
    usage="""\
model = AutoModelForMaskedLM.from_pretrained("{title}")
logits = model(**batch).logits  # over all tokens, at each residue
hidden = model.esmc(**batch).last_hidden_state
""",
    heads={"head": _HEAD, "decoder": _HEAD},
    keeps_rare=True,
    row=lambda fields: fields.get("max_position_embeddings"),
)
