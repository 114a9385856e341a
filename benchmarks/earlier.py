"""This checkout beside an earlier one, in interleaved rounds of processes of their own.

    git worktree add /tmp/earlier c732700
    python benchmarks/earlier.py --earlier /tmp/earlier --fasta uniprot2014_nr50.fasta.xz --rounds 5

Reported are medians, and ours / earlier: `protlm prepare --tokens` by one and by two workers
(seconds of processor time of all processes), tokens per second of processor time that token files
give (rows of 512, batches of 128), and `benchmarks/depth.py`'s skip map on one core.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MAIN = [sys.executable, "-c", "import sys; from protlm_jax.cli import main; sys.exit(main())"]
INPUT = """
import sys, time
from dataclasses import replace
import numpy as np
from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.vocabularies import PROT_BERT, PROT_T5
config = DataConfig(prepared=sys.argv[1], length=512)
for task, words in (("tokens", PROT_BERT), ("prott5", PROT_T5), ("stream", PROT_BERT)):
    task_config = replace(config, task=task)
    batches = open_batches(task_config, words, split="train", seed=0, batch_size=128)
    for _ in range(8):
        next(batches)
    began, tokens = time.process_time(), 0
    while (passed := time.process_time() - began) < 1.5:
        batch = next(batches)
        ids = batch["segment_ids" if "segment_ids" in batch else "encoder_segment_ids"]
        tokens += int(np.count_nonzero(ids))
    print(f"input {task}, million tokens/s: {tokens / passed / 1e6}")
"""
DEPTH = "benchmarks/depth.py --cpu_time --shape small --layers 12 --rounds 3 --no_torch"


def run(tree: Path, command: list[str], **settings: str) -> tuple[str, float]:
    """What a command prints in a checkout, and its seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, cwd=tree, text=True, check=False, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(tree)} | settings,
    )  # fmt: skip
    if done.returncode not in (0, 3):  # 3: some records were left out
        raise SystemExit(done.returncode)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, sum(after[:2]) - sum(before[:2])


def measured(tree: Path, fasta: Path, folder: Path) -> dict[str, float]:
    """One round of one checkout."""
    found = {}
    for workers in ("1", "2"):
        shutil.rmtree(folder, ignore_errors=True)
        words = ["prepare", "--dataset", "fasta", "--tokens", "--bad_records", "drop"]
        words += ["--input", str(fasta), "--output", str(folder), "--workers", workers]
        found[f"prepare, {workers} workers, s"] = run(tree, [*MAIN, *words])[1]
    text, _ = run(tree, [sys.executable, "-c", INPUT, str(folder)])
    found |= {name: float(value) for name, value in re.findall(r"(input .*): (.*)", text)}
    one_core = ["taskset", "-c", "0", sys.executable]
    text, _ = run(tree, [*one_core, *DEPTH.split()], OMP_NUM_THREADS="1")
    (seconds,) = re.findall(r"skip map +median +([0-9.]+) s", text)
    return found | {"skip map, s": float(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--earlier", type=Path, required=True, help="a checkout")
    parser.add_argument("--fasta", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    trees = [arguments.earlier.resolve(), Path(__file__).resolve().parents[1]]
    rounds: list[list[dict[str, float]]] = [[], []]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for own, tree in zip(rounds, trees, strict=True):
                own.append(measured(tree, arguments.fasta.resolve(), Path(folder) / "prepared"))
    for name in rounds[0][0]:
        earlier, ours = (statistics.median(one[name] for one in own) for own in rounds)
        print(f"{name:<40} {earlier:8.2f} {ours:8.2f}   {ours / earlier:.3f}")


if __name__ == "__main__":
    main()
