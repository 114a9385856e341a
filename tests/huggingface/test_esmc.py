"""ESM-C's folders: its own tokenizer, the division of what sublayers add, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from hf_folders import reconfigure, require_named

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import load_model
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.vocabularies import ESMC

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "EsmcForMaskedLM"):
    pytest.skip("transformers has ESM-C from 5.16 on", allow_module_level=True)

FAMILY = "esmc"


def test_their_own_tokenizer_is_ours(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    theirs = transformers.EsmcTokenizer()
    theirs.save_pretrained(folder)
    assert load_model(folder).vocabulary is ESMC
    assert ESMC.encode("MKXLO").tolist() == theirs("MKXLO")["input_ids"]
    assert ESMC.mask_id == theirs.mask_token_id and ESMC.tokens[31] == "|"


def test_taps_are_what_is_added_after_the_division(exported_once: Path, assert_close: Any) -> None:
    """Two layers: divided by sqrt(2 / 36), that is, more than quadrupled."""
    loaded = zoo.loaded("esmc")
    assert loaded.config.residual_divisor == pytest.approx((2 / 36) ** 0.5)
    theirs = transformers.EsmcForMaskedLM.from_pretrained(exported_once).eval()
    found: dict[str, list[np.ndarray]] = {"attention": [], "mlp": []}
    for layer in theirs.esmc.layers:
        layer.self_attn.o_proj.register_forward_hook(
            lambda _, args, out: found["attention"].append(out.detach().numpy())
        )
        layer.mlp.register_forward_hook(
            lambda _, args, out: found["mlp"].append(out.detach().numpy())
        )
    batch = zoo.row("esmc", [1], 9)
    theirs(torch.tensor(batch["input_tokens"]).long())
    h, context = loaded.model.apply({"params": loaded.params}, batch, method="embed")
    _, taps = loaded.model.apply({"params": loaded.params}, h, context, method="stack")
    for name, outputs in found.items():
        expected = np.stack(outputs) / (2 / 36) ** 0.5
        assert_close(taps["encoder"][name], expected, 1e-4, name)


@pytest.mark.parametrize("name", ["q_norm", "k_proj"])
def test_a_tensor_that_is_missing_or_of_another_size_is_named(folder: Path, name: str) -> None:
    require_named(folder, f"esmc.layers.1.self_attn.{name}.weight")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
        ({"attention_bias": True}, "'attention_bias' is True"),
        ({"mlp_bias": True}, "'mlp_bias' is True"),
        ({"tie_word_embeddings": True}, "'tie_word_embeddings' is True"),
        ({"num_key_value_heads": 1}, "'num_key_value_heads' is 1"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "'rope_parameters' is {'rope_theta': 500000"),
        ({"num_hidden_layers": 3}, r"esmc.layers.2.input_layernorm.weight of shape \[16\] is mis"),
    ],
)
def test_other_models_of_the_type_are_refused(folder: Path, fields: Any, message: str) -> None:
    reconfigure(folder, **fields)
    with pytest.raises(ProtlmError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("preset", "d_ff", "millions"),
    [("esmc_300m", 2560, 333.0), ("esmc_600m", 3072, 575.0), ("esmc_6b", 6912, 6352.0)],
)
def test_presets_are_those_that_transformers_builds(
    preset: str, d_ff: int, millions: float
) -> None:
    config = models.preset(preset)
    total = models.parameter_count(models.abstract_params(models.build(config)))
    with torch.device("meta"):
        fields = EXCHANGES["esmc"].to_config(config)
        theirs = transformers.EsmcForMaskedLM(transformers.EsmcConfig(**fields))
    assert total == sum(p.numel() for p in theirs.parameters())
    assert config.d_ff == d_ff and round(total / 1e6, 1) == millions
