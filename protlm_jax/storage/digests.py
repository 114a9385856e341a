"""Whether files are what they were when they were written.

A folder is sealed by one file that lists the size and the digest of each of the others. The digest
is XXH3 (128 bits): at 10 GB/s a core it costs little beside the disk, and it sees every change that
was not made on purpose. Without the package xxhash it is BLAKE2b, which is ten times slower. The
seal says which.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.files import write_atomically

try:
    import xxhash
except ImportError:
    xxhash = None  # type: ignore[assignment]

SEAL = "digests.json"

_CHUNK = 1 << 22
_ALGORITHMS: dict[str, Callable[[], Any] | None] = {
    "xxh3": xxhash.xxh3_128 if xxhash else None,
    "blake2b": lambda: hashlib.blake2b(digest_size=16),
}
FASTEST = "xxh3" if xxhash else "blake2b"


class Damaged(ProtlmError):
    """Something on disk is not as it was written: a file is missing, or its content has changed."""


def digest_of(file: Path, algorithm: str = FASTEST) -> str:
    """A file's content as "algorithm:hexadecimal digits".

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no such algorithm.
        ProtlmError: this machine does not have it.
    """
    state = _started(algorithm)
    buffer = memoryview(bytearray(_CHUNK))
    with file.open("rb", buffering=0) as opened:
        while size := opened.readinto(buffer):
            state.update(buffer[:size])
    return f"{algorithm}:{state.hexdigest()}"


def digest_of_data(data: Any, algorithm: str = FASTEST) -> str:
    """As `digest_of`, of contiguous data at hand.

    Raises:
        ValueError: there is no such algorithm.
        ProtlmError: this machine does not have it.
    """
    state = _started(algorithm)
    state.update(data)
    return f"{algorithm}:{state.hexdigest()}"


def _started(algorithm: str) -> Any:
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"no algorithm {algorithm!r}")
    new = _ALGORITHMS[algorithm]
    if new is None:
        raise ProtlmError("digests of this kind need a package: pip install xxhash")
    return new()


def entries_of(
    folder: Path, seal: str = SEAL, *, only: Iterable[Path] | None = None
) -> dict[str, list[Any]]:
    """Path below the folder -> [bytes, digest] of all its files but the seal and hidden ones.

    Args:
        only: the files that count instead.
    """
    if only is None:
        only = (file for file in folder.rglob("*") if not file.name.startswith("."))
    names = sorted(
        str(file.relative_to(folder)) for file in only if file.is_file() and file.name != seal
    )
    with ThreadPoolExecutor(4) as pool:  # hashing and reading let other threads run
        digests = pool.map(lambda name: digest_of(folder / name), names)
        return {
            name: [(folder / name).stat().st_size, digest]
            for name, digest in zip(names, digests, strict=True)
        }


def seal(folder: Path, name: str = SEAL, *, only: Iterable[Path] | None = None) -> None:
    """Writes down what the files of a complete folder are, or some of them.

    Raises:
        ProtlmError: the folder does not take the file.
        OSError: a file cannot be read.
    """
    lines = json.dumps(entries_of(folder, name, only=only), indent=0, sort_keys=True)
    write_atomically(folder / name, lines + "\n")


def verify(folder: Path, name: str = SEAL, *, what: str = "") -> None:
    """Compares a folder's files with its seal; a folder without one is taken as it is.

    Args:
        folder: what `seal` was called with, wherever it lies now.
        name: of the seal.
        what: names the folder in messages, as in "checkpoint runs/a/checkpoints/5".

    Raises:
        Damaged: a file is missing or has changed, or the seal has.
        ProtlmError: a file cannot be read, which says nothing about its content.
    """
    file = folder / name
    what = what or str(folder)
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ProtlmError(f"{file} cannot be read: {error.strerror}") from error
    try:
        entries = json.loads(content)
        # Seals of format 2 held sizes alone.
        expected = {n: e if isinstance(e, list) else [e, None] for n, e in entries.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise Damaged(f"{what} is damaged: {name} is not the JSON that was written") from error
    verify_entries(folder, expected, what=what)


def verify_entries(folder: Path, entries: Mapping[str, Any], *, what: str) -> None:
    """As `verify`, with the entries at hand: path -> [bytes, digest or None]."""

    def check(entry: tuple[str, Any]) -> str:
        name, told = entry
        try:
            size, digest = told
            file = folder / name
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes instead of {size}"
            if digest is not None and digest_of(file, digest.partition(":")[0]) != digest:
                return f"the content of {name} has changed"
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"
        except OSError as error:
            raise ProtlmError(f"{folder / name} cannot be read: {error.strerror}") from error
        except (TypeError, ValueError, AttributeError):
            return f"the entry of {name} is no size and digest"
        return ""

    with ThreadPoolExecutor(4) as pool:
        for reason in pool.map(check, entries.items()):
            if reason:
                raise Damaged(f"{what} is damaged: {reason}")
