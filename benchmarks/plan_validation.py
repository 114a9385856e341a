"""Does a plan say how fast a step is? Published runs on TPU v3, planned and compared.

    python benchmarks/plan_validation.py [--folder runs/plans] [NAME ...] > table.md

NAME is a run; all by default, a minute or more each. What is found is kept as JSON in the folder,
and not compiled again. Nothing in `protlm_jax.planning` was chosen to match these runs.

The programs are ours, of the same shape: FSDP, over all cores for the GPT-2s and over as many as in
our ProtT5-XXL for the T5s; float32 parameters, products in bfloat16, and activations computed again
in the backward pass.

Levanter 1.0 (Hall et al. 2023) publishes the MFU of GPT-2s of five sizes with FSDP on a v3-256. Its
repository at the time holds configs of 345M, 750M, 1.4B and 6.7B, whose widths, lengths and lack of
dropout stand here, and a default of 512 rows. Inferred: 13B, which has no config, as GPT-3's 13B
with the rows of 6.7B; and the rows of the three small ones, whose configs ask for more rows per
core than 512 rows have.

T5-11B with Mesh TensorFlow, in examples per second (text-to-text-transfer-transformer, issue 282):
1,100 on a v3-1024 and 381 on a v3-512, inputs of 512 and targets of 114 tokens; 86 on a v3-128 with
512 and 512. Inferred: rows. Of the v3-512, 1,000 steps took 5,724 seconds, from which 2,048 rows
follow (then it made 358 examples per second over all); 2,048 are those of the T5 paper, too; of the
v3-128 nothing is said, and the 128 rows of T5's fine-tuning are taken.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from protlm_jax.config.files import load_config
from protlm_jax.config.run import RunConfig
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.families.gpt2 import gpt2_config
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.models.flops import training_flops_per_token
from protlm_jax.objectives.base import Batch
from protlm_jax.objectives.seq2seq import DenoisingObjective
from protlm_jax.planning.compile import UNREAD, abstract_batch, how_fast
from protlm_jax.planning.topologies import topology
from protlm_jax.storage.files import write_atomically
from protlm_jax.training.assembly import assemble
from protlm_jax.training.hardware import CHIPS

BF16 = {"dtype": "bfloat16", "remat": "full", "dropout_rate": 0.0}


@dataclasses.dataclass(frozen=True)
class Run:
    """A published run.

    Attributes:
        pod: where it ran.
        model: of the same shape.
        length: tokens per row.
        rows: per step.
        mfu, hfu: as published; of the T5s MFU from `examples`, with our count of FLOPs.
        examples: rows per second, as published.
        targets: tokens per row of the decoder.
        fsdp: cores among which the state is split.
        tensor: cores among which heads and MLP are split.
    """

    pod: str
    model: ModelConfig
    length: int
    rows: int
    mfu: float = 0.0
    hfu: float = 0.0
    examples: float = 0.0
    targets: int = 0
    fsdp: int = -1
    tensor: int = 1


def gpt2(layers: int, width: int, heads: int, length: int) -> ModelConfig:
    return gpt2_config(
        **BF16, vocab_size=50_304, num_layers=layers, d_model=width, num_heads=heads,
        head_dim=width // heads, d_ff=4 * width, max_positions=length,
    )  # fmt: skip


T5_11B = t5_config(
    **BF16 | {"dropout_rate": 0.1}, vocab_size=32_128, d_model=1024, num_layers=24,
    num_decoder_layers=24, num_heads=128, head_dim=128, d_ff=65_536,
)  # fmt: skip
V3_128, V3_256, V3_512, V3_1024 = "v3:8x8", "v3:8x16", "v3:16x16", "v3:16x32"
RUNS = {
    "GPT-2 345M": Run(V3_256, gpt2(24, 1024, 16, 1024), 1024, 512, 0.351, 0.514),
    "GPT-2 750M": Run(V3_256, gpt2(36, 1280, 20, 1024), 1024, 512, 0.389, 0.547),
    "GPT-2 1.4B": Run(V3_256, gpt2(48, 1536, 24, 1024), 1024, 512, 0.417, 0.556),
    "GPT-2 6.7B": Run(V3_256, gpt2(32, 4096, 32, 2048), 2048, 1024, 0.473, 0.715),
    "GPT-2 13B": Run(V3_256, gpt2(40, 5120, 40, 2048), 2048, 1024, 0.544, 0.771),
    "T5-11B 512/114, v3-1024": Run(V3_1024, T5_11B, 512, 2048, examples=1100, targets=114, fsdp=64),
    "T5-11B 512/114, v3-512": Run(V3_512, T5_11B, 512, 2048, examples=381, targets=114, fsdp=64),
    "T5-11B 512/512, v3-128": Run(V3_128, T5_11B, 512, 128, examples=86, targets=512, tensor=8),
}
FIELDS = (
    "executed_flops",
    "hbm_bytes",
    "seconds",
    "roofline_mfu",
    "step_seconds",
    "spent",
    "mfu",
    "hfu",
)
HEADER = (
    "run", "pod", "rows x tokens", "step", "compute, hbm, ici, vector", "roofline MFU",
    "HFU: predicted, published", "MFU: predicted", "published", "ratio",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", choices=[*RUNS, []])
    parser.add_argument("--folder", type=Path, default=Path("runs/plans"))
    arguments = parser.parse_args()
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for name in arguments.names or RUNS:
        file = arguments.folder / f"published-{name.replace(' ', '-').replace('/', '-')}.json"
        if not file.exists():
            print(f"compiling {name} for {RUNS[name].pod}", file=sys.stderr, flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(planned(RUNS[name]), indent=1) + "\n")
        print(row(name, RUNS[name], json.loads(file.read_text())), flush=True)


class Targets(DenoisingObjective):
    """The loss of targets that are shorter than inputs: what is hidden is not looked for."""

    def hidden(self, batch: Batch) -> jax.Array:
        return batch["decoder_loss_weights"] > 0


def planned(run: Run) -> dict[str, Any]:
    """What a plan says of a run's speed."""
    pod, config = topology(run.pod), config_of(run)
    parts = assemble(config, pod.devices)
    batch = abstract_batch(config)
    if run.targets:
        short = jax.ShapeDtypeStruct((run.rows, run.targets), jnp.int32)
        batch |= {name: short for name in batch if name.startswith("decoder")}
        step = dataclasses.replace(parts.step, objective=Targets(parts.objective.vocabulary))
        parts = dataclasses.replace(parts, step=step)
    text = parts.update.lower(parts.abstract, batch).compile().as_text()
    tokens = config.train.batch_size * config.data.length
    flops = model_flops(run)
    found = how_fast(text, parts.mesh, pod.generation, tokens, config.train.steps, flops)
    return {name: found[name] for name in FIELDS}


def config_of(run: Run) -> RunConfig:
    """Our run of the same shape."""
    t5 = run.model.family == "t5"
    config = load_config(
        f"configs/tiny.py:{run.model.family}",
        [
            UNREAD,
            f"data.length={run.length}",
            f"model.max_positions={run.model.max_positions}",
            f"train.batch_size={run.rows}",
            f"mesh.data={1 if run.fsdp == -1 else -1}",
            f"mesh.fsdp={run.fsdp}",
            f"mesh.tensor={run.tensor}",
            f"optimizer.name={'adafactor' if t5 else 'adamw'}",
        ],
    )
    return dataclasses.replace(config, model=run.model)


def model_flops(run: Run) -> int:
    """Of one step: forward and backward, nothing computed again; a multiply-add counted as two."""
    if run.targets in (0, run.length):
        return run.rows * run.length * training_flops_per_token(run.model, run.length)
    c = run.model
    inner = c.num_heads * c.head_dim

    def attention(queries: int, keys: int) -> int:
        return 4 * inner * (c.d_model * (queries + keys) + queries * keys)

    def mlp(tokens: int) -> int:
        return 4 * c.d_model * c.d_ff * tokens

    source, target = run.length, run.targets
    encoder = attention(source, source) + mlp(source)
    decoder = attention(target, target) + attention(target, source) + mlp(target)
    head = 2 * c.d_model * c.vocab_size * target
    return 3 * run.rows * (c.num_layers * encoder + c.num_decoder_layers * decoder + head)


def row(name: str, run: Run, plan: dict[str, Any]) -> str:
    """A line of the table."""
    devices = len(topology(run.pod).devices)
    peak = CHIPS["v3"].peak / 2 * devices
    published = run.mfu or run.examples * model_flops(run) / run.rows / peak
    step, spent = plan["step_seconds"], plan["spent"]
    shares = (f"{spent.get(k, 0) / step:.0%}" for k in ("compute", "hbm", "ici", "vector"))
    tokens = f"{run.length:,}" + (f"/{run.targets}" if run.targets else "")
    measured = f"{run.hfu:.1%}" if run.hfu else "-"
    cells = (
        name, run.pod, f"{run.rows:,} x {tokens}", f"{step:.2f} s", ", ".join(shares),
        f"{plan['roofline_mfu']:.1%}", f"{plan['hfu']:.1%}, {measured}", f"{plan['mfu']:.1%}",
        f"{published:.1%}", f"{plan['mfu'] / published:.2f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
