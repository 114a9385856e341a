"""Trained probes on disk: the heads, and the model that they belong to.

FOLDER/probes.json         which heads there are, and which did best on validation
FOLDER/HEAD/heads.npz      and heads.json: the heads of all seeds, at the layer chosen
FOLDER/HEAD/probe.json     what they were trained on, the model's identity, layer and window
FOLDER/HEAD/digests.json   the digests of these files
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import Target
from protlm_jax.evaluation.probes import heads
from protlm_jax.evaluation.probes.moments import Standard
from protlm_jax.evaluation.probes.results import ProbeResult
from protlm_jax.evaluation.probes.run import Probed
from protlm_jax.evaluation.probes.trained import TrainedHeads
from protlm_jax.models.identity import identity
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.storage.digests import Damaged, seal, verify
from protlm_jax.storage.files import write_atomically
from protlm_jax.storage.json_files import read_json, write_json
from protlm_jax.vocabularies import Rare

# Format 1 had names of targets in heads.npz without encoding, no digests, and another identity.
FORMAT = 2
_INDEX = "probes.json"
_REMEDY = "copy it again, or probe again"

# What NumPy raises of a file that is not .npz, and Python of JSON of another form.
_BROKEN = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class SavedProbe:
    """Heads of the layer that validation chose, and what they belong to.

    `about` has "model" (name), "identity", "vocabulary", "layer", "level", "rows", "window",
    "rare_residues", "compute", "benchmark", "train_proteins" and "valid". Format 1 had
    "parameters", the digest of a sample, in the place of "identity".
    """

    heads: TrainedHeads
    about: dict[str, Any]

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.heads.targets

    @property
    def described(self) -> str:
        """For people: which head this is, and what it learned from."""
        about = self.about
        return (
            f"{self.heads.head} head on layer {about['layer']} of {about['num_layers']} of "
            f"{about['model']}, trained on {about['train_proteins']:,} proteins of "
            f"{about['benchmark']}"
        )

    @property
    def rare_residues(self) -> Rare:
        """How its training read rare residues: as X, before it was recorded."""
        return "keep" if self.about.get("rare_residues") == "keep" else "X"


def save(probed: Probed, loaded: LoadedModel, folder: Path) -> None:
    """Writes all heads of a probe, and last the file that lists them."""
    result = ProbeResult(probed.result)
    scores: dict[str, float] = {}
    model = identity(loaded)
    for head, trained in probed.heads.items():
        save_heads(trained, folder / head)
        about = {
            "format": FORMAT,
            "model": loaded.name,
            "identity": model,
            "vocabulary": loaded.vocabulary.name,
            "layer": result.layer(head, "model"),
            "num_layers": probed.result.attrs["num_layers"],
            "level": result.benchmark["level"],
            "rows": probed.rows[head],
            "window": probed.result.attrs["window"] or None,
            "rare_residues": loaded.rare_residues,
            "compute": probed.compute,
            "benchmark": result.benchmark["title"],
            "train_proteins": result.benchmark["splits"]["train"]["proteins"],
            "valid": {name: float(values.mean()) for name, values in trained.valid.items()},
        }
        write_json(folder / head / "probe.json", about)
        seal(folder / head)
        scores[head] = float(np.mean(list(about["valid"].values())))
    write_json(folder / _INDEX, {"heads": scores, "best": max(scores, key=scores.__getitem__)})


def load(folder: Path) -> SavedProbe:
    """Reads one probe: of a head's folder, or the best on validation of a folder of several.

    Args:
        folder: of a head, of all heads, or the output of `protlm probe`.

    Raises:
        ProtlmError: there is no probe, or it is damaged.
    """
    place = folder / "probe" if (folder / "probe" / _INDEX).exists() else folder
    if (place / _INDEX).exists():
        index = read_json(place / _INDEX, remedy=_REMEDY)
        found, best = index.get("heads"), index.get("best")
        if not isinstance(found, dict) or not isinstance(best, str) or best not in found:
            raise ProtlmError(f"{place / _INDEX} names no best head: {_REMEDY}")
        place = place / best
    file = place / "probe.json"
    if not file.exists():
        raise ProtlmError(
            f"{folder} holds no probe: name the --output of `protlm probe`, or the folder of one "
            "of its heads"
        )
    try:
        verify(place, what=f"probe {place}")
    except Damaged as error:
        raise Damaged(f"{error}: {_REMEDY}") from error
    return SavedProbe(load_heads(place), read_json(file, remedy=_REMEDY))


def save_heads(trained: TrainedHeads, folder: Path) -> None:
    """Writes heads.npz and then heads.json."""
    arrays = {f"variables/{k}": v for k, v in flatten_dict(trained.variables, sep="/").items()}
    by_kind = {"valid": trained.valid, "losses": trained.losses, "penalties": trained.penalties}
    for kind, by_target in by_kind.items():
        arrays |= {f"{kind}/{heads.key(name)}": values for name, values in by_target.items()}
    arrays |= {"mean": trained.standard.mean, "scale": trained.standard.scale}
    arrays |= {"epochs": trained.epochs, "best_epoch": trained.best_epoch}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    about = {
        "format": FORMAT,
        "head": trained.head,
        "targets": [asdict(target) for target in trained.targets],
        "seeds": trained.seeds,
        "units": dict(trained.units),
    }
    write_atomically(folder / "heads.npz", file.getvalue())
    write_json(folder / "heads.json", about)


def load_heads(folder: Path) -> TrainedHeads:
    """Reads what `save_heads` wrote; ProtlmError where files are missing or broken."""
    try:
        about = read_json(folder / "heads.json")
        targets = tuple(Target(**{**t, "classes": tuple(t["classes"])}) for t in about["targets"])
        with np.load(folder / "heads.npz") as file:
            arrays = {name: file[name] for name in file.files}
        if about.get("format", 1) < FORMAT:
            for target in targets:
                old, new = f"/{target.name}", f"/{heads.key(target.name)}"
                arrays = {name.replace(old, new): array for name, array in arrays.items()}
        tree = unflatten_dict({tuple(name.split("/")): array for name, array in arrays.items()})
        valid, losses, penalties = (
            {t.name: of[k] for t in targets if (k := heads.key(t.name)) in of}
            for of in (tree.get(kind, {}) for kind in ("valid", "losses", "penalties"))
        )
        return TrainedHeads(
            head=about["head"],
            targets=targets,
            seeds=tuple(about["seeds"]),
            variables=tree["variables"],
            standard=Standard(tree["mean"], tree["scale"]),
            units={name: (mean, sd) for name, (mean, sd) in about["units"].items()},
            epochs=tree["epochs"],
            best_epoch=tree["best_epoch"],
            valid=valid,
            losses=losses,
            penalties=penalties,
        )
    except _BROKEN as error:
        raise ProtlmError(
            f"cannot read trained heads from {folder} ({error}); the folder needs heads.json and "
            "heads.npz as `protlm probe --output` writes them"
        ) from error


def require_reading(probe: SavedProbe, rare: Rare | None, window: int | None) -> None:
    """Raises ProtlmError where the options read proteins in another way than the training did.

    Refusing rare residues changes no reading.
    """
    if rare in ("X", "keep") and rare != probe.rare_residues:
        option = f"--rare_residues {probe.rare_residues.lower()}"
    elif window is not None and window != probe.about["window"]:
        option = f"--window {probe.about['window']}"
    else:
        return
    raise ProtlmError(
        f"the probe was trained with {option}: leave the argument away, or probe again"
    )


def require_model(probe: SavedProbe, loaded: LoadedModel) -> None:
    """Raises ProtlmError where a model is not the one whose features the heads have learned."""
    if "identity" in probe.about:
        same = probe.about["identity"] == identity(loaded)
    else:
        same = probe.about.get("parameters") == _sampled(loaded)
    if not same:
        raise ProtlmError(
            f"the probe was trained on features of {probe.about['model']}, and {loaded.name} has "
            "other parameters or another vocabulary: its features mean something else. Give "
            "--model the probe's own model, or probe this one"
        )


def _sampled(loaded: LoadedModel) -> str:
    """The identity of format 1: a sample of the parameters, and all fields of the config."""
    plain = loaded.config.replace(dtype="float32", attention_backend="xla")
    about = json.dumps([plain.to_dict(), loaded.vocabulary.to_dict()], sort_keys=True)
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    for key, leaf in jax.tree_util.tree_leaves_with_path(loaded.params):
        sample = np.asarray(leaf).reshape(-1)[:: max(1, leaf.size // 4096)]
        digest.update(jax.tree_util.keystr(key).encode() + np.ascontiguousarray(sample).tobytes())
    return digest.hexdigest()
