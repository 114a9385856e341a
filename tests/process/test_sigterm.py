"""SIGTERM ends any verb with one line and exit code 75."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from protlm_jax import cli, huggingface
from protlm_jax.errors import Stopped
from protlm_jax.process.sigterm import ends_at_sigterm, told_to_end

main_thread = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(),
    reason="signals reach the main thread only",
)

# What holds the main thread back in native code, as a compiler does.
NATIVE = """
import hashlib, sys
from protlm_jax import errors
from protlm_jax.process import sigterm
sigterm.GRACE = float(sys.argv[1])
try:
    with sigterm.ends_at_sigterm(lambda: "told to end"):
        print("begins", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
except errors.Stopped as stopped:
    print("handled")
"""


@main_thread
def test_sigterm_ends_a_verb_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(path: str) -> types.NoReturn:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except Exception as error:  # as libraries do
            raise AssertionError from error
        raise AssertionError

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(huggingface, "load_model", told)
    assert cli.main(["export", "--model", "m", "--output", str(tmp_path / "o")]) == 75
    assert capsys.readouterr().err == "told to end; the same command goes on, or starts again\n"
    assert signal.getsignal(signal.SIGTERM) is before and signal.set_wakeup_fd(-1) == -1


@pytest.fixture
def signal_while_imported(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """Name of a module that gets a signal while it is imported, and says when it is complete."""
    number = int(getattr(request, "param", signal.SIGTERM))
    lines = f"import os\nos.kill(os.getpid(), {number})\nsum(range(1000))\ndone = True\n"
    (tmp_path / "signal_module.py").write_text(lines)
    monkeypatch.syspath_prepend(tmp_path)
    yield "signal_module"
    sys.modules.pop("signal_module", None)


@main_thread
@pytest.mark.parametrize(
    ("signal_while_imported", "raised"),
    [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)],
    indirect=["signal_while_imported"],
)
def test_an_import_is_not_interrupted(
    signal_while_imported: str, raised: type[BaseException]
) -> None:
    """Native modules that are being initialised crash."""
    done = False
    shell = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        with pytest.raises(raised), ends_at_sigterm(str):
            done = importlib.import_module(signal_while_imported).done
            time.sleep(60)
        assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, shell)


@main_thread
def test_a_handler_set_after_an_import_gets_the_signal(signal_while_imported: str) -> None:
    heard = []
    with ends_at_sigterm(str):
        importlib.import_module(signal_while_imported)
        signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        until = time.monotonic() + 60
        while not heard and time.monotonic() < until:
            time.sleep(0.01)
    assert heard == [signal.SIGTERM]


@main_thread
def test_a_block_that_ends_with_an_import_is_done(signal_while_imported: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ends_at_sigterm(str):
        importlib.import_module(signal_while_imported)
    assert signal.getsignal(signal.SIGTERM) is before  # which would have ended this process


@main_thread
def test_the_line_of_a_run_names_the_saved_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*_: object) -> types.NoReturn:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        raise AssertionError

    monkeypatch.setattr("protlm_jax.config.recipes.load_recipe", told)
    command = ["train", "--config", "configs/tiny.py:bert", "--workdir", str(tmp_path / "run")]
    assert cli.main(command) == 75
    assert capsys.readouterr().err == told_to_end(None) + "\n"
    (tmp_path / "run" / "checkpoints" / "40").mkdir(parents=True)
    assert cli.main(command) == 75
    assert "step 40 is saved: the same command goes on" in capsys.readouterr().err


def test_nothing_happens_outside_the_main_thread() -> None:
    seen = []

    def block() -> None:
        with ends_at_sigterm(str):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize(("grace", "signals"), [("0.2", 1), ("60", 2)])
def test_native_code_is_not_waited_for(grace: str, signals: int) -> None:
    """After some seconds, or at once at a second signal."""
    command = [sys.executable, "-c", NATIVE, grace]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "begins\n"
        time.sleep(0.5)
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        output = process.communicate(timeout=60)
    assert (process.returncode, output) == (Stopped.EXIT_CODE, ("", "told to end\n"))


# A library's thread that outlives the command, and a computation.
LINGERS = """
import os, signal, sys, threading, time
import jax
import jax.numpy as jnp
from protlm_jax import cli, huggingface
def told(path):
    threading.Thread(target=time.sleep, args=[60]).start()
    x = jnp.ones((512, 512))
    jax.jit(lambda x: jax.lax.fori_loop(0, 10**6, lambda i, y: jnp.sin(y @ x), x))(x)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
huggingface.load_model = told
sys.exit(cli.main())
"""


def test_what_still_runs_does_not_delay_the_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LINGERS, "export", "--model", "m"]
    command += ["--output", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == Stopped.EXIT_CODE
    assert done.stderr == "told to end; the same command goes on, or starts again\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_sigterm_in_the_first_seconds_of_a_run(tmp_path: Path) -> None:
    """While it imports, reads, compiles; from the moment at which Python runs its first lines."""
    mask = 1 << signal.SIGTERM - 1
    for number, delay in enumerate((0.0, 0.3, 0.7, 2.0)):
        command = [sys.executable, "-m", "protlm_jax.cli", "train", "--workdir"]
        command += [str(tmp_path / str(number)), "--config", "configs/tiny.py:bert"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        status = Path(f"/proc/{process.pid}/status")
        while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) & mask:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == Stopped.EXIT_CODE, error
        assert error.splitlines()[-1].startswith("told to end; "), error
