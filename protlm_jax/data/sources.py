"""Opens source files: local or remote (by fsspec), plain or compressed (gz, bz2, xz, zst).

The first bytes of a file, not its name, decide how it is decompressed. Several members, streams or
frames in a row are all read; other trailing bytes, and a truncated end, are errors. (fsspec and the
standard library's readers of bz2 and xz ignore trailing bytes, zstandard's reader a truncated end.)
Only the bytes that are read are decompressed, so memory does not depend on the compression ratio.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import IO, Any, cast

from protlm_jax.errors import ProtlmError

Watch = Callable[[bytes], object]
"""Is called with every piece of a file as it is read, still compressed."""

_PIECE = 1 << 16  # compressed bytes at a time
_BUFFER = 1 << 20  # decompressed bytes held by the buffer of a source
_XZ_MEMORY = 1 << 29  # bytes for the dictionary of a stream; xz -9 takes 65 MB
_ZSTD_PIECE = 256  # compressed bytes at a time: 64 blocks of at most 128 kB


class DamagedError(Exception):
    """Corrupt compressed data: bad checksum or trailing bytes."""


def open_source(path: str, watch: Watch | None = None) -> IO[bytes]:
    """The decompressed bytes of a local path, or of a URL of any file system that fsspec knows.

    Raises ProtlmError for an empty file and for a URL that cannot be opened, OSError for a local
    file. Reading may raise OSError, EOFError (the compressed data end too soon) and DamagedError;
    `explained` turns these into a ProtlmError.
    """
    raw = _Raw(path, _open(path), watch)
    file = io.BufferedReader(raw, _PIECE)
    try:
        magic = file.peek(6)[:6]
        if not magic:
            raise ProtlmError(f"{path} is empty; is it the right file, and was it copied whole?")
        new = _decompressor(magic)
    except BaseException:
        file.close()
        raise
    if new is None:
        return file
    members = cast(io.RawIOBase, _Members(file, new, padded=not magic.startswith(b"BZh")))
    return io.BufferedReader(members, _BUFFER)


def source_size(path: str) -> int:
    """Bytes of a file, compressed; 0 where a server does not say. Raises ProtlmError."""
    with explained(path, lambda: 0):
        if "://" not in path:
            return os.stat(path).st_size
        with _remote(path):
            file_system, name = _file_system(path)
            return int(file_system.size(name) or 0)


@contextmanager
def explained(path: str, line: Callable[[], int]) -> Iterator[None]:
    """Turns errors of reading a file into a ProtlmError; `line()` is the last line read."""
    try:
        yield
    except EOFError:
        raise ProtlmError(
            f"{path} is truncated: the compressed data end after line {line()}; copy or download "
            "the file again"
        ) from None
    except DamagedError as error:
        raise ProtlmError(
            f"{path} is damaged after line {line()} ({error}); copy or download the file again"
        ) from None
    except OSError as error:
        raise ProtlmError(f"cannot read {path}: {error.strerror or error}") from None


def _open(path: str) -> IO[bytes]:
    if "://" not in path:
        return cast(IO[bytes], open(path, "rb", buffering=0))
    with _remote(path):
        file_system, name = _file_system(path)
        return cast(IO[bytes], file_system.open(name, "rb"))


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the name of the file in it."""
    import fsspec

    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url))
    except ImportError as error:
        raise ProtlmError(
            f"reading {url} needs a package that is not installed ({error}); pip install it, or "
            "copy the file to this machine first"
        ) from None
    except ValueError as error:
        raise ProtlmError(f"cannot read {url}: {error}") from None


@contextmanager
def _remote(url: str) -> Iterator[None]:
    """Turns the exceptions of any file system into a ProtlmError."""
    try:
        yield
    except ProtlmError:
        raise
    except FileNotFoundError:
        raise ProtlmError(f"cannot read {url}: no such file") from None
    except Exception as error:
        raise ProtlmError(f"cannot read {url}: {type(error).__name__}: {error}") from None


class _Raw(io.RawIOBase):
    """The bytes of a file, still compressed, passed to `watch` as they are read."""

    def __init__(self, path: str, file: IO[bytes], watch: Watch | None) -> None:
        self._guard: Callable[[], AbstractContextManager[None]] = (
            partial(_remote, path) if "://" in path else nullcontext
        )
        self._file = file
        self._watch = watch

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with self._guard():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        if self._watch is not None and data:
            self._watch(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Members(io.RawIOBase):
    """Decompresses members one after the other; raises EOFError where the last one is cut short.

    `new` makes the decompressor of one member, an object like bz2's. `padded`: zero bytes may
    follow a member, as the formats of gz and xz allow.
    """

    def __init__(self, file: IO[bytes], new: Callable[[], Any], padded: bool) -> None:
        self._file = file
        self._new = new
        self._padded = padded
        self._member = new()
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            data = b""
            if self._member.eof:
                data = self._member.unused_data
                self._member, self._begun = self._new(), False
            if self._member.needs_input:
                data = data or self._file.read(_PIECE)
                if not data:
                    if self._begun:
                        raise EOFError
                    return 0
                if self._padded and not self._begun:
                    data = data.lstrip(b"\0")
                    if not data:
                        continue
                self._begun = True
            if text := self._decompress(data, len(buffer)):
                buffer[: len(text)] = text
                return len(text)

    def _decompress(self, data: bytes, most: int) -> bytes:
        try:
            return cast(bytes, self._member.decompress(data, most))
        except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
            if "limit exceeded" in str(error):  # of xz, before it allocates
                raise OSError(
                    f"it needs more than {_XZ_MEMORY:,} bytes of memory; compress it "
                    "again with xz -9 or another program"
                ) from None
            raise DamagedError(str(error)) from None

    def close(self) -> None:
        self._file.close()
        super().close()


def _decompressor(magic: bytes) -> Callable[[], Any] | None:
    """Makes decompressors for data with these first bytes; None for plain data."""
    if magic.startswith(b"\x1f\x8b"):
        return _Gzip
    if magic.startswith(b"BZh"):
        return bz2.BZ2Decompressor
    if magic.startswith(b"\xfd7zXZ\0"):
        return partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return _zstd()
    return None


class _Gzip:
    """zlib's decompressor in the form of bz2's."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, most: int) -> bytes:
        return self._member.decompress(self._member.unconsumed_tail + data, most)

    @property
    def needs_input(self) -> bool:
        return not self._member.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data


def _zstd() -> Callable[[], Any]:
    try:
        import zstandard
    except ImportError:
        raise ProtlmError("reading .zst files needs a package: pip install zstandard") from None

    class Frame:
        """zstandard's decompressor in the form of bz2's. It has no bound of its own, so it gets
        little at a time, and its output is returned in parts."""

        def __init__(self) -> None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._data = self._text = memoryview(b"")

        def decompress(self, data: bytes, most: int) -> bytes:
            self._data = memoryview(data) if data else self._data
            while self._data and not self._text:
                try:
                    self._text = memoryview(self._frame.decompress(self._data[:_ZSTD_PIECE]))
                except zstandard.ZstdError as error:
                    raise ValueError(str(error)) from None
                self._data = self._data[_ZSTD_PIECE:]
                if self._frame.eof:
                    self.unused_data = self._frame.unused_data + bytes(self._data)
                    self._data = memoryview(b"")
            text, self._text = self._text[:most], self._text[most:]
            return bytes(text)

        @property
        def needs_input(self) -> bool:
            return not (self._data or self._text)

        @property
        def eof(self) -> bool:
            return self._frame.eof and not self._text

    return Frame
