"""The long run: `make fuzz`, or PYTHONPATH=tests python -m fuzz.runner [--only NAME [--index N]].

Prints a table of readers; writes each failing input to a folder; exits with 1 on any failure.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOM = 6 << 30  # bytes of address space that a worker may take beside what it has
CHUNK = 500

_fuzzers: dict[str, Any] = {}


def begin(place: str, seed: int) -> None:
    """Sets a worker up: a folder of its own, no network, and a limit to its memory."""
    os.environ.update(HF_HUB_OFFLINE="1", JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="3")
    import logging

    import jax  # noqa: F401
    from fuzz import targets  # noqa: F401

    logging.disable(logging.ERROR)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _fuzzers[""] = (Path(place) / str(os.getpid()), seed)


def work(name: str, start: int, stop: int) -> tuple[str, int, int, int, float, list[Any]]:
    """Counts of accepted, refused and failed inputs of one chunk, seconds, and the failures."""
    from fuzz.harness import Fuzzer
    from fuzz.targets import TARGETS

    place, seed = _fuzzers[""]
    if name not in _fuzzers:
        _fuzzers[name] = Fuzzer(name, TARGETS[name], place / name.replace(" ", "_"), seed)
    fuzzer = _fuzzers[name]
    accepted, refused, began = fuzzer.accepted, fuzzer.refused, time.monotonic()
    failures = []
    for index in range(start, stop):
        (place / "now").write_text(f"{name} {index}")  # what a crash leaves behind
        if found := fuzzer.run(index):
            failures.append(found)
    counts = fuzzer.accepted - accepted, fuzzer.refused - refused
    return name, *counts, stop - start, time.monotonic() - began, failures


def chunks(inputs: int, only: str | None) -> Iterator[tuple[str, int, int]]:
    """Parts of the work, readers by turns."""
    from fuzz.targets import TARGETS

    chosen = {n: t for n, t in TARGETS.items() if only in (None, n)}
    total = sum(target.share for target in chosen.values())
    numbers = {n: max(1, round(inputs * t.share / total)) for n, t in chosen.items()}
    for start in range(0, max(numbers.values()), CHUNK):
        for name, number in numbers.items():
            if start < number:
                yield name, start, min(number, start + CHUNK)


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=int(os.environ.get("FUZZ_INPUTS", 1_000_000)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one reader")
    parser.add_argument("--index", type=int, help="one input of this reader; exceptions are shown")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(".cache/fuzz"))
    asked = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as place:
        if asked.index is not None:
            return one(asked, Path(place))
        rows, failures = everything(asked, place)
    print(table(rows, failures))
    asked.output.mkdir(parents=True, exist_ok=True)
    for (name, kind), found in sorted(failures.items()):
        smallest = min(found, key=lambda failure: len(failure.data))
        file = asked.output / f"{name.replace(' ', '_')}-{asked.seed}-{smallest.index}"
        file.write_bytes(smallest.data)
        print(f"{name}: {kind}, {len(found)} times; {smallest.how[:200]}; {file}")
        again = f"--only '{name}' --seed {asked.seed} --index {smallest.index}"
        print(f"    again: python -m fuzz.runner {again}")
    return int(bool(failures))


def everything(asked: argparse.Namespace, place: str) -> tuple[dict[str, list[float]], Any]:
    """Runs all chunks: per reader accepted, refused, inputs and seconds; failures by kind."""
    from fuzz.harness import Failure

    rows: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0])
    failures: dict[tuple[str, str], list[Any]] = defaultdict(list)
    waiting = list(chunks(asked.inputs, asked.only))
    bar = tqdm(total=sum(stop - start for _, start, stop in waiting), unit=" inputs", mininterval=2)
    while waiting:
        arguments = {"initializer": begin, "initargs": (place, asked.seed)}
        with ProcessPoolExecutor(asked.workers, get_context("spawn"), **arguments) as pool:
            running = {pool.submit(work, *chunk): chunk for chunk in waiting}
            try:
                for done in as_completed(running):
                    name, *numbers, found = done.result()
                    rows[name] = [a + b for a, b in zip(rows[name], numbers, strict=True)]
                    for failure in found:
                        failures[name, failure.kind].append(failure)
                    waiting.remove(running[done])
                    bar.update(numbers[2])
            except BrokenProcessPool:
                last = list(Path(place).glob("*/now"))
                if not last:
                    raise
                for file in last:
                    name, _, index = file.read_text().rpartition(" ")
                    file.unlink()
                    crash = Failure(
                        "the process died at this input or near it", int(index), "", b""
                    )
                    failures[name, crash.kind].append(crash)
                    waiting = [
                        c for c in waiting if not (c[0] == name and c[1] <= int(index) < c[2])
                    ]
    bar.close()
    return rows, failures


def one(asked: argparse.Namespace, place: Path) -> int:
    """Makes one input again and shows where it fails."""
    from fuzz.harness import Fuzzer
    from fuzz.targets import TARGETS

    fuzzer = Fuzzer(asked.only, TARGETS[asked.only], place, asked.seed)
    data, how = fuzzer.input(asked.index)
    print(f"{how}\n{data[:2000]!r}")
    fuzzer.case.path.write_bytes(data)
    fuzzer.case.read()
    return 0


def table(rows: dict[str, list[float]], failures: Any) -> str:
    """One line for each reader."""
    lines = [
        f"{'reader':34}{'inputs':>10}{'per s':>8}{'accepted':>10}{'refused':>10}{'failures':>9}"
    ]
    for name, (accepted, refused, inputs, seconds) in rows.items():
        failed = sum(len(found) for (of, _), found in failures.items() if of == name)
        speed = inputs / max(seconds, 1e-9)
        lines.append(
            f"{name:34}{inputs:10,.0f}{speed:8,.0f}{accepted:10,.0f}{refused:10,.0f}{failed:9,}"
        )
    total = sum(row[2] for row in rows.values())
    return "\n".join([*lines, f"{'together':34}{total:10,.0f}"])


if __name__ == "__main__":
    sys.exit(main())
