"""Reads FASTA files, plain or compressed (gz, bz2, xz, zst), one record at a time.

A pretraining run of days must not rest on a file that was read half. So this reader stops at
everything that other readers pass over in silence, and says file, line and remedy: Biopython's
`SimpleFastaParser`, for one, skips text before the first header, yields headers that have no
sequence, takes duplicate names, and cannot tell at which line it is. Hence our own short one.

How a file is compressed is seen from its first bytes, not from its name. Line ends of any system,
blank lines, a byte-order mark, spaces between residues, lower case, several gzip members in one
file and a missing last line end are all fine. Needs no TensorFlow.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import whitespace
from typing import IO, cast

from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import ResidueError, ResiduePolicy, normalise


@dataclass(frozen=True, slots=True)
class Record:
    """One protein of a FASTA file.

    id is the first word of the header and description the rest; sequence has passed `normalise`;
    line is the 1-based line of the header in the (decompressed) file.
    """

    id: str
    description: str
    sequence: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that is no protein: its name (may be empty), the line of its header, and why."""

    id: str
    line: int
    error: ProtlmError


def read_fasta(*paths: str | Path, policy: ResiduePolicy = ResiduePolicy()) -> Iterator[Record]:
    """The records of one or several FASTA files, in order, one at a time.

    Args:
      paths: the files. A name may occur only once in all of them together.
      policy: what happens to rare residues and lower case.
    Raises:
      ProtlmError: a file is missing, empty, truncated, damaged, or not FASTA; a record has no
        name, a name seen before, no sequence, or a character that is not a residue. The records
        before the fault have been yielded by then.
    """
    seen: dict[str, tuple[str, int]] = {}
    for path in map(str, paths):
        for record in _read_one(path, policy):
            if record.id in seen:
                file, line = seen[record.id]
                where = f"line {line}" if file == path else f"{file}, line {line}"
                raise ProtlmError(
                    f"{path}, line {record.line}: the name {record.id!r} was used before "
                    f"({where}); give every protein a name of its own, or remove the double"
                )
            seen[record.id] = (path, record.line)
            yield record


def read_every_record(
    path: str | Path, policy: ResiduePolicy = ResiduePolicy()
) -> Iterator[Record | BadRecord]:
    """One answer for each header of a FASTA file, in order; a name may occur several times.

    For work that treats each protein by itself, and need not stop at one that cannot be read.

    Raises:
      ProtlmError: the file as a whole is missing, empty, truncated, damaged, or not FASTA.
    """
    for start, header, lines in _entries(str(path)):
        try:
            yield _record(str(path), start, header, lines, policy)
        except ProtlmError as error:
            yield BadRecord(_name(header)[0], start, error)


def _read_one(path: str, policy: ResiduePolicy) -> Iterator[Record]:
    """The records of one file, names not yet compared."""
    for start, header, lines in _entries(path):
        yield _record(path, start, header, lines, policy)


def _entries(path: str) -> Iterator[tuple[int, str, list[tuple[int, str]]]]:
    """Line of the header, header, and sequence lines with their numbers, of each record."""
    header = ""
    start = 0
    lines: list[tuple[int, str]] = []
    for number, line in text_lines(path):
        if not line:
            continue
        if line[0] != ">":
            if not start:
                raise ProtlmError(
                    f"{path}, line {number}: {_shorten(line)} stands before any header; a FASTA "
                    "file begins with a line '>name', and the sequence follows on the next lines"
                )
            lines.append((number, line))
            continue
        if start:
            yield start, header, lines
        header, start, lines = line[1:], number, []
    if not start:
        raise ProtlmError(f"{path} holds no proteins; is it the right file?")
    yield start, header, lines


def _record(
    path: str, start: int, header: str, lines: list[tuple[int, str]], policy: ResiduePolicy
) -> Record:
    """Puts one record together; `lines` are its sequence lines with their numbers."""
    name, description = _name(header)
    if not name:
        raise ProtlmError(f"{path}, line {start}: a header without a name; write '>name'")
    if not lines:
        raise ProtlmError(
            f"{path}, line {start}: {name!r} has a header but no sequence; add the sequence or "
            "remove the header (at the end of a file: is the file complete?)"
        )
    try:
        sequence = normalise("".join(line for _, line in lines), policy, record=name)
    except ResidueError as error:
        number = _line_of(error.position, lines)
        raise ProtlmError(f"{path}, line {number}: {error}") from None
    return Record(name, description, sequence, path, start)


def _name(header: str) -> tuple[str, str]:
    """The first word of a header, and the rest."""
    name, _, description = header.strip(whitespace).replace("\t", " ").partition(" ")
    return name, description.strip(whitespace)


def _line_of(position: int, lines: list[tuple[int, str]]) -> int:
    """Number of the line that holds the residue at a 1-based position."""
    for number, line in lines:
        position -= sum(c not in whitespace for c in line)
        if position <= 0:
            return number
    raise AssertionError("the position is not in these lines")


def text_lines(path: str) -> Iterator[tuple[int, str]]:
    """Lines of a file, decompressed and stripped, with their 1-based numbers.

    Raises:
      ProtlmError: the file is missing, empty, truncated, damaged, or not text.
    """
    number = 0
    try:
        # Descriptions may hold any encoding; what is not UTF-8 stays readable as \xe9.
        with io.TextIOWrapper(
            cast(IO[bytes], _decompressed(path)), encoding="utf-8-sig", errors="backslashreplace"
        ) as text:
            for number, line in enumerate(text, start=1):
                if "\0" in line:
                    raise ProtlmError(
                        f"{path}, line {number}: binary data, not text; give a text file, plain "
                        "or compressed with gzip, bzip2, xz or zstd (not an archive such as tar)"
                    )
                yield number, line.strip(whitespace)
    except EOFError:
        raise ProtlmError(
            f"{path} is truncated: the compressed data end after line {number}; copy or download "
            "the file again"
        ) from None
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ProtlmError(_damaged(path, number, error)) from None
    except OSError as error:
        # bz2 reports damaged data as a bare OSError, without a number.
        if error.errno is None:
            raise ProtlmError(_damaged(path, number, error)) from None
        raise ProtlmError(f"cannot read {path}: {error.strerror}") from None


def _damaged(path: str, number: int, error: Exception) -> str:
    return f"{path} is damaged after line {number} ({error}); copy or download the file again"


def _decompressed(path: str) -> io.BufferedIOBase | io.RawIOBase | IO[bytes]:
    """The bytes of a file, through the decompressor that its first bytes ask for."""
    file = open(path, "rb")  # noqa: SIM115  (closed by the reader above it)
    magic = file.peek(6)[:6]
    if not magic:
        file.close()
        raise ProtlmError(f"{path} is empty; is it the right file, and was it copied whole?")
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(file)
    if magic.startswith(b"BZh"):
        return bz2.open(file)
    if magic.startswith(b"\xfd7zXZ\0"):
        return lzma.open(file)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return io.BufferedReader(_ZstdReader(file), 1 << 17)
    return file


class _ZstdReader(io.RawIOBase):
    """Decompresses zstd frames, one after the other, and notices when the last one is cut short.

    (The library's own stream reader takes a truncated file for a complete one.)
    """

    def __init__(self, file: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise ProtlmError("reading .zst files needs a package: pip install zstandard") from None
        self._file = file
        self._error = zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new()
        self._pending = b""
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._pending:
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = self._new(), False
            data = data or self._file.read(1 << 16)
            if not data:
                if self._begun:
                    raise EOFError
                return 0
            try:
                self._pending = self._frame.decompress(data)
            except self._error as error:
                raise OSError(str(error)) from None
            self._begun = True
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _shorten(line: str) -> str:
    return repr(line if len(line) <= 40 else line[:37] + "...")
