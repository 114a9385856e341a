"""Sums on disk while a measurement runs, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import io
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from protlm_jax.models.loaded import LoadedModel
from protlm_jax.storage.files import write_atomically

EVERY = 30.0  # seconds between two savings
Arrays = dict[str, np.ndarray]


class Partial:
    """Arrays of one measurement, kept every half a minute.

    Args:
        path: .npz file; None keeps nothing.
        settings: JSON of all that the arrays depend on, `digest` of the model among it; what was
            kept under others is not taken over.
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
        with np.load(self.path) as file:
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
        write_atomically(self.path, buffer.getvalue())
        self.saved = time.monotonic()


NOTHING = Partial(None)


def digest(loaded: LoadedModel) -> str:
    """Of the architecture and every parameter."""
    total = hashlib.sha256(json.dumps(loaded.config.to_dict()).encode())
    for leaf in jax.tree.leaves(loaded.params):
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()
