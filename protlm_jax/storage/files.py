"""Files that are complete or absent."""

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
    """Writes a whole file or none of it; raises a ProtlmError if it cannot be written."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which gets its name when the block succeeds and is removed when it fails.

    A symbolic link of that name is replaced, not followed. Permissions follow the process's umask.
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


def cannot_write(path: Path, error: BaseException) -> ProtlmError:
    """The error for a place that cannot be written, with the system's reason and the remedy.

    Libraries that write by native code give the system's message as a part of their text.
    """
    text = str(error)
    no_room = [n for n in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) if os.strerror(n) in text]
    if no_room:
        reason = os.strerror(no_room[0])  # the rest are paths, of one file among many
    else:
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or text
    first = (str(reason).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
    remedy = "free some space or choose another place" if no_room else "choose another place"
    return ProtlmError(f"cannot write {path}: {first}; {remedy}")


def umask() -> int:
    """Permission bits that are cleared in the process's new files."""
    try:  # os.umask can be read only by setting it, which other threads would see
        status = Path("/proc/self/status").read_text()
        return int(status.split("Umask:", 1)[1].split(None, 1)[0], 8)
    except (OSError, IndexError, ValueError):  # no Linux
        current = os.umask(0o022)
        os.umask(current)
        return current
