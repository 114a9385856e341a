"""How far a command is: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

EVERY = 60.0  # seconds between lines of a log


class Bar(tqdm):
    """tqdm's bar; where standard error is no terminal, a line a minute after the first minute."""

    def __init__(self, *arguments: Any, show: bool, **options: Any) -> None:
        if not sys.stderr.isatty():
            options |= {"mininterval": EVERY, "maxinterval": EVERY, "delay": EVERY, "miniters": 1}
            options |= {"leave": False, "ncols": 80}
        super().__init__(*arguments, disable=not show, **options)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Writes a state of the bar: over the one before on a terminal, else as a line."""
        if file.isatty():
            printer: Callable[[str], None] = tqdm.status_printer(file)
            return printer

        def line(text: str) -> None:
            if text.strip():
                file.write(f"{text.strip()}\n")
                file.flush()

        return line
