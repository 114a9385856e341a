"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from protlm_jax.errors import ProtlmError


def write_atomically(path: Path, text: str) -> None:
    """Writes a whole file or none of it.

    Raises:
        ProtlmError: when the folder or the disk does not take it; what was there stays as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise ProtlmError(
            f"cannot write {path}: {error.strerror}; free space or choose another folder"
        ) from error
