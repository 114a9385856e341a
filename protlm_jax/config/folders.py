"""Which run a folder holds.

A run made in phases is a folder of runs, `<number>-<name>/`; T5X's is a model_dir with
`checkpoint_<step>/` in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protlm_jax.data.config import DataConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.json_files import read_json
from protlm_jax.storage.typed import from_fields

if TYPE_CHECKING:
    from protlm_jax.vocabularies import Rare

PHASES = "phases.json"  # beside the phases' folders; see `protlm_jax.training.phases`


def phase_folder(workdir: Path, number: int, name: str) -> Path:
    """Folder of one phase; `number` counts from 1."""
    return workdir / f"{number}-{name}"


def saved_steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints in a `checkpoints` folder, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit() and p.is_dir())


def latest_step(directory: Path) -> int | None:
    """The newest complete checkpoint in a `checkpoints` folder, None where there is none."""
    return max(saved_steps(directory), default=None)


def has_begun(workdir: Path) -> bool:
    """Whether something was trained in this folder."""
    return (workdir / "config.json").exists() and (workdir / "metrics.jsonl").exists()


def newest_run(folder: Path) -> Path:
    """The folder itself; of a run made in phases, the last phase that has a checkpoint, or else
    the first phase."""
    if not (folder / PHASES).exists():
        return folder
    phases = [p for p in folder.iterdir() if p.is_dir() and p.name.partition("-")[0].isdigit()]
    phases.sort(key=lambda path: int(path.name.partition("-")[0]))
    saved = [p for p in phases if any(s.name.isdigit() for s in p.glob("checkpoints/*"))]
    return (saved[-1:] or phases[:1] or [folder])[0]


@dataclass(frozen=True)
class Recorded:
    """What a run's config.json says about its data; empty for folders without one.

    `fields` is all of it, `data` what the run was trained on, None for an imported model.
    """

    file: Path
    fields: dict[str, Any]
    data: DataConfig | None

    @property
    def imported_from(self) -> str:
        """Name of the folder that an imported model came from; "" for others."""
        return str(self.fields.get("imported_from") or "")

    @property
    def rare_residues(self) -> Rare:
        """How U, Z, O and B are read: "X" or "keep"."""
        if self.data is not None:
            return self.data.rare_residues
        return "keep" if self.fields.get("rare_residues") == "keep" else "X"

    @property
    def row(self) -> int | None:
        """Tokens of a row in training; None where the file does not say."""
        if self.data is not None:
            return self.data.length
        value = self.fields.get("row")
        return value if type(value) is int and 0 < value < 2**31 else None

    def section(self, name: str) -> dict[str, Any]:
        """One of its sections; empty where there is none. Raises a ProtlmError if it is no dict."""
        value = self.fields.get(name, {})
        if not isinstance(value, dict):
            raise ProtlmError(f"{self.file}: {name} is {value!r:.60}; it must be a section")
        return value


def recorded(path: str | Path) -> Recorded:
    """The record of a run, of which `path` is the folder or a checkpoint.

    Raises a ProtlmError where its config.json cannot be read, or is of a newer version.
    """
    folder = newest_run(Path(path).resolve())
    if folder.parent.name == "checkpoints":
        folder = folder.parents[1]
    file = folder / "config.json"
    fields = read_json(file) if file.exists() else {}
    if "model_type" in fields or "data" not in fields:
        return Recorded(file, {} if "model_type" in fields else fields, None)
    return Recorded(file, fields, from_fields(DataConfig, fields["data"], f"{file}: data"))


def t5x_checkpoint(folder: Path) -> Path | None:
    """The folder itself, or a model_dir's newest checkpoint; None where T5X wrote neither."""
    if _is_t5x_checkpoint(folder):
        return folder
    found = filter(_is_t5x_checkpoint, folder.glob("checkpoint_*"))
    return max(found, key=t5x_step, default=None)


def t5x_step(checkpoint: Path) -> int:
    """Number of updates of `<model_dir>/checkpoint_<step>`."""
    return int(checkpoint.name.rpartition("_")[2])


def _is_t5x_checkpoint(folder: Path) -> bool:
    """Whether it is complete, as Orbax or T5X itself wrote it; both rename what is complete."""
    if not re.fullmatch(r"checkpoint_\d+", folder.name):
        return False
    return (folder / "state").is_dir() or (folder / "checkpoint").is_file()
