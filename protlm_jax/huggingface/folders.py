"""Folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from protlm_jax.errors import ProtlmError


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place, and replaces it, when the block ends well.

    Raises:
        ProtlmError: the disk is full or may not be written; `target` is as it was.
    """
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        _move_into_place(partial, target)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ProtlmError(
            f"{target} could not be written: {reason}. Free some space or choose another output; "
            f"nothing that was there is lost"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_into_place(partial: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.replaced-{os.getpid()}")
    if target.exists():
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
