"""Depth measurements in forwards of the same model, and against hooks in PyTorch.

    python benchmarks/depth.py [--shape small] [--layers 24] [--family esm2] [--rounds 5]

A full map of layer skips has L(L-1)/2 layer evaluations, (L-1)/2 forwards; the limit that we hold
ourselves to is 0.6 L forwards of wall time for it, and 2.5 L for all default measurements, each
with one compilation. Beside it, on the same weights, batch and machine: transformers with a hook
that lets a block's output be its input, a whole forward for each skipped layer, which is what hook
libraries do, with effects on later layers and on the answer; nnsight where it is installed.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax import models
from protlm_jax.evaluation.depth.batches import DepthBatch
from protlm_jax.evaluation.depth.metrics import DEFAULT, forwards, measure, why_not
from protlm_jax.evaluation.depth.sweep import Shown, compiled
from protlm_jax.huggingface.convert import EXCHANGES, tensors
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.families.esm2 import esm2_config
from protlm_jax.vocabularies import get_vocabulary

SHAPES = {  # d_model, heads, rows, tokens in a row
    "tiny": (32, 2, 2, 32),
    "small": (256, 4, 4, 128),
    "esm2_8m": (320, 20, 8, 256),
    "esm2_150m": (640, 20, 16, 512),
    "esm2_650m": (1280, 20, 16, 512),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--family", choices=("bert", "esm2"), default="esm2")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no_torch", action="store_true")
    parser.add_argument("--by_metric", action="store_true", help="each default metric alone, too")
    parser.add_argument(
        "--cpu_time", action="store_true",
        help="processor seconds of this process: on a machine that others use, pinned to one core",
    )  # fmt: skip
    arguments = parser.parse_args()
    layers = arguments.layers
    model, params, batch, amino_acids = prepare(arguments.family, arguments.shape, layers)
    positions = batch.positions("asked", model.readouts[0])
    forward = jax.jit(lambda p, b: model.apply({"params": p}, b))
    defined = tuple(n for n in DEFAULT if not why_not(n, model, "encoder", layers))
    features, true = (jax.tree.map(jnp.asarray, x) for x in (batch.features, batch.true))

    def ours(*metrics: str) -> Callable[[], Any]:
        fixed, shown = (("metrics", metrics), ("points", 128)), (features, true, positions)
        rest = (params, Shown(*shown, amino_acids), ())
        return lambda: compiled(measure, fixed, model, "encoder", *rest)

    contestants: dict[str, Callable[[], Any]] = {
        "one forward": lambda: forward(params, features),
        "skip map": ours("skips"),
        "all default": ours(*defined),
    }
    if arguments.by_metric:
        contestants |= {name: ours(name) for name in defined}
    if not arguments.no_torch:
        contestants |= hooked(model, params, batch, layers)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    medians = timed(contestants, arguments.rounds, clock)
    one = medians["one forward"]
    limits = {"skip map": " (limit 0.6 L)", "all default": " (limit 2.5 L)"}
    for name in ("skip map", "all default", *(defined if arguments.by_metric else ())):
        share = medians[name] / one
        limit = limits.get(name, "")
        print(f"{name}: {share:.1f} forwards = {share / layers:.2f} L{limit}, L = {layers}")
    print(f"all default by count: {forwards(defined, layers, 2) / layers:.2f} L")
    for name in ("torch hooks", "nnsight"):
        if name in medians:
            print(f"skip map, {name} / ours: {medians[name] / medians['skip map']:.2f}")
    if "torch forward" in medians:
        print(f"one forward, torch / ours: {medians['torch forward'] / one:.2f}")
    print(f"{jax.default_backend()}, {arguments}, compilations {compiled._cache_size()}")


def prepare(family: str, shape: str, layers: int) -> tuple[Any, Any, DepthBatch, jax.Array]:
    """A model with random weights, and a batch of random residues, 15 % of them hidden."""
    width, heads, rows, length = SHAPES[shape]
    sizes = {
        "d_model": width, "num_layers": layers, "num_heads": heads, "head_dim": width // heads,
        "d_ff": 4 * width,
    }  # fmt: skip
    config = (
        esm2_config(**sizes) if family == "esm2" else bert_config(**sizes, max_positions=length)
    )
    model = models.build(config)
    vocabulary = get_vocabulary(config.vocabulary)
    amino_acids = np.asarray(vocabulary.amino_acid_ids)
    rng = np.random.default_rng(0)
    true = rng.choice(amino_acids, (rows, length)).astype(np.int32)
    hidden = rng.random(true.shape) < 0.15
    everywhere = np.ones_like(true)
    features = {
        "input_tokens": np.where(hidden, vocabulary.hiding_id, true).astype(np.int32),
        "segment_ids": everywhere,
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    }
    protein = np.tile(np.arange(rows, dtype=np.int32)[:, None], (1, length)) % 8
    asked = DepthBatch(features, true, hidden, everywhere > 0, protein, list(range(rows)))
    return model, models.init_params(model, 0), asked, jnp.asarray(amino_acids)


def hooked(model: Any, params: Any, batch: DepthBatch, layers: int) -> dict[str, Callable[[], Any]]:
    """The same skip map with hooks: effects on later layers, on the answer, mean and largest."""
    import torch
    import transformers

    config, exchange = model.config, EXCHANGES[model.config.family]
    theirs = transformers.AutoConfig.for_model(exchange.model_type, **exchange.to_config(config))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = getattr(transformers, exchange.architecture)(theirs).eval()
    state = {name: torch.tensor(array) for name, array in tensors(exchange, params)}
    network.load_state_dict(state, strict=False)
    network.tie_weights()
    network = network.to(device)
    unhooked = copy.deepcopy(network)
    blocks = getattr(network, network.base_model_prefix).encoder.layer
    tokens = torch.tensor(batch.features["input_tokens"], device=device).long()
    hidden = torch.tensor(batch.hidden, device=device)
    added: list[Any] = []
    state = {"skip": -1}

    def watch(index: int, module: Any, args: Any, out: Any) -> Any:
        result = args[0] if state["skip"] == index else out
        added.append((result - args[0])[hidden])
        return result

    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda m, a, o, i=index: watch(i, m, a, o))

    @torch.no_grad()
    def run(skip: int) -> tuple[Any, Any]:
        added.clear()
        state["skip"] = skip
        logits = network(input_ids=tokens).logits[hidden][:, 4:24]
        return torch.stack(added), torch.log_softmax(logits, -1)

    def skip_map() -> list[Any]:
        clean, p = run(-1)
        found = []
        for skip in range(layers):
            other, q = run(skip)
            ratio = (clean - other).norm(dim=-1) / clean.norm(dim=-1).clamp(min=1e-6)
            l2, kl = (q.exp() - p.exp()).norm(dim=-1), (q.exp() * (q - p)).sum(-1)
            found.append((ratio.mean(-1), ratio.amax(-1), l2.max(), kl.mean()))
        return [tuple(x.cpu() for x in row) for row in found]

    contestants = {"torch forward": lambda: run(-1)[1].cpu(), "torch hooks": skip_map}
    return contestants | _nnsight(unhooked, tokens, hidden, layers)


def _nnsight(network: Any, tokens: Any, hidden: Any, layers: int) -> dict[str, Any]:
    """The same through nnsight, where it is installed: a trace for each skipped layer."""
    try:
        from nnsight import NNsight
    except ImportError:
        return {}
    import torch

    wrapped = NNsight(network)
    envoys = getattr(wrapped, network.base_model_prefix).encoder.layer

    @torch.no_grad()
    def run(skip: int) -> tuple[Any, Any]:
        with wrapped.trace(input_ids=tokens):
            added = []
            for index, layer in enumerate(envoys):  # in the order in which they run
                before = layer.input
                if index == skip:
                    layer.output = before
                added.append((layer.output - before)[hidden])
            stacked = torch.stack(added).save()
            answer = torch.log_softmax(wrapped.output.logits[hidden][:, 4:24], -1).save()
        return stacked, answer

    def skip_map() -> list[Any]:
        clean, p = run(-1)
        found = []
        for skip in range(layers):
            other, q = run(skip)
            ratio = (clean - other).norm(dim=-1) / clean.norm(dim=-1).clamp(min=1e-6)
            found.append((ratio.mean(-1).cpu(), (q.exp() - p.exp()).norm(dim=-1).max().cpu()))
        return found

    return {"nnsight": skip_map}


def timed(
    contestants: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of interleaved rounds, the first of which is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            began = clock()
            jax.block_until_ready(run())
            if turn:
                seconds[name].append(clock() - began)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:14s} median {median:9.4f} s")
    return medians


if __name__ == "__main__":
    main()
