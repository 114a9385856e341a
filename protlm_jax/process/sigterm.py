"""SIGTERM ends a command with one line and exit code 75, whatever it is doing.

The handler raises `Stopped` in the main thread; of SIGINT (Ctrl-C) it raises `KeyboardInterrupt`.
Native code, as a compiler's, delays it until it returns. An import delays it, too: where an
exception interrupts the initialisation of a native module (jaxlib, TensorFlow), the process
crashes. A second thread hears of SIGTERM at once, and ends the process after some seconds, or at
another SIGTERM. Neither happens while somebody else handles the signal, as training does from its
first update on: then there is a state to save.
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

_AGAIN = 0x80  # added to the number of a signal that is to come again
GRACE = 5.0  # seconds from the signal to the end; TPU VMs and SLURM give 30


def told_to_end(step: int | None) -> str:
    """What a run says that is told to end when `step` is saved, or nothing."""
    if step is None:
        return "told to end; nothing was trained yet: the same command starts it"
    return f"told to end; step {step} is saved: the same command goes on from there"


@contextlib.contextmanager
def ends_at_sigterm(describe: Callable[[], str]) -> Iterator[None]:
    """While the block runs, SIGTERM ends it with `Stopped`; none of it outside the main thread.

    SIGINT raises `KeyboardInterrupt` as always, but not in the midst of an import.

    Args:
        describe: gives the line for the user.
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
        if watch.told:  # native code makes an error of its own of it
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
    """Ends the process at once, with a line for the user.

    Not through Python's own end, which waits for threads of libraries (JAX starts one of a minute
    as it looks for devices), and which crashes where XLA still computes.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    _end(code, line, stderr)


def _end(code: int, line: str, stderr: int) -> NoReturn:
    os.write(stderr, line.encode(errors="backslashreplace") + b"\n")
    flushing = threading.Thread(target=sys.stdout.flush, daemon=True)  # a pipe may be full
    flushing.start()
    flushing.join(1)
    os._exit(code)


class _Watch:
    """Ends the process where the main thread does not, unless SIGTERM has another handler."""

    def __init__(self, describe: Callable[[], str]) -> None:
        self.describe, self.ended = describe, False
        self.told = 0  # the signal that came last
        self.shown: Callable[[Any], object] = sys.__unraisablehook__
        self._ours, self.signals = socket.socketpair()
        self.signals.setblocking(False)
        self._stderr = os.dup(2)  # imports of TensorFlow point it elsewhere for a while
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals."""
        self.told = number
        if self.ended:  # all was done, or an error is under way
            return
        if _importing(frame):
            self._again()
        else:
            raise self.ending()

    def ending(self) -> BaseException:
        """What the signal raises."""
        return KeyboardInterrupt() if self.told == signal.SIGINT else Stopped(self.describe())

    def unraisable(self, event: Any) -> None:
        """Where Python cannot raise, as in the garbage collector, the signal comes again."""
        if event.exc_type is Stopped or (event.exc_type is KeyboardInterrupt and self.told):
            self._again()
        else:
            self.shown(event)

    def _again(self) -> None:
        """Makes the signal come again a moment later."""
        with contextlib.suppress(OSError):
            self.signals.send(bytes([_AGAIN | self.told]))

    def close(self) -> None:
        self.signals.close()  # ends the thread
        self._thread.join()
        self._ours.close()
        os.close(self._stderr)

    def _run(self) -> None:
        heard, deadline = 0, None
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.01)
            self._ours.settimeout(left)
            try:
                numbers = self._ours.recv(64)
                if not numbers:
                    return
            except TimeoutError:
                numbers = b""
            heard += numbers.count(signal.SIGTERM)
            for number in (signal.SIGTERM, signal.SIGINT):
                if _AGAIN | number in numbers:  # for whoever handles it by then
                    heard -= number == signal.SIGTERM
                    time.sleep(0.05)
                    signal.pthread_kill(threading.main_thread().ident or 0, number)
            if signal.getsignal(signal.SIGTERM) != self.stop:
                heard, deadline = 0, None
            elif heard >= 2 or (deadline is not None and time.monotonic() >= deadline):
                _end(Stopped.EXIT_CODE, self.describe(), self._stderr)
            elif heard and deadline is None:
                deadline = time.monotonic() + GRACE


def _importing(frame: FrameType | None) -> bool:
    """Whether the code of a frame runs because some module is being imported."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None
