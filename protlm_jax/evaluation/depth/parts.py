"""What a measurement has so far, on disk, so that a run that was killed goes on from there."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import xarray

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.results import read, save

log = logging.getLogger(__name__)

EVERY = 30.0  # seconds between two savings


class Part:
    """The unfinished results of one measurement, saved every half a minute.

    Args:
        file: where; None keeps nothing.
        settings: JSON of all that the results depend on, the model's `identity` among it; what
            was kept under others, or is damaged, is not taken over.
    """

    def __init__(self, file: Path | None, settings: Any = None) -> None:
        self.file = file
        self.settings = json.dumps(settings)
        self.saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.file is not None and time.monotonic() - self.saved >= EVERY

    def load(self) -> tuple[int, xarray.Dataset]:
        """How many steps were done, and their results; 0 and nothing where none fit."""
        if self.file is None or not self.file.exists():
            return 0, xarray.Dataset()
        try:
            kept = read(self.file)
            if kept.attrs["settings"] == self.settings:
                return int(kept.attrs["steps"]), kept
        except ProtlmError as error:
            log.warning("%s: it is measured from the beginning", error)
        return 0, xarray.Dataset()

    def save(self, steps: int, results: xarray.Dataset) -> None:
        """Keeps the results of so many steps."""
        if self.file is not None:
            save(results.assign_attrs(settings=self.settings, steps=steps), self.file)
            self.saved = time.monotonic()


NOTHING = Part(None)
