"""SIGKILL, which nothing can catch: no half-written shard, no process left, the same bytes."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from protlm_jax import bundled
from protlm_jax.data.prepare.direct import prepare
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rules import SelectionRules
from protlm_jax.data.prepared import Prepared

from .conftest import contents

SCRIPT = """\
import pickle, sys
from protlm_jax.data.prepare.direct import prepare
prepare(pickle.loads(bytes.fromhex(sys.argv[1])), workers=2)
"""


def start(plan: PreparePlan) -> subprocess.Popen:
    import pickle

    return subprocess.Popen([sys.executable, "-c", SCRIPT, pickle.dumps(plan).hex()])


def kill_when(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    """Kills a process once something holds, and waits until its children are gone as well."""
    deadline = time.monotonic() + 60
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline, "it never came that far"
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert children and not alive


def test_killed_while_reading_and_while_writing(tmp_path):
    source = [str(bundled.path("pretraining"))]
    plan = PreparePlan.make(
        "fasta", source, tmp_path / "out", SelectionRules(), tokens=True, records=False
    )
    plan = replace(plan, block_bytes=200_000, buckets=64)
    work = plan.output / ".work"
    for stage in ("spill", "gathered"):
        kill_when(start(plan), lambda at=work / stage: at.exists() and len(list(at.iterdir())) > 2)
        assert not (plan.output / "tokens").exists()
    assert start(plan).wait() == 0
    prepare(replace(plan, output=tmp_path / "calm"), workers=1)
    assert contents(plan.output) == contents(tmp_path / "calm")


@pytest.mark.slow
def test_four_kills_at_random_moments(tmp_path):
    command = [sys.executable, "-m", "protlm_jax.cli", "prepare", "--dataset", "fasta"]
    command += ["--input", str(bundled.path("pretraining")), "--tokens", "--records", "--output"]

    def run(folder: Path) -> float:
        begun = time.monotonic()
        subprocess.run([*command, str(folder)], check=True, capture_output=True)
        return time.monotonic() - begun

    seconds = run(tmp_path / "calm")
    rng, kills = random.Random(0), 0
    while kills < 4:
        process = subprocess.Popen([*command, str(tmp_path / "out")], stdout=subprocess.DEVNULL)
        try:
            assert process.wait(rng.uniform(0.2, 1.0) * seconds) == 0
            shutil.rmtree(tmp_path / "out")  # it got through: from the beginning again
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    run(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


MEMORY = """\
import re, sys
from pathlib import Path
from protlm_jax.cli import main
assert main(["prepare", "--dataset", "fasta", "--workers", "1", "--tokens", *sys.argv[1:]]) == 0
# Not ru_maxrss, which a process inherits from the larger one that started it.
print("peak", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_copies_take_the_memory_of_one(tmp_path):
    copies = [tmp_path / f"part{i}.fasta.xz" for i in range(10)]
    for copy in copies:
        copy.symlink_to(bundled.path("pretraining"))

    def peak(number: int) -> int:
        """Peak memory in MB of preparing some copies."""
        files = [str(copy) for copy in copies[:number]]
        command = [sys.executable, "-c", MEMORY, "--output", str(tmp_path / str(number))]
        done = subprocess.run([*command, "--input", *files], check=True, capture_output=True)
        return int(done.stdout.decode().split()[-1]) // 1024

    one, ten = peak(1), peak(10)
    assert ten < 1.25 * one and ten < 500
    first, all_ = (Prepared.open(tmp_path / str(number)) for number in (1, 10))
    assert all_.manifest["read"] == 200_000 and all_.manifest["kept"] == first.manifest["kept"]
    for side, split in first.splits.items():
        assert all_.splits[side].lengths.tolist() == split.lengths.tolist()
