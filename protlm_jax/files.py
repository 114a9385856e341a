"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from protlm_jax.errors import ProtlmError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a whole file or none of it.

    Raises:
        ProtlmError: when the folder or the disk does not take it; what was there stays as it was.
    """
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name when the block ends well, and is gone when it does not.

    Raises:
        ProtlmError: as `write_atomically`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # an interruption after it got its name
                os.unlink(temporary)
            raise
    except OSError as error:
        raise ProtlmError(
            f"cannot write {path}: {error.strerror}; free space or choose another folder"
        ) from error
