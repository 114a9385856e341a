"""Sums on disk while a measurement runs, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import io
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.storage.digests import FASTEST, digest_of_data
from protlm_jax.storage.files import write_atomically

log = logging.getLogger(__name__)

EVERY = 30.0  # seconds between two savings
Arrays = dict[str, np.ndarray]


class Partial:
    """Arrays of one measurement, kept every half a minute.

    Args:
        path: a file, the digest of an .npz and the .npz itself; None keeps nothing.
        settings: JSON of all that the arrays depend on, the model's `identity` among it; what was
            kept under others, or is damaged, is not taken over.
    """

    def __init__(self, path: Path | None, settings: Any = None) -> None:
        self.path = path
        self.settings = json.dumps(settings)
        self.saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.path is not None and time.monotonic() - self.saved >= EVERY

    def load(self) -> tuple[int, Arrays]:
        """How many steps the kept arrays stand for, and these; (0, {}) where nothing fits."""
        if self.path is None or not self.path.exists():
            return 0, {}
        told, _, content = self.path.read_bytes().partition(b"\n")
        algorithm = told.decode(errors="replace").partition(":")[0]
        if algorithm != FASTEST or digest_of_data(content, algorithm).encode() != told:
            log.warning("%s is damaged: it is measured from the beginning", self.path)
            return 0, {}
        with np.load(io.BytesIO(content)) as file:
            if str(file["settings"]) != self.settings:
                return 0, {}
            arrays = {name: file[name] for name in file.files if name != "settings"}
        return int(arrays.pop("steps")), arrays

    def save(self, steps: int, arrays: Arrays) -> None:
        """Keeps what stands for so many steps."""
        if self.path is None:
            return
        buffer = io.BytesIO()
        about = {"settings": np.array(self.settings), "steps": np.array(steps)}
        np.savez(buffer, **about, **arrays)  # type: ignore[arg-type]
        content = buffer.getvalue()
        write_atomically(self.path, digest_of_data(content).encode() + b"\n" + content)
        self.saved = time.monotonic()


NOTHING = Partial(None)
