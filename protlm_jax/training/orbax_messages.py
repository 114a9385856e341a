"""Orbax's warnings and errors go to a file of the run, or else to the logger `protlm_jax.orbax`.

Orbax logs a failed save several times, with stack traces, and raises it as well. The terminal gets
the message that is raised; the log is kept in the run's folder.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from pathlib import Path
from typing import Any

from absl import logging as absl_logging

FILE = "orbax.log"
LOGGER = logging.getLogger("protlm_jax.orbax")
_open: list[logging.Handler] = []  # of the runs that this process writes


class _File(logging.Handler):
    """Appends to a file, which appears with its first line."""

    def __init__(self, file: Path) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.file = file

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a full disk, which is raised elsewhere
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(self.file, flags, 0o666), "a") as opened:
                opened.write(self.format(record) + "\n")


def kept_in(file: Path) -> logging.Handler:
    """Appends Orbax's warnings and errors to a file from now on."""
    divert()
    handler = _File(file)
    _open.append(handler)
    return handler


def no_longer(handler: logging.Handler) -> None:
    """Ends what `kept_in` began."""
    with contextlib.suppress(ValueError):  # ended already
        _open.remove(handler)


@functools.cache
def divert() -> None:
    """Sends what Orbax logs to the files of `kept_in`, or else to `LOGGER`.

    After the first of several parallel reads failed, the others report to an event loop that is
    closed, or from coroutines that are dropped: these reports are logged too.
    """
    absl_logging.get_absl_logger().addFilter(_to_logger)
    shown = sys.unraisablehook

    def hook(event: Any) -> None:
        if _is_of_a_failed_read(event):
            LOGGER.debug("after a failed read: %r", event.exc_value)
        else:
            shown(event)

    sys.unraisablehook = hook


def _to_logger(record: logging.LogRecord) -> bool:
    if "orbax" not in record.pathname:
        return True
    if record.levelno >= logging.WARNING:
        takers: list[logging.Handler | logging.Logger] = [*_open] or [LOGGER]
        for taker in takers:
            taker.handle(record)
    return False


def _is_of_a_failed_read(event: Any) -> bool:
    code = getattr(event.object, "cr_code", None)
    if code is not None:
        return "orbax" in code.co_filename
    frame = event.exc_traceback
    called_by_nobody = frame is not None and frame.tb_frame.f_code.co_name == "call_soon_threadsafe"
    return called_by_nobody and str(event.exc_value) == "Event loop is closed"
