"""Trained probes on disk: the heads, and the model that they belong to.

FOLDER/probes.json         which heads there are, and which did best on validation
FOLDER/HEAD/heads.npz      and heads.json: the heads of all seeds, at the layer chosen
FOLDER/HEAD/probe.json     what they were trained on, the model's identity, layer and window
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.files import fingerprint
from protlm_jax.evaluation.probes import trained
from protlm_jax.evaluation.probes.run import Probed
from protlm_jax.evaluation.probes.trained import TrainedHeads
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.storage.files import write_atomically
from protlm_jax.vocabularies import Rare

FORMAT = 1
_INDEX = "probes.json"


@dataclass(frozen=True)
class SavedProbe:
    """Heads that can be applied.

    Attributes:
        heads: of one input, the layer that validation chose.
        about: "model" (name), "parameters" (its fingerprint), "vocabulary", "layer", "level",
            "rows", "window", "rare_residues", "compute", "benchmark", "train_proteins", "valid".
    """

    heads: TrainedHeads
    about: dict[str, Any]

    @property
    def rare_residues(self) -> Rare:
        """How the proteins that it was trained on were read: X, before it was recorded."""
        return "keep" if self.about.get("rare_residues") == "keep" else "X"


def save(probed: Probed, loaded: LoadedModel, folder: Path) -> None:
    """Writes all heads of a probe, and last the file that lists them.

    Raises:
        ProtlmError: the folder cannot be written.
    """
    result = probed.result
    scores: dict[str, float] = {}
    identity = fingerprint(loaded)
    for head, heads in probed.heads.items():
        heads.save(folder / head)
        about = {
            "format": FORMAT,
            "model": loaded.name,
            "parameters": identity,
            "vocabulary": loaded.vocabulary.name,
            "layer": result["heads"][head]["inputs"]["model"]["best_layer"]["layer"],
            "num_layers": result["num_layers"],
            "level": result["benchmark"]["level"],
            "rows": probed.rows[head],
            "window": result["window"],
            "rare_residues": loaded.rare_residues,
            "compute": probed.compute,
            "benchmark": result["benchmark"]["title"],
            "train_proteins": result["benchmark"]["splits"]["train"]["proteins"],
            "valid": {name: float(values.mean()) for name, values in heads.valid.items()},
        }
        write_atomically(folder / head / "probe.json", json.dumps(about, indent=1) + "\n")
        scores[head] = float(np.mean(list(about["valid"].values())))
    index = {"heads": scores, "best": max(scores, key=lambda head: scores[head])}
    write_atomically(folder / _INDEX, json.dumps(index, indent=1) + "\n")


def load(folder: Path) -> SavedProbe:
    """Reads one probe: of a head's folder, or the best on validation of a folder of several.

    Args:
        folder: of a head, of all heads, or the output of `protlm probe`.

    Raises:
        ProtlmError: there is no probe.
    """
    place = folder / "probe" if (folder / "probe" / _INDEX).exists() else folder
    if (place / _INDEX).exists():
        place = place / json.loads((place / _INDEX).read_text())["best"]
    file = place / "probe.json"
    if not file.exists():
        raise ProtlmError(
            f"{folder} holds no probe: name the --output of `protlm probe`, or the folder of one "
            "of its heads"
        )
    return SavedProbe(trained.load(place), json.loads(file.read_text()))


def require_reading(probe: SavedProbe, rare: Rare | None, window: int | None) -> None:
    """Raises ProtlmError when proteins would be read in another way than in the probe's training.

    To refuse rare residues is another matter: what is read is read alike.
    """
    if rare in ("X", "keep") and rare != probe.rare_residues:
        raise ProtlmError(
            f"the probe was trained with --rare_residues {probe.rare_residues.lower()}: leave the "
            f"argument away, or probe again"
        )
    if window is not None and window != probe.about["window"]:
        raise ProtlmError(
            f"the probe was trained with --window {probe.about['window']}: leave the argument "
            f"away, or probe again"
        )


def require_model(probe: SavedProbe, loaded: LoadedModel) -> None:
    """Raises ProtlmError when a model is not the one whose features the heads have learned."""
    if fingerprint(loaded) != probe.about["parameters"]:
        raise ProtlmError(
            f"the probe was trained on features of {probe.about['model']}, and {loaded.name} has "
            "other parameters or another vocabulary: its features mean something else. Give "
            "--model the probe's own model, or probe this one"
        )
