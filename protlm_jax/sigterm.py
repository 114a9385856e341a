"""SIGTERM ends a command with one line and exit code 75, whatever it is doing.

The handler raises `Stopped` in the main thread. Native code there (a compiler, an import) holds it
back until it returns, so that a thread, which hears of the signal at once, ends the process after
some seconds, or at a second SIGTERM. Neither happens while somebody else handles the signal, as
training does from its first update on: then there is a state to save.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from protlm_jax.errors import Stopped

GRACE = 5.0  # seconds from the signal to the end; TPU VMs and SLURM give 30


def told_to_end(step: int | None) -> str:
    """What a run says that is told to end when `step` is saved, or nothing."""
    if step is None:
        return "told to end; nothing was trained yet: the same command starts it"
    return f"told to end; step {step} is saved: the same command goes on from there"


@contextlib.contextmanager
def ends_at_sigterm(describe: Callable[[], str]) -> Iterator[None]:
    """While the block runs, SIGTERM raises `Stopped`; without effect outside the main thread.

    Args:
        describe: gives the line for the user.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(describe())

    ours, signals = socket.socketpair()
    signals.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(ours, stop, describe), daemon=True)
    watcher.start()
    before = signal.signal(signal.SIGTERM, stop)
    woken = signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGTERM, before)
        signals.close()  # ends the thread
        watcher.join()
        ours.close()


def _watch(signals: socket.socket, stop: object, describe: Callable[[], str]) -> None:
    """Ends the process where the main thread does not, unless SIGTERM has another handler."""
    heard, deadline = 0, None
    while True:
        signals.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.01))
        try:
            numbers = signals.recv(64)
            if not numbers:
                return
        except TimeoutError:
            numbers = b""
        heard += numbers.count(signal.SIGTERM)
        if signal.getsignal(signal.SIGTERM) is not stop:
            heard, deadline = 0, None
        elif heard >= 2 or (deadline is not None and time.monotonic() >= deadline):
            _exit(describe())
        elif heard and deadline is None:
            deadline = time.monotonic() + GRACE


def _exit(text: str) -> None:
    os.write(2, text.encode() + b"\n")
    flushing = threading.Thread(target=sys.stdout.flush, daemon=True)  # a pipe may be full
    flushing.start()
    flushing.join(1)
    os._exit(Stopped.EXIT_CODE)
