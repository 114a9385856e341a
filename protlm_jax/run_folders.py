"""Which run a folder stands for.

A run made in phases is a folder of runs, `<number>-<name>/`; T5X's is a model_dir with
`checkpoint_<step>/` in it.
"""

from __future__ import annotations

import re
from pathlib import Path

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
