"""One process at a time writes to a place.

The owner holds a lock file, `.lock` in a folder or `.NAME.lock` beside a file, with its host,
process and command. On one machine the kernel's lock on that file (flock) decides: it ends with its
process, so the file of a killed process is taken over, and a stopped process still owns its place.
Shared disks may keep such locks to each machine. Therefore the owner touches the file every few
seconds, and a process on another machine first watches whether it is touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.files import cannot_write

LOCK = ".lock"
BEAT = 3.0  # seconds between two touches of the lock file
SILENCE = 20.0  # seconds without one, after which an owner on another machine counts as gone


class Occupied(ProtlmError):
    """Another process is writing to the place."""


@contextlib.contextmanager
def owned(place: Path, *, inside: bool = False) -> Iterator[None]:
    """Locks a file or folder for this process while the block runs; missing parents are made.

    With `inside`, `place` is a folder that is filled step by step, with the lock in it, since its
    parent may not be writable; it is made where it is missing and removed again while empty. Raises
    Occupied where another process owns it, and ProtlmError where the lock cannot be written.
    """
    place = Path(os.path.abspath(place))
    lock = place / LOCK if inside else place.with_name(f".{place.name[:200]}{LOCK}")
    made = inside and not place.exists()
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _taken(lock, place)
    except OSError as error:
        raise cannot_write(lock, error) from error
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(descriptor, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(OSError):  # the folder itself may have been moved or removed
            if _same_file(descriptor, lock):
                lock.unlink()
            if made:
                place.rmdir()  # fails where something is in it
        os.close(descriptor)


def _taken(lock: Path, place: Path) -> int:
    """The descriptor of the lock file, locked."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            if not _locked(descriptor):
                raise _occupied(place, _who(descriptor))
            if not _same_file(descriptor, lock):  # its owner has just removed it
                os.close(descriptor)
                continue
            owner = _who(descriptor)
            if owner and owner.get("machine") != _machine() and _alive(lock):
                raise _occupied(place, owner)
            about = {"host": socket.gethostname(), "process": os.getpid(), "machine": _machine()}
            about["command"] = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])[:500]
            content = json.dumps(about).encode() + b"\n"
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
            os.fsync(descriptor)
            return descriptor
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise


def _locked(descriptor: int) -> bool:
    """Whether this process got the kernel's lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise
        # A disk without locks: the content decides.
        owner = _who(descriptor)
        here = owner.get("machine") == _machine() and owner.get("process") != os.getpid()
        return not (here and _running(owner.get("process")))
    return True


def _alive(lock: Path) -> bool:
    """Whether an owner on another machine touches its file."""
    first = os.stat(lock).st_mtime_ns
    until = time.monotonic() + SILENCE
    while time.monotonic() < until:
        time.sleep(BEAT / 3)
        with lock.open("rb") as file:  # opening asks the server anew
            if os.fstat(file.fileno()).st_mtime_ns != first:
                return True
    return False


def _beat(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _occupied(place: Path, owner: dict[str, object]) -> Occupied:
    who = f"process {owner['process']} on {owner['host']}" if owner else "another process"
    what = f" ({owner['command']})" if owner.get("command") else ""
    return Occupied(
        f"{place} is being written by {who}{what}: wait for it to end, or choose another place"
    )


def _who(descriptor: int) -> dict[str, object]:
    """The content of a lock file; {} where it was just made, or is something else."""
    try:
        value = json.loads(os.pread(descriptor, 1 << 12, 0))
    except ValueError:
        return {}
    return value if isinstance(value, dict) and {"process", "host"} <= value.keys() else {}


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev)


def _machine() -> str:
    """Identifies a machine whose processes see each other's locks: one boot of one kernel."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _running(process: object) -> bool:
    if not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
