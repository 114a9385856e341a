"""Orbax's warnings and errors go to a file of the run, or else to the logger `protlm_jax.orbax`.

Orbax logs a failed save several times, with stack traces, and raises it as well. The terminal gets
the message that is raised; the log is kept in the run's folder.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from pathlib import Path
from typing import Any

from absl import logging as absl_logging

FILE = "orbax.log"
LOGGER = logging.getLogger("protlm_jax.orbax")


class _File(logging.FileHandler):
    """Appends to a file, which appears with its first line; a failure to write is ignored."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def _open(self) -> Any:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return open(os.open(self.baseFilename, flags, 0o666), "a")

    def handleError(self, record: logging.LogRecord) -> None:
        pass  # such as a full disk, which is raised elsewhere


def to_file(file: Path) -> logging.Handler:
    """Appends Orbax's warnings and errors to a file, until `end` is called with the result."""
    redirect()
    handler = _File(file)
    LOGGER.addHandler(handler)
    LOGGER.propagate = False  # to the terminal
    return handler


def end(handler: logging.Handler) -> None:
    """Ends what `to_file` began."""
    LOGGER.removeHandler(handler)
    LOGGER.propagate = not LOGGER.handlers
    handler.close()


@functools.cache
def redirect() -> None:
    """Sends Orbax's log to `LOGGER`.

    After the first of several parallel reads failed, the others report to an event loop that is
    closed, or from coroutines that are dropped: these reports are logged too.
    """
    absl_logging.get_absl_logger().addFilter(_to_logger)
    previous = sys.unraisablehook

    def hook(event: Any) -> None:
        if _is_of_a_failed_read(event):
            LOGGER.debug("after a failed read: %r", event.exc_value)
        else:
            previous(event)

    sys.unraisablehook = hook


def _to_logger(record: logging.LogRecord) -> bool:
    if "orbax" not in record.pathname:
        return True
    if record.levelno >= logging.WARNING:
        LOGGER.handle(record)
    return False


def _is_of_a_failed_read(event: Any) -> bool:
    code = getattr(event.object, "cr_code", None)
    if code is not None:
        return "orbax" in code.co_filename
    frame = event.exc_traceback
    threadsafe = frame is not None and frame.tb_frame.f_code.co_name == "call_soon_threadsafe"
    return threadsafe and str(event.exc_value) == "Event loop is closed"
