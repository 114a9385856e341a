"""Two processes at one output: the second is refused in one line, and the first ends right."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from zoo import loaded

from protlm_jax import cli
from protlm_jax.huggingface import export
from protlm_jax.storage.owner import owned

FASTA = "".join(f">p{i}\nMKTAYIAKQR{'LVEK' * (i % 9)}\n" for i in range(40))

# verb -> its words beside --output, and whether its output is a folder that is filled.
VERBS = {
    "evaluate": (["--model", "hf", "--fasta", "x.fasta"], False),
    "probe": (["--model", "hf", "--input", "t.csv"], True),
    "predict": (["--model", "hf", "--probe", "p", "--input", "x.fasta"], False),
    "depth": (["--model", "hf", "--input", "x.fasta"], True),
    "embed": (["--model", "hf", "--input", "x.fasta"], False),
    "score": (["--model", "hf", "--input", "x.fasta"], False),
    "export": (["--model", "hf"], False),
    "import": (["--model", "hf"], False),
    "quickstart": ([], True),
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_second_is_refused_before_it_reads_anything(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, inside = VERBS[verb]
    output = tmp_path / "new" / "out"
    with owned(output, inside=inside):
        before = sorted(tmp_path.rglob("*"))
        assert cli.main([verb, *words, "--output", str(output)]) == 1
        error = capsys.readouterr().err
        assert re.fullmatch(rf"error: {output} is being written by process \d+ on .*\n", error)
        assert sorted(tmp_path.rglob("*")) == before


def start(*words: str) -> subprocess.Popen[str]:
    code = "import conftest, sys; from protlm_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["embed", "export"])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_race(verb: str, stopped: bool, tmp_path: Path) -> None:
    export(loaded("bert"), tmp_path / "hf")
    (tmp_path / "x.fasta").write_text(FASTA)
    output = tmp_path / ("e.h5" if verb == "embed" else "again")
    words = [verb, "--model", str(tmp_path / "hf"), "--output", str(output)]
    words += ["--input", str(tmp_path / "x.fasta")] if verb == "embed" else []
    first = start(*words)
    lock = output.with_name(f".{output.name}.lock")
    while not lock.exists() and first.poll() is None:
        time.sleep(0.02)
    time.sleep(np.random.default_rng([stopped, len(verb)]).uniform(0, 2))
    if stopped:
        os.kill(first.pid, signal.SIGSTOP)
    second = start(*words)
    said, _ = second.communicate(timeout=120)
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(timeout=120) == 0
    if second.returncode:
        assert "is being written by process" in said and "Traceback" not in said
    else:  # the first had ended before
        assert not stopped
    assert {p.name for p in tmp_path.iterdir()} - {"x.fasta", "hf"} <= {
        "e.h5",
        "e.h5.json",
        "again",
    }
    if verb == "embed":
        with h5py.File(output) as file:
            assert len(file) == 40 and all(np.any(file[key][:]) for key in file)
        assert cli.main([*words]) == 0
    else:
        same = (output / "model.safetensors").read_bytes()
        assert same == (tmp_path / "hf" / "model.safetensors").read_bytes()
