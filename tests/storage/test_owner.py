"""One writer at a time, also when processes are killed, stopped, or on other machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.storage import owner
from protlm_jax.storage.owner import Occupied, owned

HOLD = """
import sys, time
from pathlib import Path
from protlm_jax.storage.owner import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def holder(place: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    return process


def test_the_second_is_refused_and_the_lock_of_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    place = tmp_path / "new" / "e.h5"
    first = holder(place)
    for sent in (signal.SIGSTOP, signal.SIGCONT):
        os.kill(first.pid, sent)
        with pytest.raises(Occupied, match=f"is being written by process {first.pid} on "):
            owned(place).__enter__()
    first.kill()
    first.wait()
    assert (place.parent / ".e.h5.lock").exists()
    with owned(place), pytest.raises(Occupied, match=str(os.getpid())):
        owned(place).__enter__()
    assert list(place.parent.iterdir()) == []


def test_a_folder_that_is_filled_has_its_lock_inside(tmp_path: Path) -> None:
    with owned(tmp_path / "w", inside=True):
        assert [p.name for p in (tmp_path / "w").iterdir()] == [".lock"]
        with owned(tmp_path / "w"):  # the place itself is another matter
            pass
        (tmp_path / "w" / "e").touch()
    assert [p.name for p in (tmp_path / "w").iterdir()] == ["e"]
    with owned(tmp_path / "empty", inside=True):
        pass
    assert not (tmp_path / "empty").exists(), "what was made for the lock alone"


def elsewhere(lock: Path) -> None:
    content = {"process": 7, "host": "tpu-3", "machine": "another", "command": "protlm train"}
    lock.write_text(json.dumps(content))


def test_an_owner_on_another_machine_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "BEAT", 0.05)
    monkeypatch.setattr(owner, "SILENCE", 0.5)
    lock = tmp_path / "w" / ".lock"
    lock.parent.mkdir()
    elsewhere(lock)
    with owned(tmp_path / "w", inside=True):  # silent: it is gone
        assert json.loads(lock.read_text())["process"] == os.getpid()
    elsewhere(lock)
    touch = "import os, sys, time\nfor _ in range(600): os.utime(sys.argv[1]); time.sleep(0.05)"
    alive = subprocess.Popen([sys.executable, "-c", touch, str(lock)])
    time.sleep(0.2)
    try:
        with pytest.raises(Occupied, match=r"process 7 on tpu-3 \(protlm train\)"):
            owned(tmp_path / "w", inside=True).__enter__()
    finally:
        alive.kill()
        alive.wait()
    assert lock.exists()


def test_an_owner_shows_that_it_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "BEAT", 0.05)
    with owned(tmp_path / "w", inside=True):
        lock = tmp_path / "w" / ".lock"
        first = lock.stat().st_mtime_ns
        until = time.monotonic() + 20
        while lock.stat().st_mtime_ns == first and time.monotonic() < until:
            time.sleep(0.02)
        assert lock.stat().st_mtime_ns > first


def test_links_are_not_followed_and_nothing_is_emptied(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".a.lock").symlink_to(victim)
    with pytest.raises(ProtlmError, match=r"cannot write .*\.a\.lock"):
        owned(tmp_path / "a").__enter__()
    assert victim.read_text() == "precious"
