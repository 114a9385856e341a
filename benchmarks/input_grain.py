"""Packed rows from our own plan beside `grain`'s packing of the same proteins.

    pip install grain
    python benchmarks/input_grain.py --seconds 4 --rounds 3

Both read the bundled proteins (or --fasta), shuffled, in rows of 512 tokens and batches of 64.
Reported: non-padding tokens per second of processor time, share of the rows that is filled, and
the seconds from an iterator's state to its next batch. `grain` keeps open rows ("bins") and places
each protein in the first or the best of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
from grain import experimental

from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.data.splits import load_records
from protlm_jax.evaluation.tables import Table
from protlm_jax.vocabularies import PROT_BERT

LENGTH, BATCH = 512, 64
BINS = (64, 512)


def ours(config: DataConfig) -> Iterator[dict[str, np.ndarray]]:
    """Batches of our native pipeline."""
    return open_batches(config, PROT_BERT, split="train", seed=0, batch_size=BATCH)


def packed_by_grain(
    proteins: list[np.ndarray], packer: Callable[..., Any], bins: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of grain's packer over the same tokens."""
    dataset = grain.MapDataset.source(proteins).seed(0).shuffle().repeat(None)
    rows = dataset.map(lambda ids: {"input": ids[:LENGTH]}).to_iter_dataset()
    packed = packer(rows, length_struct={"input": LENGTH}, num_packing_bins=bins)
    return iter(packed.batch(BATCH))


def speed(batches: Iterator[dict[str, np.ndarray]], seconds: float) -> tuple[float, float]:
    """Million tokens per second of processor time, and the share of the rows that is filled."""
    tokens = places = 0
    began = time.process_time()
    while (taken := time.process_time() - began) < seconds:
        batch = next(batches)
        segments = batch["segment_ids" if "segment_ids" in batch else "input_segment_ids"]
        tokens += int(np.count_nonzero(segments))
        places += segments.size
    return tokens / taken / 1e6, tokens / places


def restart(make: Callable[[], Any]) -> float:
    """Seconds of processor time from a state to the next batch, which is checked."""
    first = make()
    for _ in range(50):
        next(first)
    state = first.state() if hasattr(first, "state") else first.get_state()
    expected, again = next(first), make()
    began = time.process_time()
    (again.restore if hasattr(again, "restore") else again.set_state)(state)
    batch = next(again)
    taken = time.process_time() - began
    assert all(np.array_equal(batch[name], expected[name]) for name in batch)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fasta", type=Path, help="default: the bundled proteins")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    config = DataConfig(fasta=arguments.fasta and str(arguments.fasta), length=LENGTH)
    records = load_records(config, "train")
    proteins = [PROT_BERT.encode(record.sequence) for record in records]
    makers: dict[str, Callable[[], Any]] = {"protlm_jax": lambda: ours(config)}
    for name in ("FirstFitPackIterDataset", "BestFitPackIterDataset"):
        packer = getattr(experimental, name)
        for bins in BINS:
            makers[f"grain {name}, {bins} bins"] = lambda packer=packer, bins=bins: packed_by_grain(
                proteins, packer, bins
            )
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
    iterators = {name: make() for name, make in makers.items()}
    for _ in range(arguments.rounds):
        for name, batches in iterators.items():
            next(batches)
            found[name].append(speed(batches, arguments.seconds))
    rows = []
    base = statistics.median(rate for rate, _ in found["protlm_jax"])
    for name, measured in found.items():
        rate = statistics.median(rate for rate, _ in measured)
        rows.append(
            {
                "": name,
                "million tokens/s": rate,
                "ours / this": base / rate,
                "filled": statistics.median(share for _, share in measured),
                "restart, s": restart(makers[name]),
            }
        )
    print(f"grain {grain.__version__}, {len(proteins):,} proteins")
    print(Table.of(rows).text())


if __name__ == "__main__":
    main()
