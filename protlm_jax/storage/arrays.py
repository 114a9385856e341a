"""NumPy archives (.npz) of any origin, read with bounds."""

from __future__ import annotations

import math
import stat
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from protlm_jax.errors import ProtlmError

LARGEST = 1 << 32  # bytes of all arrays together

_METHODS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1100}  # bytes from one byte at most
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(
    file: Path, *, largest: int = LARGEST, remedy: str = "copy it again"
) -> dict[str, np.ndarray]:
    """All arrays of an archive as `numpy.savez` writes it, in its order; nothing in it is
    unpickled.

    The sizes that the archive and each array claim are compared with each other, with the bytes
    that are there, and with `largest` (bytes of all arrays together), before memory is taken.
    Raises a ProtlmError, with the `remedy`, where it is missing, damaged, too large, or something
    else.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a named pipe would be waited for
            raise ProtlmError(f"{file} is not an ordinary file")
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _require_bounds(members, file.stat().st_size, largest)
            arrays = {m.filename.removesuffix(".npy"): _array(archive, m) for m in members}
    except ProtlmError:
        raise
    except OSError as error:
        raise ProtlmError(f"{file} cannot be read: {error.strerror or error}") from error
    except MemoryError:
        raise
    except Exception as error:  # zipfile and zlib raise seven kinds at what is no archive
        raise ProtlmError(f"{file} is no .npz file, or is damaged ({error}): {remedy}") from error
    if len(arrays) < len(members):
        raise ProtlmError(f"{file} holds two arrays of one name: {remedy}")
    return arrays


def _require_bounds(members: list[zipfile.ZipInfo], there: int, largest: int) -> None:
    """Raises ValueError for members that are no arrays, or claim more than their bytes hold."""
    for member in members:
        if not member.filename.endswith(".npy"):
            raise ValueError(f"{member.filename!r} is no array")
        if member.flag_bits & 0x1:
            raise ValueError(f"{member.filename!r} is encrypted")
        if member.compress_type not in _METHODS:
            raise ValueError(f"{member.filename!r} has another compression than NumPy's")
        if member.file_size > _METHODS[member.compress_type] * min(member.compress_size, there):
            raise ValueError(f"{member.filename!r} claims {member.file_size:,} bytes")
    if (total := sum(member.file_size for member in members)) > largest:
        raise ValueError(f"{total:,} bytes, more than {largest:,}")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, whose header must match the bytes that follow it."""
    with archive.open(member) as opened:
        shape, fortran, dtype, header = _header(opened)
        count = math.prod(shape)
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"{member.filename!r} is of {dtype} {shape}")
        if header + count * dtype.itemsize != member.file_size:
            raise ValueError(
                f"{member.filename!r} claims {dtype} {shape} and has {member.file_size:,} bytes"
            )
        content = bytearray(opened.read())  # to the end, where zipfile compares the checksum
    flat = np.frombuffer(content, dtype) if count else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _header(opened: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether columns come first, dtype, and bytes of the header."""
    version = np.lib.format.read_magic(opened)
    if version not in _HEADERS:
        raise ValueError(f"format {version} of NumPy's arrays")
    try:
        shape, fortran, dtype = _HEADERS[version](opened)
    except MemoryError as error:  # of Python's parser
        raise ValueError("a header nested too deeply") from error
    return shape, fortran, dtype, opened.tell()
