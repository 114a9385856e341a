"""Folders that appear complete or not at all."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.files import cannot_write
from protlm_jax.storage.owner import owned


@contextmanager
def written_whole(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when the block ends well.

    Until then it is called `.NAME.partial`. One process at a time writes such a folder; what a
    killed one has left is cleared, and what it was about to replace is put back first.

    Args:
        target: the folder to be; a symbolic link of that name is replaced, not followed.
        replace: whether `target` may be there with something in it. Only what is there now is
            replaced, nothing that appears meanwhile.

    Raises:
        ProtlmError: the disk is full or may not be written, or `target` is in the way; it is as it
            was.
        Occupied: another process is writing it.
    """
    partial = target.with_name(f".{target.name}.partial")
    with owned(partial):
        _clear(target)
        before = _which(target)
        if before and not replace and (not target.is_dir() or any(target.iterdir())):
            raise ProtlmError(f"{target} is not an empty folder: choose another output")
        try:
            partial.mkdir(parents=True)
            yield partial
            if _which(target) != before:
                raise ProtlmError(
                    f"{target} is not what it was when writing began, and is left as it is: choose "
                    "another output"
                )
            _move_into_place(partial, target)
        except (OSError, SafetensorError) as error:
            raise cannot_write(target, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _clear(target: Path) -> None:
    """Removes what killed processes left, of which older versions appended their numbers."""

    def left(what: str) -> list[Path]:
        name = glob.escape(f".{target.name}.{what}")
        return [*target.parent.glob(name), *target.parent.glob(f"{name}-[0-9]*")]

    for old in left("replaced"):
        if _which(target):
            _remove(old)
        else:  # killed between the two renames
            old.rename(target)
    for partial in left("partial"):
        _remove(partial)


def _move_into_place(partial: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.replaced")
    there = _which(target)
    if there:
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if there:
            old.rename(target)
        raise
    if there:
        _remove(old)


def _which(target: Path) -> tuple[int, int] | None:
    """Tells what lies there from anything else; None where nothing does."""
    try:
        status = target.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _remove(path: Path) -> None:
    """A file, a link, or a folder with all that is in it."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
