"""Long work in finished parts, which outlast a kill.

    claim(folder, settings)                # begins, or goes on with the same settings
    if (about := finished(folder / "a.json")) is None:
        ...                                # write folder / "a.bin"
        finish(folder / "a.json", [folder / "a.bin"], proteins=12)

A part is a note, a JSON file with a digest of itself, and the files that the note lists with their
sizes and digests. The note is written last: a part without a note, or changed since, is made again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import entries_of, verify_entries
from protlm_jax.storage.json_files import read_json, write_json

log = logging.getLogger(__name__)

SETTINGS = "settings.json"
FILES = "files"
_DAMAGE = (ProtlmError, LookupError, TypeError, ValueError, AttributeError)


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Begins work in a folder, or goes on with the work that lies there; the caller owns it.

    Args:
        settings: JSON of all that decides the results.

    Raises:
        ProtlmError: the folder holds work with other settings, or cannot be read or written.
    """
    file = folder / SETTINGS
    if not file.exists():
        write_json(file, settings)
    elif other := differences(read_json(file, remedy=f"delete {folder}"), settings):
        raise ProtlmError(
            f"{folder} holds unfinished work with other settings: {'; '.join(other)}. Use these "
            f"again, or delete that folder"
        )


def finish(note: Path, files: Iterable[Path] = (), **about: Any) -> dict[str, Any]:
    """Writes the note of a part that is complete, and gives what `finished` will give.

    Args:
        note: its place, NAME.json. A note of that name is replaced, and files are removed that it
            listed and the new one does not.
        files: of the part, all in the note's folder.
        about: what else the note says, as JSON.

    Raises:
        ProtlmError: the disk does not take the note.
    """
    before: set[str] = set()
    with contextlib.suppress(*_DAMAGE):
        before = set(_read(note)[FILES])
    about[FILES] = entries_of(note.parent, only=files)
    write_json(note, about, indent=None)
    for name in before - about[FILES].keys():
        (note.parent / name).unlink(missing_ok=True)
    return about


def finished(note: Path, *, remedy: str = "it is made again") -> dict[str, Any] | None:
    """The content of a note, with "files", name -> [bytes, digest], of a part that is complete.

    None where there is none, and, with a warning, where the note or a file is damaged.
    """
    if not note.exists():
        return None
    try:
        about = _read(note)
        verify_entries(note.parent, about[FILES], what=note.name)
        return about
    except _DAMAGE:
        log.warning("%s is damaged: %s", note.with_suffix(""), remedy)
        return None


def differences(made: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The settings that are not what they were, one line each."""
    if made.get("format") != wanted.get("format"):
        return ["another version of protlm wrote it"]
    return [
        f"{name} was {made.get(name)!r} and is {wanted.get(name)!r}"
        for name in sorted(made.keys() | wanted.keys())
        if made.get(name) != wanted.get(name)
    ]


def _read(note: Path) -> dict[str, Any]:
    about = read_json(note)
    if any(name != Path(name).name for name in about[FILES]):
        raise ValueError(f"{note} names files of other folders")
    return about
