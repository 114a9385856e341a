"""Sizes and digests of files, by which changed files are detected.

A folder is sealed by one file that lists the size and the digest of each of the others. The digest
is XXH3 (128 bits), at 10 GB/s a core, which detects every accidental change; without the package
xxhash it is BLAKE2b, which is ten times slower. The seal names its algorithm.
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
    """A file is not as it was written: it is missing, or its content has changed."""


def digest_of(file: Path, algorithm: str = FASTEST) -> str:
    """A file's content as "algorithm:hexadecimal digits".

    Raises OSError where the file cannot be read, ValueError for an unknown algorithm, and
    ProtlmError where this machine does not have it.
    """
    state = _started(algorithm)
    buffer = memoryview(bytearray(_CHUNK))
    with file.open("rb", buffering=0) as opened:
        while size := opened.readinto(buffer):
            state.update(buffer[:size])
    return f"{algorithm}:{state.hexdigest()}"


def digest_of_data(data: Any, algorithm: str = FASTEST) -> str:
    """As `digest_of`, of a contiguous buffer."""
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
    """Path below the folder -> [bytes, digest] of `only` these files, or of all except the seal and
    hidden ones."""
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
    """Writes the entries of a complete folder, see `entries_of`, to its seal."""
    lines = json.dumps(entries_of(folder, name, only=only), indent=0, sort_keys=True)
    write_atomically(folder / name, lines + "\n")


def verify(folder: Path, name: str = SEAL, *, what: str = "") -> None:
    """Compares a folder's files with its seal; a folder without one is accepted.

    `what` names the folder in messages, as in "checkpoint runs/a/checkpoints/5". Raises Damaged
    where a file is missing or has changed, or the seal has; ProtlmError where a file cannot be
    read.
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
    """As `verify`, with entries: path -> [bytes, digest or None]."""

    def check(entry: tuple[str, Any]) -> str:
        name, expected = entry
        try:
            size, digest = expected
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
