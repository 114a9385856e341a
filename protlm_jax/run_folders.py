"""Which run a folder stands for: a run made in phases is a folder of runs, `<number>-<name>/`."""

from __future__ import annotations

from pathlib import Path

PHASES = "phases.json"  # lies beside the phases' folders and says what happened between them


def phase_folder(workdir: Path, number: int, name: str) -> Path:
    """Folder of one phase; `number` counts from 1."""
    return workdir / f"{number}-{name}"


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
