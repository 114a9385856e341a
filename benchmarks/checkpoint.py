"""Seconds to save and restore a checkpoint, with digests and without.

    python benchmarks/checkpoint.py [--parameters 420] [--rounds 5] [--peer CHECKOUT] [--folder DIR]

The state is that of a model of some millions of parameters (420 are ProtBert's) with Adam's two
moments, float32: 12 bytes each. A round saves it, waits until it is on the disk, and restores it,
once by each way; the ways are interleaved, because the machine's speed drifts, and ratios are
between medians. One way is this package; the other is this package without digests or, with --peer,
the package of another checkout. Each way is a process of its own, which is told when to begin.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from protlm_jax.process.platforms import expect_no_tpu

WORKER = """
import json, sys, time
from pathlib import Path
import jax
import jax.numpy as jnp
from protlm_jax.training import checkpoints as module

folder, millions, digests = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "digests"
if not digests:
    module.Checkpoints._seal = lambda self: None
layers = 10
shape = (layers, millions * 1000 // layers, 1000)
keys = jax.random.split(jax.random.key(0), 3)
state = {name: jax.random.normal(key, shape) for name, key in zip("pmv", keys)}
abstract = jax.eval_shape(lambda s: s, state)
checkpoints = module.Checkpoints(folder, every=1, keep=1)
for step, _ in enumerate(sys.stdin, start=1):
    began = time.perf_counter()
    checkpoints.save(step, state, b"data")
    checkpoints.wait()
    saved = time.perf_counter()
    restored, _ = checkpoints.restore(step, abstract)
    jax.block_until_ready(restored)
    ended = time.perf_counter()
    del restored
    print(json.dumps([saved - began, ended - saved]), flush=True)
checkpoints.close()
"""


class Way:
    """A process that saves and restores whenever it is told to."""

    def __init__(self, package: Path, folder: Path, millions: int, digests: bool) -> None:
        words = [str(folder), str(millions), "digests" if digests else "none"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(package)},
            cwd=package,
        )
        self.seconds: list[tuple[float, float]] = []

    def round(self) -> None:
        """Saves and restores once."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        save, restore = self.process.stdout.readline().strip("[]\n").split(",")
        self.seconds.append((float(save), float(restore)))

    def medians(self) -> tuple[float, float, float]:
        """Of saving, of restoring, and of both; the first round only warms up."""
        measured = self.seconds[1:]
        save, restore = (statistics.median(s[i] for s in measured) for i in (0, 1))
        return save, restore, statistics.median(map(sum, measured))

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parameters", type=int, default=420, help="millions")
    parser.add_argument("--rounds", type=int, default=5, help="that are measured, after one more")
    parser.add_argument("--peer", type=Path, help="another checkout of this package")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    arguments = parser.parse_args()
    expect_no_tpu()
    here = Path(__file__).absolute().parents[1]
    peer = (arguments.peer or here).absolute()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    ways = {
        "with digests": Way(here, folder / "with", arguments.parameters, True),
        "peer" if arguments.peer else "without digests": Way(
            peer, folder / "without", arguments.parameters, bool(arguments.peer)
        ),
    }
    try:
        for number in range(arguments.rounds + 1):
            for way in list(ways.values())[:: 1 if number % 2 else -1]:
                way.round()
        gigabytes = arguments.parameters * 12e-3
        print(f"{arguments.parameters} M parameters, {gigabytes:.1f} GB, {arguments.rounds} rounds")
        for name, way in ways.items():
            save, restore, both = way.medians()
            print(f"{name:16} save {save:6.2f} s  restore {restore:6.2f} s  both {both:6.2f} s")
        first, second = (way.medians()[2] for way in ways.values())
        print(f"ratio {first / second:.3f}")
    finally:
        for way in ways.values():
            way.end()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
