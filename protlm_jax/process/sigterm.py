"""SIGTERM ends a command with one line and exit code 75.

The handler raises `Stopped` in the main thread, and for SIGINT (Ctrl-C) `KeyboardInterrupt`. Native
code, such as a compiler, delays the handler until it returns; during an import it is delayed, too,
because an exception in the initialisation of a native module (jaxlib, TensorFlow) crashes the
process. A second thread receives SIGTERM at once, and ends the process after some seconds, or at
another SIGTERM. Neither happens while another handler is installed, as that of training from its
first update on, which saves the state.
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
from typing import Any, NoReturn

from protlm_jax.errors import Stopped

_AGAIN = 0x80  # added to the number of a signal that is sent again
GRACE = 5.0  # seconds from the signal to the end; TPU VMs and SLURM give 30


def told_to_end(step: int | None) -> str:
    """The last line of a run that SIGTERM ends with `step` saved, or nothing."""
    if step is None:
        return "told to end; nothing was trained yet: the same command starts it"
    return f"told to end; step {step} is saved: the same command goes on from there"


@contextlib.contextmanager
def ends_at_sigterm(describe: Callable[[], str]) -> Iterator[None]:
    """While the block runs, SIGTERM ends it with `Stopped(describe())`; in the main thread only.

    SIGINT raises `KeyboardInterrupt` as by default, except during an import.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch(describe)
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, watch.stop)}
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, watch.stop)
    woken = signal.set_wakeup_fd(watch.signals.fileno(), warn_on_full_buffer=False)
    shown, sys.unraisablehook = sys.unraisablehook, watch.unraisable
    watch.shown = shown
    try:
        yield
    except Exception as error:
        if watch.received:  # native code replaces the exception by its own
            raise watch.ending() from error
        raise
    finally:
        watch.ended = True
        if sys.unraisablehook == watch.unraisable:
            sys.unraisablehook = shown
        signal.set_wakeup_fd(woken)
        watch.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def end(code: int, line: str, stderr: int = 2) -> NoReturn:
    """Ends the process at once, with a line for the user; from any thread.

    Python's own exit waits for threads of libraries (JAX starts one of a minute when it looks for
    devices), and crashes while XLA computes.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    os.write(stderr, line.encode(errors="backslashreplace") + b"\n")
    flushing = threading.Thread(target=sys.stdout.flush, daemon=True)  # a pipe may be full
    flushing.start()
    flushing.join(1)
    os._exit(code)


class _Watch:
    """Ends the process where the main thread does not, unless SIGTERM has another handler."""

    def __init__(self, describe: Callable[[], str]) -> None:
        self.describe, self.ended = describe, False
        self.received = 0  # the last signal
        self.shown: Callable[[Any], object] = sys.__unraisablehook__
        self._ours, self.signals = socket.socketpair()
        self.signals.setblocking(False)
        self._stderr = os.dup(2)  # imports of TensorFlow point it elsewhere for a while
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self.ended:  # the block is done, or raises an error
            return
        if _importing(frame):
            self._again()
        else:
            raise self.ending()

    def ending(self) -> BaseException:
        """The exception of the last signal."""
        if self.received == signal.SIGINT:
            return KeyboardInterrupt()
        return Stopped(self.describe())

    def unraisable(self, event: Any) -> None:
        """Where Python cannot raise, as in the garbage collector, the signal is sent again."""
        if event.exc_type is Stopped or (event.exc_type is KeyboardInterrupt and self.received):
            self._again()
        else:
            self.shown(event)

    def _again(self) -> None:
        """Sends the signal again a moment later."""
        with contextlib.suppress(OSError):
            self.signals.send(bytes([_AGAIN | self.received]))

    def close(self) -> None:
        self.signals.close()  # ends the thread
        self._thread.join()
        self._ours.close()
        os.close(self._stderr)

    def _run(self) -> None:
        count, deadline = 0, None
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.01)
            self._ours.settimeout(left)
            try:
                numbers = self._ours.recv(64)
                if not numbers:
                    return
            except TimeoutError:
                numbers = b""
            count += numbers.count(signal.SIGTERM)
            for number in (signal.SIGTERM, signal.SIGINT):
                if _AGAIN | number in numbers:  # for the handler that is installed by then
                    count -= number == signal.SIGTERM
                    time.sleep(0.05)
                    signal.pthread_kill(threading.main_thread().ident or 0, number)
            if signal.getsignal(signal.SIGTERM) != self.stop:
                count, deadline = 0, None
            elif count >= 2 or (deadline is not None and time.monotonic() >= deadline):
                end(Stopped.EXIT_CODE, self.describe(), self._stderr)
            elif count and deadline is None:
                deadline = time.monotonic() + GRACE


def _importing(frame: FrameType | None) -> bool:
    """Whether the code of a frame runs because a module is being imported."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None
