"""Types of command-line arguments, and what they say of the place that a verb writes to."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from protlm_jax.storage.owner import owned

# Verbs whose --output is a folder that is filled; elsewhere it appears when it is complete.
_FILLING = ("depth", "probe")
_OWNING = ("prepare", "quickstart", "train")  # verbs that look after their own place


def positive(text: str) -> int:
    """A whole number above 0.

    Raises:
        ArgumentTypeError: it is something else.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def output_owned(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Keeps what a verb writes to, if anything, to this process while the block runs.

    Raises:
        Occupied: another process is writing to it.
        ProtlmError: it cannot be written to.
    """
    place: Path | None = getattr(arguments, "output", None)
    if place is None or arguments.verb in _OWNING:
        return contextlib.nullcontext()
    return owned(place, inside=arguments.verb in _FILLING)
