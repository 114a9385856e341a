"""Our BERT train step against transformers + torch: same shapes, same weights' sizes, fp32.

    python benchmarks/train_step.py [--shape small|wide] [--rounds 15]

Both sides do what a training step does: masked batch in, loss, gradients, AdamW update. Rounds are
interleaved, because the machine's speed drifts; the ratio is between medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np

from protlm_jax import models, partitioning
from protlm_jax.config.run import OptimizerConfig, ScheduleConfig
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.flops import training_flops_per_token
from protlm_jax.objectives import build_objective
from protlm_jax.training import step as steps
from protlm_jax.training.optimizers import build_optimizer
from protlm_jax.training.schedules import build_schedule
from protlm_jax.training.state import compile_init, state_layout
from protlm_jax.vocabularies import PROT_BERT

SHAPES = {  # rows, length, d_model, layers, heads
    "small": (16, 256, 128, 4, 2),
    "wide": (8, 256, 512, 6, 8),
}


def ours(rows: int, length: int, config: models.ModelConfig, tokens: np.ndarray) -> Callable:
    """One step of the native loop on one device."""
    mesh = partitioning.make_mesh({"data": 1})
    model = models.build(config)
    axes = models.logical_axes(model)
    schedule = build_schedule(ScheduleConfig("constant", 1e-3), 1000)
    optimizer = build_optimizer(OptimizerConfig("adamw"), schedule, axes)
    _, layout = state_layout(model, optimizer, mesh)
    objective = build_objective("masked", PROT_BERT)
    sharding = partitioning.batch_sharding(mesh, rows)
    train = steps.TrainStep(model, objective, optimizer, axes, seed=0)
    compiled = steps.compile_step(train, mesh, layout, sharding)
    state = [compile_init(model, optimizer, layout)(jax.random.key(0))]
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    batch = {"input_tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": positions}

    def step() -> None:
        state[0], metrics = compiled(state[0], jax.device_put(batch, sharding))
        metrics["loss"].block_until_ready()

    return step


def theirs(config: models.ModelConfig, tokens: np.ndarray) -> Callable:
    """The same with transformers' BertForMaskedLM (its default attention) and torch's AdamW."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.d_ff,
            max_position_embeddings=config.max_positions,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ids = torch.tensor(tokens, dtype=torch.long)
    seen = torch.ones_like(ids)

    def step() -> None:
        chosen = torch.rand(ids.shape) < 0.15
        shown = torch.where(chosen, torch.tensor(PROT_BERT.mask_id), ids)
        labels = torch.where(chosen, ids, torch.tensor(-100))
        model(input_ids=shown, attention_mask=seen, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    rows, length, d_model, layers, heads = SHAPES[arguments.shape]
    config = bert_config(
        d_model=d_model,
        num_layers=layers,
        num_heads=heads,
        head_dim=d_model // heads,
        d_ff=4 * d_model,
        max_positions=length,
    )
    rng = np.random.default_rng(0)
    tokens = rng.choice(PROT_BERT.amino_acid_ids, (rows, length)).astype(np.int32)
    contestants = {
        "protlm_jax": ours(rows, length, config, tokens),
        "torch": theirs(config, tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(arguments.rounds + 2):
        for name, step in contestants.items():
            began = time.perf_counter()
            step()
            if turn >= 2:  # compilation and warm-up
                seconds[name].append(time.perf_counter() - began)
    flops = training_flops_per_token(config, length) * rows * length
    for name, values in seconds.items():
        median = float(np.median(values))
        print(
            f"{name:10s} median {1e3 * median:7.1f} ms (fastest {1e3 * min(values):7.1f})  "
            f"{rows * length / median:9,.0f} tokens/s  {flops / median / 1e9:6.1f} GFLOP/s"
        )
    ratio = np.median(seconds["torch"]) / np.median(seconds["protlm_jax"])
    print(f"speed of protlm_jax / torch: {ratio:.2f}  ({arguments.shape}: batch {rows} x {length}, "
          f"d_model {d_model}, {layers} layers, {heads} heads, fp32)")  # fmt: skip


if __name__ == "__main__":
    main()
