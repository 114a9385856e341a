"""What probing every layer costs beside probing one, the frozen model's passes included.

    python benchmarks/probe.py [--model FOLDER] [--proteins 2500] [--rounds 3] [--head linear]
                               [--budget BYTES] [--cpu_time]

Q3 and Q8 of the bundled secondary structure are read by heads of one kind from the last layer, and
from all layers at once: from sequences to trained heads with their validation scores, compilations
left out (a first round pays for them). Rounds are interleaved, because the
machine's speed drifts; the ratio is between medians. --budget says how many bytes of features may
stay in memory: with 0, the model runs again in every epoch, and how often it ran is printed.

--model takes a Hugging Face folder; without it, weights of the published ESM-2 8M's shape are
random, which takes the same time for an epoch, if not the same number of epochs.

On a machine that others use, compare processor time on one core:

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/probe.py --cpu_time
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protlm_jax import models
from protlm_jax.evaluation import probe_data
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein
from protlm_jax.evaluation.probes import heads
from protlm_jax.evaluation.probes.features import (
    FeatureSource,
    ModelReader,
    Store,
    memory_budget,
    model_reader,
    shares,
)
from protlm_jax.evaluation.probes.trained import TrainedHeads
from protlm_jax.evaluation.probes.training import train
from protlm_jax.huggingface import load_model
from protlm_jax.models import LoadedModel
from protlm_jax.vocabularies import get_vocabulary

Splits = dict[str, Sequence[LabelledProtein]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="Hugging Face folder; random if absent")
    parser.add_argument("--proteins", type=int, default=2500, help="learned from")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--head", choices=heads.NAMES[:2], default="linear")
    parser.add_argument("--budget", type=int, default=memory_budget(), help="bytes of features")
    parser.add_argument("--cpu_time", action="store_true", help="processor instead of wall time")
    arguments = parser.parse_args()
    loaded = load_model(arguments.model) if arguments.model else random()
    benchmark = probe_data.load("secondary_structure")
    splits: Splits = {
        name: probe_data.subset(benchmark.splits[name](), count, 0)
        for name, count in (("train", arguments.proteins), ("valid", arguments.proteins // 10))
    }
    number = loaded.config.num_layers
    ways = {"the last layer": (number,), f"all {number + 1} layers": tuple(range(number + 1))}
    lengths = [len(p.sequence) for members in splits.values() for p in members]
    readers = {w: model_reader(loaded, c, ("residues",), lengths, None) for w, c in ways.items()}
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(arguments.rounds + 1):
        for way, reader in readers.items():
            began = clock()
            trained, store = probe(reader, benchmark, splits, arguments.head, arguments.budget)
            seconds[way].append(clock() - began)
            if round_ == 0:
                tell(way, trained, store)
    one, every = (float(np.median(values[1:])) for values in seconds.values())
    residues = sum(lengths)
    for way, values in seconds.items():
        median = float(np.median(values[1:]))
        print(f"{way:15s} median {median:7.2f} s, {1e6 * median / residues:6.1f} us per residue")
    print(f"all layers take {every / one:.2f} times as long as one")


def random() -> LoadedModel:
    config = models.preset("esm2_8m")
    model = models.build(config)
    vocabulary = get_vocabulary(config.vocabulary)
    return LoadedModel(model, models.init_params(model, 0), vocabulary, "random ESM-2 8M")


def probe(
    reader: ModelReader, benchmark: Benchmark, splits: Splits, head: str, budget: int
) -> tuple[TrainedHeads, Store]:
    """From sequences to heads, and the store of the training proteins."""
    stores = {name: Store(reader, splits[name], 0, 0) for name in ("train", "valid")}
    *kept, hold = shares(stores["train"].total_bytes, stores["valid"].total_bytes, budget)
    for store, keep in zip(stores.values(), kept, strict=True):
        store.keep, store.hold = keep, hold
    sources = [
        FeatureSource(store, benchmark.targets, benchmark.level, "residues")
        for store in stores.values()
    ]
    return train(head, benchmark.targets, *sources), stores["train"]


def tell(way: str, trained: TrainedHeads, store: Store) -> None:
    print(
        f"{way}: {len(store.proteins):,} training proteins, {int(store.lengths.sum()):,} residues; "
        f"{int(trained.epochs.max())} epochs, {store.passes:.2f} passes of the model; Q3 on "
        f"validation {100 * trained.valid['q3'].mean(0).max():.1f} % at best"
    )


if __name__ == "__main__":
    main()
