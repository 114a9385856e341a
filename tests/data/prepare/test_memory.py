"""Memory does not grow with the input."""

from __future__ import annotations

import subprocess
import sys

import pytest

from protlm_jax import bundled
from protlm_jax.data.prepared import Prepared

SCRIPT = """\
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
        command = [sys.executable, "-c", SCRIPT, "--output", str(tmp_path / str(number))]
        done = subprocess.run([*command, "--input", *files], check=True, capture_output=True)
        return int(done.stdout.decode().split()[-1]) // 1024

    one, ten = peak(1), peak(10)
    assert ten < 1.25 * one and ten < 500
    first, all_ = (Prepared.open(tmp_path / str(number)) for number in (1, 10))
    assert all_.manifest["read"] == 200_000 and all_.manifest["kept"] == first.manifest["kept"]
    for side, split in first.splits.items():
        assert all_.splits[side].lengths.tolist() == split.lengths.tolist()
