"""Adapters against PEFT: updates, files, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from runs import tree
from zoo import ZOO, perturbed

from protlm_jax import models
from protlm_jax.config.run import OptimizerConfig, RunConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import export, load_model, load_source
from protlm_jax.huggingface.convert import EXCHANGES, tensors
from protlm_jax.huggingface.peft import adapter_files
from protlm_jax.huggingface.write_peft import export_adapter
from protlm_jax.models import ModelConfig
from protlm_jax.models.adapters import TuneConfig, Tuning
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.objectives import Objective, Score
from protlm_jax.training.loop import train
from protlm_jax.training.optimizers import build_optimizer
from protlm_jax.training.state import TrainState
from protlm_jax.training.step import TrainStep
from protlm_jax.vocabularies import get_vocabulary

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

CONFIGS: dict[str, ModelConfig] = {name: specimen.config for name, specimen in ZOO.items()}
CONFIGS["t5_encoder"] = dataclasses.replace(
    t5_config(d_model=16, num_layers=2, num_heads=2, head_dim=8, d_ff=32, num_decoder_layers=0),
    family="t5_encoder",
    dropout_rate=0.0,
)
TOKENS = np.random.default_rng(0).integers(5, 23, (3, 12)).astype(np.int32)
BATCH = {
    "input_tokens": TOKENS,
    "segment_ids": np.ones_like(TOKENS),
    "positions": np.tile(np.arange(12, dtype=np.int32), (3, 1)),
}
TARGET = np.random.default_rng(1).standard_normal((3, 12, 1)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Squares(Objective):
    """The mean squared distance of what the model gives from a constant."""

    def __call__(self, model: Any, params: Any, batch: Any, rng: Any, carry: Any = None,
                 *, evaluation: bool = False) -> Score:  # fmt: skip
        loss = jnp.mean(jnp.square(model.apply({"params": params}, batch) - TARGET))
        return Score(loss, jnp.ones(()), {}, carry)


def tuning_of(family: str, method: str, targets: tuple[str, ...]) -> Tuning:
    tune = TuneConfig(method=method, rank=3, alpha=6.0, targets=targets)  # type: ignore[arg-type]
    return Tuning(tune, models.build(CONFIGS[family]))


def theirs(family: str, params: Any) -> Any:
    """Their model with these parameters."""
    exchange = EXCHANGES[family]
    architecture = getattr(transformers, exchange.architecture)
    model = architecture(architecture.config_class(**exchange.to_config(CONFIGS[family])))
    state = {name: torch.tensor(x) for name, x in tensors(exchange, params)}
    _, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    return model.eval()


def with_adapter(family: str, tuning: Tuning, base: Any, trained: Any) -> Any:
    """Their model with our adapter, loaded by PEFT."""
    fields, arrays = adapter_files(EXCHANGES[family], tuning.config, base, trained)
    kind = {"LORA": peft.LoraConfig, "IA3": peft.IA3Config}[fields.pop("peft_type")]
    model = peft.get_peft_model(theirs(family, base), kind(**{**fields, "inference_mode": False}))
    state = {name: torch.tensor(x) for name, x in arrays.items()}
    found = peft.set_peft_model_state_dict(model, state)
    assert not found.unexpected_keys
    assert not [name for name in found.missing_keys if "lora" in name or "ia3" in name]
    return model


def answers(model: Any) -> Any:
    out = model(input_ids=torch.tensor(TOKENS, dtype=torch.long))
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


@pytest.mark.parametrize(
    ("family", "method"),
    [
        pytest.param(family, method, marks=[] if fast else [pytest.mark.slow])
        for family in ("bert", "esm2", "t5_encoder")
        for method in ("lora", "dora", "ia3")
        for fast in [(family, method) == ("bert", "dora")]
    ],
)
def test_twenty_steps_have_the_losses_of_peft(family: str, method: str) -> None:
    tuning = tuning_of(family, method, ("query", "value", "out", "wi", "wo"))
    params = perturbed(jax.jit(tuning.init)(jax.random.key(0)), 1)
    base, trained = tuning.split(params, jax.random.key(2))
    trained = perturbed(trained, 3, 0.02)
    model = with_adapter(family, tuning, base, trained)
    adam = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0}
    theirs = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **adam)
    expected = []
    for _ in range(20):
        loss = (answers(model) - torch.tensor(TARGET)).square().mean()
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        expected.append(loss.item())
    axes = tuning.axes[1]
    ours = build_optimizer(OptimizerConfig(weight_decay=0.0), optax.constant_schedule(1e-2), axes)
    objective = Squares(get_vocabulary(CONFIGS[family].vocabulary))
    step = TrainStep(tuning.model, objective, ours, axes, 0, tuning=tuning)
    state = TrainState(jnp.int32(0), trained, ours.init(trained), {}, {}, base)
    losses = []
    run = jax.jit(step)
    for _ in range(20):
        state, metrics = run(state, BATCH)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.99 * losses[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    plain = tuning.model.apply({"params": tuning.merge(base, state.params)}, BATCH)
    joined = tuning.model.apply({"params": tuning.join(base, state.params)}, BATCH)
    np.testing.assert_allclose(plain, joined, atol=1e-6 * np.abs(plain).max())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["albert", "esm2", "esmc", "gpt2", "t5"])
def test_peft_loads_what_is_exported_and_so_do_we(family: str, tmp_path: Path) -> None:
    """The export loads itself with PEFT and compares; the head is that of the language model."""
    export(zoo.loaded(family), tmp_path / "base")
    tune = {"method": "lora", "rank": 2, "targets": ["query", "value", "wo"]}
    run = {"steps": 2, "evaluate_every": 0, "batch_size": 8}
    sections = {"train": run, "schedule": {"learning_rate": 0.1}}
    config = RunConfig.from_dict(
        tree(family, **sections) | {"tune": tune, "init_from": str(tmp_path / "base")}
    )
    train(config, tmp_path / "run", load_source)
    assert "of the largest" in export_adapter(tmp_path / "run", tmp_path / "adapter")
    ours, theirs = load_model(tmp_path / "run"), load_model(tmp_path / "adapter")
    for one, other in zip(*(jax.tree.leaves(m.params) for m in (ours, theirs)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_a_model_without_linear_modules_is_exported_merged() -> None:
    tuning = tuning_of("xlnet", "lora", ("query",))
    base, trained = tuning.split(zoo.loaded("xlnet").params, jax.random.key(0))
    with pytest.raises(ProtlmError, match="no linear map there: export the merged model"):
        adapter_files(EXCHANGES["xlnet"], tuning.config, base, trained)
