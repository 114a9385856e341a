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

from protlm_jax.evaluation.depth.results import Quantity, Totals
from protlm_jax.files import write_atomically
from protlm_jax.models.loaded import LoadedModel

EVERY = 30.0  # seconds between two savings
FIELDS = ("totals", "counts", "peaks")


class Partial:
    """The sums of one stack, kept every half a minute and after the last batch.

    Args:
        path: .npz file.
        loaded: the model; with other parameters nothing is taken over.
        settings: JSON of all else that the sums depend on.
    """

    def __init__(self, path: Path, loaded: LoadedModel, settings: Any) -> None:
        self.path = path
        self.digest = digest(loaded, settings)
        self.saved = time.monotonic()

    def load(self, totals: Totals, samples: list[np.ndarray]) -> int:
        """Fills in what was kept, and returns how many batches it holds; 0 where nothing fits."""
        if not self.path.exists():
            return 0
        with np.load(self.path) as file:
            about = json.loads(str(file["about"]))
            if about["digest"] != self.digest:
                return 0
            for name, dims in about["dims"].items():
                arrays = [file.get(f"{field}/{name}") for field in FIELDS]
                totals.quantities[name] = Quantity(tuple(dims), *arrays)
            samples += [file[f"samples/{i}"] for i in range(about["samples"])]
        return int(about["batches"])

    def save(self, totals: Totals, samples: list[np.ndarray], batches: int) -> None:
        """Keeps the sums of so many batches, if it is time."""
        if time.monotonic() - self.saved < EVERY:
            return
        about = {
            "digest": self.digest,
            "dims": {name: x.dims for name, x in totals.quantities.items()},
            "samples": len(samples),
            "batches": batches,
        }
        arrays: dict[str, Any] = {"about": np.array(json.dumps(about))}
        for name, quantity in totals.quantities.items():
            for field in FIELDS:
                if (array := getattr(quantity, field)) is not None:
                    arrays[f"{field}/{name}"] = array
        arrays |= {f"samples/{i}": sample for i, sample in enumerate(samples)}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_atomically(self.path, buffer.getvalue())
        self.saved = time.monotonic()


def digest(loaded: LoadedModel, settings: Any) -> str:
    """Of the settings, the architecture and every parameter."""
    total = hashlib.sha256(json.dumps([settings, loaded.config.to_dict()]).encode())
    for leaf in jax.tree.leaves(loaded.params):
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()
