"""Results of measurements on disk: one `xarray.Dataset`, one netCDF file.

    save(xarray.Dataset({"loss": ("protein", losses, {"units": "nats"})}), "results.nc")
    read("results.nc")["loss"].mean("protein")

The format is netCDF 3, which SciPy writes and most programs read. It has neither 64-bit integers
nor booleans: xarray stores integers as int32, and refuses those that do not fit. Variables
have the attributes `units`, `long_name`, and `source`, the paper and equation of a formula.
"""

from __future__ import annotations

import io
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged, digest_of_data
from protlm_jax.storage.files import write_atomically

if TYPE_CHECKING:
    import xarray

DIGEST = "digest"  # the attribute that holds the digest of the file with this attribute blanked
LARGEST = 1 << 32  # bytes
_ALGORITHM = "blake2b"  # in the standard library, wherever the file is read
_BLANK = f"{_ALGORITHM}:{'0' * 32}"
# As netCDF 3 stores it: the name, the type (2: characters), the length (40), the characters.
_STORED = re.compile(rb"\0\0\0\x06digest\0\0\0\0\0\x02\0\0\0\x28(blake2b:[0-9a-f]{32})")


def save(dataset: xarray.Dataset, file: str | Path) -> Path:
    """Writes a dataset as netCDF, whole or not at all, with a digest of its content.

    Raises:
        ProtlmError: the folder or the disk does not take it.
        ValueError: netCDF 3 cannot hold a name or a value.
    """
    content = bytearray(dataset.assign_attrs({DIGEST: _BLANK}).to_netcdf(None, engine="scipy"))
    place = _place(content)
    assert place is not None
    content[place[0] : place[1]] = digest_of_data(content, _ALGORITHM).encode()
    write_atomically(Path(file), bytes(content))
    return Path(file)


def read(file: str | Path) -> xarray.Dataset:
    """The dataset that `save` wrote, in memory, without the digest.

    Raises:
        Damaged: the content is not the one that was written.
        ProtlmError: the file is missing, cannot be read, or was not written by `save`.
    """
    import xarray

    content = bytearray(_content(Path(file)))
    place = _place(content)
    if place is None:
        raise ProtlmError(f"{file} is not a file of results, or its beginning is damaged")
    digest = content[place[0] : place[1]].decode()
    content[place[0] : place[1]] = _BLANK.encode()
    if digest_of_data(content, _ALGORITHM) != digest:
        raise Damaged(f"{file} is not as it was written: copy it again, or make it again")
    try:
        dataset = xarray.load_dataset(io.BytesIO(content), engine="scipy")
    except Exception as error:  # the reader has no error of its own for what is malformed
        raise ProtlmError(f"{file} cannot be read as netCDF: {error}") from error
    del dataset.attrs[DIGEST]
    return dataset


def _content(file: Path) -> bytes:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a named pipe would block
            raise ProtlmError(f"{file} is not an ordinary file")
        if status.st_size > LARGEST:
            raise ProtlmError(f"{file} has {status.st_size:,} bytes, more than {LARGEST:,}")
        return file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ProtlmError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def _place(content: bytearray) -> tuple[int, int] | None:
    """Where the digest stands in the file; None where there is none."""
    found = _STORED.search(content) if content.startswith(b"CDF") else None
    return found and found.span(1)
