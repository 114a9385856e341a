"""Seconds to save and restore a checkpoint, with digests and without.

    python benchmarks/checkpoint.py [--parameters 420] [--rounds 5] [--peer CHECKOUT] [--folder DIR]

The state is that of a model of some millions of parameters (420 are ProtBert's) with Adam's two
moments, float32: 12 bytes each. A round saves it, waits until it is on the disk, and restores it,
once by each way; the ways are interleaved, because the machine's speed drifts, and ratios are
between medians. One way is this package; the other is this package without digests or, with --peer,
the package of another checkout. Each measurement is a process of its own, which ends before the
next one starts: the state fits into the memory once or twice, not more often. It first saves and
restores a state of a hundredth of the size, to warm up. Processor time is measured, too: where
others use the machine, seconds vary by more than what is compared.
"""

from __future__ import annotations

import argparse
import json
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
from protlm_jax.training import checkpoints as module

folder, millions, digests = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "digests"
if not digests:
    module.Checkpoints._seal = lambda self: None
layers = 10
for name, size in ("small", millions / 100), ("whole", millions):
    shape = (layers, int(size * 1000) // layers, 1000)
    state = {k: jax.random.normal(jax.random.key(i), shape) for i, k in enumerate("pmv")}
    jax.block_until_ready(state)
    abstract = jax.eval_shape(lambda s: s, state)
    checkpoints = module.Checkpoints(folder / name, every=1, keep=1)
    began, worked = time.perf_counter(), time.process_time()
    checkpoints.save(1, state, b"data")
    checkpoints.wait()
    saved = time.perf_counter() - began
    del state
    began = time.perf_counter()
    jax.block_until_ready(checkpoints.restore(1, abstract)[0])
    restored, worked = time.perf_counter() - began, time.process_time() - worked
    checkpoints.close()
print(json.dumps([saved, restored, saved + restored, worked]))
"""


def measure(package: Path, folder: Path, millions: float, digests: bool) -> list[float]:
    """Seconds of saving, of restoring, of both, and of the processor for both."""
    words = [str(folder), str(millions), "digests" if digests else "none"]
    done = subprocess.run(
        [sys.executable, "-c", WORKER, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(package)},
        cwd=package,
        check=True,
    )
    shutil.rmtree(folder)
    return [float(number) for number in json.loads(done.stdout.splitlines()[-1])]


def line(name: str, seconds: list[float]) -> str:
    save, restore, both, worked = (f"{number:6.2f} s" for number in seconds)
    return f"{name:16} save {save}  restore {restore}  both {both}  processor {worked}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parameters", type=float, default=420, help="millions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", type=Path, help="another checkout of this package")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    arguments = parser.parse_args()
    expect_no_tpu()
    here = Path(__file__).absolute().parents[1]
    other = "peer" if arguments.peer else "without digests"
    ways = {
        "with digests": (here, True),
        other: ((arguments.peer or here).absolute(), bool(arguments.peer)),
    }
    measured: dict[str, list[list[float]]] = {name: [] for name in ways}
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        for number in range(arguments.rounds):
            for name in list(ways)[:: 1 if number % 2 else -1]:
                package, digests = ways[name]
                found = measure(package, folder / "state", arguments.parameters, digests)
                measured[name].append(found)
                print(line(name, found), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    gigabytes = arguments.parameters * 12e-3
    print(f"{arguments.parameters:g} M parameters, {gigabytes:.1f} GB, medians:")
    medians = {
        name: [statistics.median(m) for m in zip(*measured[name], strict=True)] for name in ways
    }
    for name, seconds in medians.items():
        print(line(name, seconds))
    ours, others = medians.values()
    print(f"ratio {ours[2] / others[2]:.3f}, of processor time {ours[3] / others[3]:.3f}")


if __name__ == "__main__":
    main()
