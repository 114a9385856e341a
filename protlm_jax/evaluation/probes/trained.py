"""Trained heads: what they answer, and their files."""

from __future__ import annotations

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import Target
from protlm_jax.evaluation.probes import heads
from protlm_jax.evaluation.probes.batches import Batch
from protlm_jax.evaluation.probes.moments import Standard
from protlm_jax.storage.files import write_atomically
from protlm_jax.storage.json_files import read_json, write_json

FORMAT = 2  # targets' names are encoded in heads.npz; before, they stood there as they are

# What NumPy raises of an .npz that is none, and Python of JSON that says something else.
_BROKEN = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class TrainedHeads:
    """Heads of one kind for S seeds and N inputs.

    Attributes:
        head: of `heads.NAMES`.
        targets: what they answer.
        seeds: S of them. A linear head has one optimum, whatever the seed: S = 1.
        variables: of the network, every array [S, N, ...] float32.
        standard: of the features.
        units: mean and standard deviation of each number as learned from.
        epochs: [S, N] int, epochs until it stopped.
        best_epoch: [S, N] int, the epoch whose parameters these are, counted from 1.
        valid: target -> [S, N] float, accuracy or Spearman's correlation on validation proteins.
        penalties: target -> [S, N] float, L2 chosen on validation proteins, where it was.
    """

    head: str
    targets: tuple[Target, ...]
    seeds: tuple[int, ...]
    variables: Mapping[str, Any]
    standard: Standard
    units: Mapping[str, tuple[float, float]]
    epochs: np.ndarray
    best_epoch: np.ndarray
    valid: Mapping[str, np.ndarray]
    penalties: Mapping[str, np.ndarray] = field(default_factory=dict)

    def predict(self, batch: Batch) -> dict[str, np.ndarray]:
        """target -> probabilities [S, N, T or P, C], or numbers [S, N, T or P, 1], float32.

        Rows without a protein get answers, too, that mean nothing.
        """
        module = heads.kind(self.head).module(self.targets)
        found = answer(
            module, self.variables, self.standard, batch.features, batch.protein, batch.slots
        )
        out = {}
        for target in self.targets:
            values = np.asarray(found[target.name])
            mean, deviation = self.units[target.name]
            out[target.name] = values if target.kind == "classes" else values * deviation + mean
        return out

    def select(self, index: int) -> TrainedHeads:
        """The heads of one input: N = 1."""
        at = slice(index, index + 1)
        return dataclasses.replace(
            self,
            variables=jax.tree.map(lambda x: x[:, at], self.variables),
            standard=Standard(self.standard.mean[at], self.standard.scale[at]),
            epochs=self.epochs[:, at],
            best_epoch=self.best_epoch[:, at],
            valid={name: values[:, at] for name, values in self.valid.items()},
            penalties={name: values[:, at] for name, values in self.penalties.items()},
        )

    def joined(self, other: TrainedHeads) -> TrainedHeads:
        """Linear heads for the targets of both, trained on the same features."""
        readout = {**self.variables["params"]["readout"], **other.variables["params"]["readout"]}
        return dataclasses.replace(
            self,
            targets=self.targets + other.targets,
            variables={"params": {"readout": readout}},
            units={**self.units, **other.units},
            valid={**self.valid, **other.valid},
            penalties={**self.penalties, **other.penalties},
        )

    def save(self, folder: Path) -> None:
        """Writes heads.npz and then heads.json.

        Raises:
            ProtlmError: when they cannot be written.
        """
        arrays = {f"variables/{k}": v for k, v in flatten_dict(self.variables, sep="/").items()}
        for kind, by_target in (("valid", self.valid), ("penalties", self.penalties)):
            arrays |= {f"{kind}/{heads.key(name)}": values for name, values in by_target.items()}
        arrays |= {"mean": self.standard.mean, "scale": self.standard.scale}
        arrays |= {"epochs": self.epochs, "best_epoch": self.best_epoch}
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        about = {
            "format": FORMAT,
            "head": self.head,
            "targets": [dataclasses.asdict(target) for target in self.targets],
            "seeds": self.seeds,
            "units": dict(self.units),
        }
        write_atomically(folder / "heads.npz", file.getvalue())
        write_json(folder / "heads.json", about)


def load(folder: Path) -> TrainedHeads:
    """Reads what `TrainedHeads.save` wrote.

    Raises:
        ProtlmError: when files are missing or broken.
    """
    try:
        about = read_json(folder / "heads.json")
        targets = tuple(Target(**{**t, "classes": tuple(t["classes"])}) for t in about["targets"])
        with np.load(folder / "heads.npz") as file:
            arrays = {name: file[name] for name in file.files}
        if about.get("format", 1) < FORMAT:  # names stood there as they are
            for target in targets:
                old, new = f"/{target.name}", f"/{heads.key(target.name)}"
                arrays = {name.replace(old, new): array for name, array in arrays.items()}
        tree = unflatten_dict({tuple(name.split("/")): array for name, array in arrays.items()})
        named = {
            kind: {t.name: of[k] for t in targets if (k := heads.key(t.name)) in of}
            for kind in ("valid", "penalties")
            for of in (tree.get(kind, {}),)
        }
        return TrainedHeads(
            head=about["head"],
            targets=targets,
            seeds=tuple(about["seeds"]),
            variables=tree["variables"],
            standard=Standard(tree["mean"], tree["scale"]),
            units={name: (mean, sd) for name, (mean, sd) in about["units"].items()},
            epochs=tree["epochs"],
            best_epoch=tree["best_epoch"],
            valid=named["valid"],
            penalties=named["penalties"],
        )
    except _BROKEN as error:
        raise ProtlmError(
            f"cannot read trained heads from {folder} ({error}); the folder needs heads.json and "
            "heads.npz as `protlm probe --output` writes them"
        ) from error


@partial(jax.jit, static_argnames=("module", "slots"))
def answer(
    module: Any,
    variables: Mapping[str, Any],
    standard: Standard,
    features: jax.Array,
    protein: jax.Array,
    slots: int,
) -> heads.Answers:
    """target -> probabilities [S, N, T or P, C], or standardised numbers [S, N, T or P, 1]."""

    def one(variables: Mapping[str, Any], x: jax.Array) -> heads.Answers:
        return module.apply(variables, x, protein, slots, False)

    x = standard.apply(features, protein)
    found = jax.vmap(jax.vmap(one), in_axes=(0, None))(variables, x)
    return {
        target.name: jax.nn.softmax(found[target.name])
        if target.kind == "classes"
        else found[target.name]
        for target in module.targets
    }
