"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
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

    A symbolic link of that name is replaced, not followed. The file is readable to those whom the
    process's umask allows.

    Raises:
        ProtlmError: as `write_atomically`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:200]}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # an interruption after it got its name
                os.unlink(temporary)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> ProtlmError:
    """The error for a place that does not take what is written to it, with the remedy.

    Libraries that write by native code give the system's message as a part of their text.
    """
    full = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    no_room = getattr(error, "errno", None) in full or any(
        os.strerror(n) in str(error) for n in full
    )
    remedy = "free some space or choose another place" if no_room else "choose another place"
    reason = getattr(error, "strerror", None) or getattr(error, "message", None) or error
    return ProtlmError(f"cannot write {path}: {reason}; {remedy}")


def umask() -> int:
    """The permissions that the process's new files do not get."""
    try:  # os.umask can be read only by setting it, which other threads would see
        status = Path("/proc/self/status").read_text()
        return int(status.split("Umask:", 1)[1].split(None, 1)[0], 8)
    except (OSError, IndexError, ValueError):  # no Linux
        current = os.umask(0o022)
        os.umask(current)
        return current
