"""ProGen2 (Nijkamp et al. 2023): proteins read from either end, each token from those before it.

Parallel blocks as in GPT-J: attention and MLP read one norm of the same stream, and both are added
to it. Attention has no biases, and turns the first entries of each head alone, in pairs of
neighbours. The output has weights of its own, and a bias.

A protein stands between the tokens 1 and 2, its N and C terminus: `1MKV2`, or `2VKM1` read
backwards. The model was trained on both, so that a protein has two likelihoods; scores are the mean
of the two.

ProGen2 in the published format: `ProGenForCausalLM`, as salesforce/progen and its conversions.

The rows of the fused projection are 8 groups of heads, each of all its queries, then values, then
keys: the layout of the machine that it was trained on. `transformers` has no such class; an export
carries one, made of CodeGen's, which computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from protlm_jax.errors import ProtlmError
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
from protlm_jax.models.layers import Logits, Normalization, lookup
from protlm_jax.models.positions import rotary_frequencies, rotation
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, SingleStack, Streams
from protlm_jax.vocabularies import get_vocabulary

HEAD_GROUPS = 8  # in which published checkpoints hold their heads


def progen2_config(**sizes: Any) -> ModelConfig:
    """A ProGen2 of any size over its 30 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "progen2",
        "vocabulary": "progen2",
        "vocab_size": 32,  # rows in the published conversions, of which 30 are tokens
        "norm": "layer_norm",
        "norm_placement": "pre",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "parallel_block": True,
        "attention_bias": False,
        "positions": "rotary",
        "rotary_pairs": "neighbours",
        "max_positions": 1024,
        "tie_embeddings": False,
    }
    return ModelConfig(**{**fields, **sizes})


def _published(
    layers: int, width: int, heads: int, rotary: int, context: int = 1024
) -> ModelConfig:
    return progen2_config(
        num_layers=layers,
        d_model=width,
        num_heads=heads,
        head_dim=width // heads,
        d_ff=4 * width,
        rotary_dim=rotary,
        max_positions=context,
    )


# As published, but that the 64 turned entries of the largest are inferred and that the context of
# "base" is from memory. ProGen2-OAS is as "medium", ProGen2-BFD90 as "large".
PRESETS = {
    "progen2_small": _published(12, 1024, 16, 32),
    "progen2_medium": _published(27, 1536, 16, 48),
    "progen2_base": _published(27, 1536, 16, 48, context=2048),
    "progen2_large": _published(32, 2560, 32, 64),
    "progen2_xlarge": _published(32, 4096, 16, 64),
}


class ProGen2(SingleStack):
    """ProGen2; see the module's docstring."""

    readouts = (Readout("causal", stack="encoder", both_ways=True),)
    objectives = ("causal",)

    def setup(self) -> None:
        super().setup()
        c = self.config
        normal = nn.initializers.normal(c.initializer_range)
        self.token = self.param("token", named(normal, "vocab", "embed"), (c.vocab_size, c.d_model))
        self.final_norm = Normalization(c)
        self.head_module = Logits(c, name="head")
        self.dropout = Dropout(c.dropout_rate)

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        c, segments = self.config, batch["segment_ids"]
        h = lookup(self.token, batch["input_tokens"]).astype(c.compute_dtype)
        h = constrain(self.dropout(h, deterministic), "batch", "length", "embed")
        neighbours = c.rotary_pairs == "neighbours"
        turn = rotation(batch["positions"], rotary_frequencies(c.rotary_size), neighbours)
        attention = AttentionContext(
            segments, segments, causal=True, query_rotation=turn, key_rotation=turn
        )
        return {"encoder": h}, {"encoder": BlockContext(attention)}

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits of the next token."""
        return self.head_module(self.final_norm(h["encoder"]))

    def finish(self, h: jax.Array) -> jax.Array:
        return self.final_norm(h)


_CODE = Path(__file__).parents[2] / "huggingface" / "remote" / "modeling_progen2.py"
_LAYER = "transformer.h.{layer}."

KEYS = (
    Key("token", "transformer.wte.weight", "V D -> V D"),
    *norm_keys("encoder/norm", f"{_LAYER}ln_1"),
    *(
        Key(
            f"encoder/attention/{name}/kernel",
            f"{_LAYER}attn.qkv_proj.weight",
            f"D ({HEAD_GROUPS} H) K -> ({HEAD_GROUPS} P H K) D",
            part=(index, 3),
        )
        for index, name in enumerate(("query", "value", "key"))
    ),
    Key("encoder/attention/out/kernel", f"{_LAYER}attn.out_proj.weight", "H K D -> D (H K)"),
    *linear_keys("encoder/mlp/wi", f"{_LAYER}mlp.fc_in", "D F -> F D", "F -> F"),
    *linear_keys("encoder/mlp/wo", f"{_LAYER}mlp.fc_out", "F D -> D F", "D -> D"),
    *norm_keys("final_norm", "transformer.ln_f"),
    *linear_keys("head", "lm_head", "D V -> V D", "V -> V"),
)


def _to_config(config: ModelConfig) -> dict[str, Any]:
    _require_groups(config.num_heads)
    vocabulary = get_vocabulary(config.vocabulary)
    return {
        # Both spellings: of the original and of its conversions.
        "vocab_size": config.vocab_size,
        "vocab_size_emb": config.vocab_size,
        "vocab_size_lm_head": config.vocab_size,
        "n_embd": config.d_model,
        "embed_dim": config.d_model,
        "n_positions": config.max_positions,
        "n_ctx": config.max_positions,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "rotary_dim": config.rotary_size,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "resid_pdrop": config.dropout_rate,
        "embd_pdrop": config.dropout_rate,
        "attn_pdrop": config.dropout_rate,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.initializer_range,
        "pad_token_id": vocabulary.pad_id,
        "bos_token_id": next(iter(vocabulary.prefix_ids), None),
        "eos_token_id": next(iter(vocabulary.suffix_ids), None),
        "tie_word_embeddings": False,
        "auto_map": {
            auto: f"{_CODE.stem}.ProGen{name}"
            for auto, name in (
                ("AutoConfig", "Config"),
                ("AutoModel", "Model"),
                ("AutoModelForCausalLM", "ForCausalLM"),
            )
        },
    }


def _from_config(fields: Mapping[str, Any]) -> ModelConfig:
    refuse_unless(fields, "scale_attn_weights", True)
    refuse_unless(fields, "tie_word_embeddings", False)
    rows = (
        fields["vocab_size_emb"] if "vocab_size_emb" in fields else required(fields, "vocab_size")
    )
    refuse_unless(fields, "vocab_size_lm_head", rows)
    width = fields["embed_dim"] if "embed_dim" in fields else required(fields, "n_embd")
    heads = required(fields, "n_head")
    _require_groups(heads)
    return progen2_config(
        vocab_size=rows,
        max_positions=required(fields, "n_positions"),
        d_model=width,
        num_layers=required(fields, "n_layer"),
        num_heads=heads,
        head_dim=width // heads,
        d_ff=fields.get("n_inner") or 4 * width,
        rotary_dim=required(fields, "rotary_dim"),
        activation=activation_field(fields.get("activation_function", "gelu_new")),
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        initializer_range=fields.get("initializer_range", 0.02),
        dropout_rate=float(fields.get("resid_pdrop", 0.0)),
    )


def _require_groups(heads: int) -> None:
    if heads % HEAD_GROUPS:
        raise ProtlmError(
            f"{heads} heads cannot be laid out in the {HEAD_GROUPS} groups of ProGen2's files: "
            f"choose a multiple of {HEAD_GROUPS}"
        )


EXCHANGE = Exchange(
    model_type="progen",
    architecture="ProGenForCausalLM",
    task="text-generation",
    keys=KEYS,
    to_config=_to_config,
    from_config=_from_config,
    imports="AutoModelForCausalLM",
    usage="""\
model = AutoModelForCausalLM.from_pretrained("{title}", trust_remote_code=True)
logits = model(**batch).logits  # logits[:, i] predicts token i + 1
hidden = model.transformer(**batch).last_hidden_state
""",
    unused={
        "transformer.h.*.attn.bias": "the causal mask, a constant",
        "transformer.h.*.attn.masked_bias": "the causal mask, a constant",
    },
    keeps_rare=True,
    heads={"head": "the language-modelling head (lm_head)"},
    files={_CODE.name: lambda config: _CODE.read_text()},
)
