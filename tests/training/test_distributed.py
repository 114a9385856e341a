"""How runs end from outside, and several hosts as real processes on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepared_data import proteins, write_prepared
from runs import assert_same_run, metrics, tree

from protlm_jax.config.run import RunConfig
from protlm_jax.errors import ProtlmError, Stopped
from protlm_jax.process.sigterm import told_to_end
from protlm_jax.storage.owner import owned
from protlm_jax.training import loop
from protlm_jax.training.checkpoints import saved_steps
from protlm_jax.training.distributed import Hosts, connected

STEPS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lengths = np.random.default_rng(0).integers(8, 40, 120).tolist()
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared", proteins(lengths))


def sections(data: Path, steps: int = STEPS) -> dict[str, Any]:
    """Config of a short run without dropout, whose numbers do not depend on the devices' count."""
    return tree(
        data={"prepared": str(data), "heldout_percent": 25.0},
        train={
            "steps": steps,
            "batch_size": 8,
            "checkpoint_every": max(3, steps // 10),
            "evaluate_every": max(4, steps // 5),
        },
        mesh={"data": 2, "fsdp": 2},
    )


def assert_same_losses(one: Path, other: Path, after: int = 0, steps: int = 20) -> None:
    """To 1e-5 over some steps: later the roundings of another order of sums have grown."""
    found = [
        {
            (line["step"], name): line[name]
            for line in metrics(run)
            for name in ("loss", "heldout/nll")
            if name in line and after < line["step"] <= after + steps
        }
        for run in (one, other)
    ]
    assert found[0].keys() == found[1].keys() and len(found[0]) >= steps
    for key, value in found[0].items():
        assert abs(found[1][key] - value) <= 1e-5 * value, key


main_thread = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(),
    reason="signals reach the main thread only",
)


@main_thread
def test_told_to_end_a_run_saves_and_goes_on_bit_for_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunConfig.from_dict(sections(data))
    loop.train(run, tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        counts, counted = iter(range(100)), loop.count_tokens

        def tell(batch: Any) -> int:
            if next(counts) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return counted(batch)

        patch.setattr(loop, "count_tokens", tell)
        with pytest.raises(Stopped, match="step 5 is saved: the same command goes on"):
            loop.train(run, tmp_path / "parts")
    assert signal.getsignal(signal.SIGTERM) is before
    assert saved_steps(tmp_path / "parts" / "checkpoints") == [3, 5]
    assert loop.train(run, tmp_path / "parts") == STEPS - 5
    assert_same_run(tmp_path / "whole", tmp_path / "parts")

    # One bit of the newest checkpoint flips: the run goes on from the one before, to the same end.
    broken = tmp_path / "whole" / "checkpoints" / str(STEPS)
    state = max((broken / "state").rglob("*"), key=lambda file: file.stat().st_size)
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    assert loop.train(run, tmp_path / "whole") == STEPS - 6
    assert (tmp_path / "whole" / "damaged" / str(STEPS)).is_dir()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_hosts_that_do_not_find_each_other_are_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    message = "address should be defined.*--coordinator HOST:PORT"
    with pytest.raises(ProtlmError, match=message), connected(Hosts()):
        pass


# --- in processes of their own -------------------------------------------------------------------


COMMAND = """
import sys
from protlm_jax import cli
from protlm_jax.training import distributed
distributed.HEARTBEAT = 6
sys.exit(cli.main())
"""


class Run:
    """`protlm train` on some hosts; together they have four devices."""

    def __init__(
        self, config: Path, workdir: Path, hosts: int, code: str = COMMAND, alone: bool = True
    ) -> None:
        self.workdir = workdir
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(4 // hosts),
            # A program from the cache may be another than the one that is compiled.
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
        command = [sys.executable, "-c", code, "train", "--config", str(config)]
        command += ["--workdir", str(workdir)]
        self.hosts = []
        for host in range(hosts):
            words = ["--coordinator", address, "--hosts", str(hosts), "--host", str(host)]
            self.hosts.append(
                subprocess.Popen(
                    command + ([] if alone and hosts == 1 else words),
                    env=environment,
                    stderr=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )

    def reach(self, step: int) -> None:
        """Returns when a step is logged."""
        while not (log := self.workdir / "metrics.jsonl").exists() or step not in [
            json.loads(line)["step"] for line in log.read_text().splitlines() if line.endswith("}")
        ]:
            assert all(host.poll() is None for host in self.hosts), self.end()
            time.sleep(0.05)

    def end(self) -> tuple[list[int], list[str]]:
        """Exit codes, and what was said."""
        said = ["".join(host.communicate(timeout=400)) for host in self.hosts]
        return [host.returncode for host in self.hosts], said


def write_config(folder: Path, data: Path, steps: int) -> Path:
    config = folder / "run.py"
    tree = json.dumps(sections(data, steps))
    config.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads({tree!r}))\n"
    )
    return config


@pytest.mark.slow
def test_a_host_that_falls_silent_ends_the_others(data: Path, tmp_path: Path) -> None:
    """JAX aborts where it hears no heartbeat; a launcher is to start the command again."""
    run = Run(write_config(tmp_path, data, 2000), tmp_path / "run", 2)
    run.reach(3)
    run.hosts[1].send_signal(signal.SIGSTOP)
    assert run.hosts[0].wait(timeout=60) == Stopped.EXIT_CODE
    run.hosts[1].send_signal(signal.SIGCONT)
    codes, said = run.end()
    assert codes == [Stopped.EXIT_CODE] * 2, said
    assert all("another host is gone" in text and "Traceback" not in text for text in said)


WAITING = """
import sys, time
from protlm_jax import cli
from protlm_jax.training import phases
def wait(*_):
    print("begins", flush=True)
    time.sleep(60)
phases.train_phases = wait
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_a_host_is_told_to_end_before_the_first_step(data: Path, tmp_path: Path) -> None:
    run = Run(write_config(tmp_path, data, STEPS), tmp_path / "run", 1, WAITING, alone=False)
    assert run.hosts[0].stdout is not None and run.hosts[0].stdout.readline() == "begins\n"
    run.hosts[0].send_signal(signal.SIGTERM)
    codes, said = run.end()
    assert codes == [Stopped.EXIT_CODE] and said == [told_to_end(None) + "\n"]


@pytest.mark.slow
def test_a_folder_that_another_process_owns_is_refused_on_all_hosts(
    data: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    with owned(workdir, inside=True):
        codes, said = Run(write_config(tmp_path, data, STEPS), workdir, 2).end()
    assert codes == [1, 1], said
    assert f"error: {workdir} is being written by process {os.getpid()} " in said[0]
    assert not workdir.exists()  # made for the lock alone


@pytest.mark.slow
def test_several_hosts_train_stop_and_go_on_as_one(data: Path, tmp_path: Path) -> None:
    steps = 100
    config = write_config(tmp_path, data, steps)

    def train(name: str, hosts: int) -> Path:
        codes, said = Run(config, tmp_path / name, hosts).end()
        assert codes == [0] * hosts, said
        assert f"done: {steps} steps" in said[0] and not any("done" in text for text in said[1:])
        return tmp_path / name

    one, two = train("one", 1), train("two", 2)
    assert_same_losses(one, two)

    # SIGTERM to one of two hosts: both save the same step and end with the code for "again".
    told = Run(config, tmp_path / "told", 2)
    told.reach(10)
    told.hosts[1].send_signal(signal.SIGTERM)
    codes, said = told.end()
    assert codes == [Stopped.EXIT_CODE] * 2, said
    stopped = saved_steps(tmp_path / "told" / "checkpoints")[-1]
    assert 10 <= stopped < steps and all(f"step {stopped} is saved" in text for text in said)
    for name in ("on one", "on four"):
        shutil.copytree(tmp_path / "told", tmp_path / name)
    assert_same_run(two, train("told", 2))
    assert_same_losses(two, train("on one", 1), after=stopped)
    assert_same_losses(two, train("on four", 4), after=stopped)

    # SIGKILL of one: the other ends within a minute, with the reason, and the run goes on.
    lost = Run(config, tmp_path / "lost", 2)
    lost.reach(10)
    lost.hosts[1].kill()
    began = time.monotonic()
    codes, said = lost.end()
    assert time.monotonic() - began < 60
    assert codes == [Stopped.EXIT_CODE, -signal.SIGKILL]
    assert "another host is gone" in said[0]
    assert_same_run(two, train("lost", 2))
