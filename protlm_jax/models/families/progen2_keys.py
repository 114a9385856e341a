"""ProGen2 in the published format: `ProGenForCausalLM`, as salesforce/progen and its conversions.

The rows of the fused projection are 8 groups of heads, each of all its queries, then values, then
keys: the layout of the machine that it was trained on. `transformers` has no such class; an export
carries one, made of CodeGen's, which computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protlm_jax.errors import ProtlmError
from protlm_jax.models.config import ModelConfig
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
from protlm_jax.models.families.progen2 import HEAD_GROUPS, progen2_config
from protlm_jax.vocabularies import get_vocabulary

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
