"""A full layer x layer skip map by resuming from cached streams, in forwards of the same model.

    python benchmarks/skip_map.py [--layers 24] [--rounds 7]

The map has L(L-1)/2 layer evaluations, (L-1)/2 forwards; the limit that we hold ourselves to is
0.6 L forwards of wall time, norms and readouts included, with one compilation. The naive loop over
all skips, each a whole forward under one compiled layer program, is timed beside it.
"""

from __future__ import annotations

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax import models
from protlm_jax.evaluation.depth.measure import measure
from protlm_jax.models.build import example_batch
from protlm_jax.models.families.bert import bert_config
from protlm_jax.vocabularies import PROT_BERT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    layers = arguments.layers
    config = bert_config(
        d_model=256, num_layers=layers, num_heads=4, head_dim=64, d_ff=1024, max_positions=128
    )
    model = models.build(config)
    params = models.init_params(model, 0)
    rng = np.random.default_rng(0)
    batch = example_batch(config, 4, 128)
    targets = jnp.asarray(rng.choice(PROT_BERT.amino_acid_ids, (4, 128)), jnp.int32)
    hidden = jnp.asarray(rng.random((4, 128)) < 0.15)
    shown = jnp.where(hidden, PROT_BERT.mask_id, targets)
    batch = {**batch, "input_tokens": shown, "positions": jnp.tile(jnp.arange(128)[None], (4, 1))}
    amino_acids = jnp.asarray(PROT_BERT.amino_acid_ids)
    forward = jax.jit(lambda p, b: model.apply({"params": p}, b))

    @jax.jit
    def skipping(params, batch, program):
        h, context = model.apply({"params": params}, batch, method="embed")
        run = functools.partial(model.apply, {"params": params}, method="stack")
        out, taps = run(h, context, {"encoder": program})
        return out["encoder"], taps["encoder"]["stream"]

    def naive() -> list:
        full = models.LayerProgram.full(layers)
        return [skipping(params, batch, full.skip(layer)) for layer in range(layers)]

    contestants = {
        "one forward": lambda: forward(params, batch),
        "skip map": lambda: measure(
            model, params, batch, targets, hidden, amino_acids, stack="encoder"
        ),
        "naive loop": naive,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(arguments.rounds + 1):
        for name, run in contestants.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:12s} median {median:8.3f} s")
    forwards = medians["skip map"] / medians["one forward"]
    print(
        f"skip map with all other measurements = {forwards:.1f} forwards = "
        f"{forwards / layers:.2f} L (limit 0.60 L); naive loop = "
        f"{medians['naive loop'] / medians['one forward'] / layers:.2f} L; L = {layers}; "
        f"compilations of the map: {measure._cache_size()}"
    )


if __name__ == "__main__":
    main()
