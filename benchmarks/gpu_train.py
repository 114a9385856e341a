"""A train step on one GPU in bfloat16: ours against transformers + torch.

    python benchmarks/gpu_train.py --shape esm2_650m            # or prot_t5_xl; needs a GPU
    python benchmarks/gpu_train.py --shape tiny                 # anywhere, in seconds

The bundled proteins, or token files that `protlm prepare` made (--prepared). Both sides keep
parameters and optimizer in float32, drop nothing, and do what a step does: tokens that lie on the
device, 15 % of residues hidden, loss, gradients, update. Ours packs proteins into rows and keeps
them apart. Theirs, SDPA and `torch.compile`, runs twice: over the same rows without any mask, which
is the fastest that it can be, and mixes proteins; and with one protein a row, padded and masked.

Each side has nearly half of the memory, and the rows per step that are fastest there of those that
fit, found by trying; then rounds alternate, and medians are compared. Tokens are those that are not
padding; model FLOPs are counted alike for all (`protlm_jax.models.flops`).

Needs jax, flax and optax; torch and transformers for the other side (--only protlm_jax without).
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from protlm_jax import models, partitioning
from protlm_jax.config.run import OptimizerConfig, ScheduleConfig
from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.errors import ProtlmError
from protlm_jax.models.attention_context import describe
from protlm_jax.models.families.esm2 import esm2_config
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.models.flops import training_flops_per_token
from protlm_jax.objectives import build_objective
from protlm_jax.process.platforms import expect_no_tpu
from protlm_jax.training import step as steps
from protlm_jax.training.optimizers import build_optimizer
from protlm_jax.training.progress import Throughput
from protlm_jax.training.schedules import build_schedule
from protlm_jax.training.state import compile_init, state_layout
from protlm_jax.vocabularies import get_vocabulary

Batch = dict[str, np.ndarray]
Run = Callable[[int], float]  # does so many steps, waits until they are done; the last loss
Maker = Callable[["Shape", Sequence[Batch], str], Run]

MIXED, PADDED = "torch, proteins mixed", "torch, a protein a row"
SHARE = 0.45  # of the GPU's memory, for each side
BATCHES = 4  # that a run goes through in turn
REMAT = {"protlm_jax": ("none", "minimal", "full"), "torch": ("none", "full")}
SMALL = {"d_model": 64, "num_layers": 2, "num_heads": 2, "head_dim": 32, "d_ff": 128}


@dataclass(frozen=True)
class Shape:
    """A model and its batches; `rows` are the rows per step that are tried."""

    config: models.ModelConfig
    data: DataConfig
    objective: str
    optimizer: str
    rows: tuple[int, ...]

    def batches(self, rows: int, *, pack: bool = True) -> list[Batch]:
        """A few batches of so many rows."""
        data, vocabulary = replace(self.data, pack=pack), get_vocabulary(self.config.vocabulary)
        made = open_batches(data, vocabulary, split="train", seed=0, batch_size=rows)
        return [next(made) for _ in range(BATCHES)]


SHAPES = {
    "esm2_650m": Shape(
        models.preset("esm2_650m"), DataConfig(length=1024), "masked", "adamw", (8, 16, 32, 64)
    ),
    "prot_t5_xl": Shape(
        models.preset("prot_t5_xl"),
        DataConfig(length=512, task="prott5"),
        *("denoising", "adafactor", (4, 8, 16, 32)),
    ),
    "tiny": Shape(esm2_config(**SMALL), DataConfig(length=128), "masked", "adamw", (2, 4)),
    "tiny_t5": Shape(
        t5_config(**SMALL, num_decoder_layers=2),
        DataConfig(length=128, task="prott5"),
        *("denoising", "adafactor", (2,)),
    ),
}


def tokens_of(batches: Sequence[Batch]) -> float:
    """Tokens of a step that are not padding; of an encoder-decoder, those of the encoder."""
    names = ("segment_ids", "encoder_segment_ids")
    return float(np.mean([np.sum(b[n] > 0) for b in batches for n in names if n in b]))


def ours(shape: Shape, batches: Sequence[Batch], remat: str) -> Run:
    """The train step of the native loop, on one device."""
    mesh = partitioning.make_mesh({"data": 1}, jax.devices()[:1])
    model = models.build(shape.config.replace(remat=remat))
    axes = models.logical_axes(model)
    schedule = build_schedule(ScheduleConfig("constant", 1e-4), 1000)
    optimizer = build_optimizer(OptimizerConfig(shape.optimizer), schedule, axes)
    rows = len(next(iter(batches[0].values())))
    _, layout = state_layout(model, optimizer, mesh, rows)
    objective = build_objective(shape.objective, get_vocabulary(shape.config.vocabulary))
    sharding = partitioning.batch_sharding(mesh, rows)
    train = steps.TrainStep(model, objective, optimizer, axes, seed=0)
    update = steps.compile_step(train, mesh, layout, sharding)
    state = [compile_init(model, optimizer, layout, rows)(jax.random.key(0))]
    here = [jax.device_put(batch, sharding) for batch in batches]

    def run(count: int) -> float:
        for index in range(count):
            state[0], metrics = update(state[0], here[index % len(here)])
        return float(metrics["loss"])

    return run


def theirs(shape: Shape, batches: Sequence[Batch], remat: str) -> Run:
    """The same of transformers + torch."""
    from gpu_train_torch import Peer

    return Peer(shape.config, shape.optimizer, remat).run(batches, masked=False)


def fastest(name: str, make: Maker, shape: Shape) -> tuple[int, str]:
    """Rows per step and what is recomputed, of all that fit, by tokens per second.

    Raises:
        ProtlmError: not even the fewest rows fit.
    """
    tried: dict[tuple[int, str], float] = {}
    for rows in shape.rows:
        batches = shape.batches(rows)
        for remat in REMAT[name]:
            seconds = attempt(make, shape, batches, remat)
            forget()
            speed = tokens_of(batches) / seconds if seconds else 0.0
            said = f"{speed:,.0f} tokens/s" if seconds else "too much memory"
            print(f"tried {name}, {rows} rows, recomputing {remat}: {said}", flush=True)
            if seconds:
                tried[rows, remat] = speed
                break  # recomputing more would be slower
        else:
            break
    if not tried:
        raise ProtlmError(f"{name} does not fit with {shape.rows[0]} rows in its share of memory")
    return max(tried, key=lambda setting: tried[setting])


def attempt(make: Maker, shape: Shape, batches: Sequence[Batch], remat: str) -> float | None:
    """Seconds per step, or None where memory does not suffice."""
    try:
        return timed(make(shape, batches, remat), 3, warm=2)
    except RuntimeError as error:  # both sides' own errors are of this kind
        if not any(said in str(error) for said in ("RESOURCE_EXHAUSTED", "out of memory")):
            raise
        return None


def timed(run: Run, count: int, warm: int = 0) -> float:
    """Seconds per step.

    Raises:
        ProtlmError: the loss is not finite.
    """
    if warm:
        run(warm)
    began = time.perf_counter()
    loss = run(count)
    if not np.isfinite(loss):
        raise ProtlmError(f"the loss is {loss}: such steps are not measured")
    return (time.perf_counter() - began) / count


def forget() -> None:
    """Gives memory back."""
    gc.collect()
    jax.clear_caches()
    if "gpu_train_torch" in sys.modules:
        sys.modules["gpu_train_torch"].forget()


def contestants(shape: Shape, names: Sequence[str]) -> dict[str, tuple[Run, float]]:
    """All that run, each as fast as it can be, with its tokens per step."""
    found: dict[str, tuple[Run, float]] = {}
    if "protlm_jax" in names:
        rows, remat = fastest("protlm_jax", ours, shape)
        batches = shape.batches(rows)
        found["protlm_jax"] = ours(shape, batches, remat), tokens_of(batches)
    if "torch" in names:
        from gpu_train_torch import Peer

        rows, remat = fastest("torch", theirs, shape)
        peer = Peer(shape.config, shape.optimizer, remat)
        batches, padded = shape.batches(rows), shape.batches(rows, pack=False)
        found[MIXED] = peer.run(batches, masked=False), tokens_of(batches)
        found[PADDED] = peer.run(padded, masked=True), tokens_of(padded)
    return found


def compare(shape: Shape, names: Sequence[str], rounds: int, count: int) -> dict[str, float]:
    """Prints and returns tokens per second, by the medians of alternating rounds."""
    running = contestants(shape, names)
    for run, _ in running.values():
        run(2)
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, (run, _) in running.items():
            seconds[name].append(timed(run, count))
    speeds = {n: tokens / float(np.median(seconds[n])) for n, (_, tokens) in running.items()}
    flops = training_flops_per_token(shape.config, shape.data.length)
    peak = Throughput(flops, jax.devices()[:1]).peak
    for name, speed in speeds.items():
        share = f"MFU {speed * flops / peak:.1%}" if peak else "MFU not known"
        print(f"{name:24s} {speed:12,.0f} tokens/s  {speed * flops / 1e12:8.2f} TFLOP/s  {share}")
    for name in (MIXED, PADDED):
        if {name, "protlm_jax"} <= set(speeds):
            print(f"speed of protlm_jax / {name}: {speeds['protlm_jax'] / speeds[name]:.2f}")
    return speeds


def say_what_this_is(shape: Shape) -> None:
    """Prints device, peak, versions and attention."""
    device = jax.devices()[0]
    peak = Throughput(1.0, [device]).peak
    bytes_limit = (device.memory_stats() or {}).get("bytes_limit")
    memory = f"{bytes_limit / 2**30:.1f} GiB for JAX" if bytes_limit else "memory not told"
    told = f"peak {peak / 1e12:,.1f} TFLOP/s in bf16" if peak else "peak not known"
    print(
        f"device: {device.device_kind} ({device.platform}), {memory}, {told}; jax {jax.__version__}"
    )
    if device.platform != "gpu":
        print("this is no GPU: the speeds say nothing about one")
    config, length = shape.config, shape.data.length
    print(
        f"model: {config.family}, {config.num_layers} layers, d_model {config.d_model}, rows of "
        f"{length} tokens, {config.dtype}, attention {describe(config, device.device_kind, length)}"
    )


def print_memory() -> None:
    """The most that each side took, where the device tells."""
    held = {"protlm_jax": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")}
    if "gpu_train_torch" in sys.modules:
        held["torch"] = sys.modules["gpu_train_torch"].peak_bytes()
    for name, count in held.items():
        print(f"peak memory of {name}: {f'{count / 2**30:.1f} GiB' if count else 'not told'}")


def start(platform: str | None, shape: str, names: Sequence[str]) -> None:
    """Finds the device and shares its memory out.

    Raises:
        ProtlmError: it is not there, or not for this shape, or torch does not see it.
    """
    share = SHARE if len(names) > 1 else 0.9
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(share))
    expect_no_tpu()
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    found = jax.default_backend()
    if platform == "gpu" and found != "gpu":
        raise ProtlmError(f"JAX finds no GPU, but {found}: is it JAX for CUDA?")
    if found != "gpu" and not shape.startswith("tiny"):
        raise ProtlmError(f"--shape {shape} is for a GPU, and JAX finds {found}: --shape tiny")
    if "torch" in names:
        from gpu_train_torch import gpu_is_there

        if gpu_is_there(share) != (found == "gpu"):
            raise ProtlmError(f"JAX finds {found}, and torch something else: --only protlm_jax")


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="esm2_650m")
    parser.add_argument("--platform", choices=("gpu", "cpu"), help="by default what JAX finds")
    parser.add_argument("--prepared", help="folder with token files instead of bundled proteins")
    parser.add_argument("--only", choices=("protlm_jax", "torch"))
    parser.add_argument("--rows", type=int, nargs="+", help="rows per step that are tried")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="steps of a round")
    args = parser.parse_args(arguments)
    names = [args.only] if args.only else ["protlm_jax", "torch"]
    start(args.platform, args.shape, names)
    shape = SHAPES[args.shape]
    config = shape.config.replace(dtype="bfloat16", dropout_rate=0.0)
    data = replace(shape.data, prepared=args.prepared)
    shape = replace(shape, config=config, data=data, rows=tuple(args.rows or shape.rows))
    say_what_this_is(shape)
    speeds = compare(shape, names, args.rounds, args.steps)
    print_memory()
    return speeds


if __name__ == "__main__":
    try:
        main()
    except ProtlmError as error:
        sys.exit(f"error: {error}")
