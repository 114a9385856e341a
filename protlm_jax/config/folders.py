"""Which run a folder stands for.

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

PHASES = "phases.json"  # lies beside the phases' folders and says what happened between them


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
    """The folder itself; of a run made in phases, the last phase that has a checkpoint.

    Before the first checkpoint it is the first phase.
    """
    if not (folder / PHASES).exists():
        return folder
    phases = [p for p in folder.iterdir() if p.is_dir() and p.name.partition("-")[0].isdigit()]
    phases.sort(key=lambda path: int(path.name.partition("-")[0]))
    saved = [p for p in phases if any(s.name.isdigit() for s in p.glob("checkpoints/*"))]
    return (saved[-1:] or phases[:1] or [folder])[0]


@dataclass(frozen=True)
class Recorded:
    """What a run's config.json says of its data; nothing of what is no run of ours.

    Attributes:
        file: its path.
        fields: all of it.
        data: what the run was trained on; None for an imported model.
    """

    file: Path
    fields: dict[str, Any]
    data: DataConfig | None

    @property
    def imported_from(self) -> str:
        """The name of the folder that an imported model came from; "" for others."""
        return str(self.fields.get("imported_from") or "")

    @property
    def rare_residues(self) -> Rare:
        """What became of U, Z, O and B in training, or in the folder that was imported."""
        if self.data is not None:
            return self.data.rare_residues
        return "keep" if self.fields.get("rare_residues") == "keep" else "X"

    @property
    def row(self) -> int | None:
        """Tokens in a row of its training, or of the model that was imported; None if not said."""
        if self.data is not None:
            return self.data.length
        value = self.fields.get("row")
        return value if type(value) is int and 0 < value < 2**31 else None

    def section(self, name: str) -> dict[str, Any]:
        """One of its sections; empty where there is none.

        Raises:
            ProtlmError: it is something else.
        """
        value = self.fields.get(name, {})
        if not isinstance(value, dict):
            raise ProtlmError(f"{self.file}: {name} is {value!r:.60}; it must be a section")
        return value


def recorded(path: str | Path) -> Recorded:
    """What the run says that a path stands for: its folder, or one of its checkpoints.

    Raises:
        ProtlmError: its config.json cannot be read, or is of a newer version.
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
    """The T5X checkpoint that a folder stands for: itself, or a model_dir's newest; else None."""
    if _is_t5x_checkpoint(folder):
        return folder
    found = filter(_is_t5x_checkpoint, folder.glob("checkpoint_*"))
    return max(found, key=t5x_step, default=None)


def t5x_step(checkpoint: Path) -> int:
    """How many updates the parameters of `<model_dir>/checkpoint_<step>` have seen."""
    return int(checkpoint.name.rpartition("_")[2])


def _is_t5x_checkpoint(folder: Path) -> bool:
    """Whether T5X finished it, with Orbax or as before; it renames what is complete."""
    if not re.fullmatch(r"checkpoint_\d+", folder.name):
        return False
    return (folder / "state").is_dir() or (folder / "checkpoint").is_file()
