"""Reads FASTA files, plain or compressed, local or remote, one record at a time.

A pretraining run of days must not rest on a file that was read half. So this reader stops at
everything that other readers pass over in silence, and says file, line and remedy: Biopython's
`SimpleFastaParser`, for one, skips text before the first header, yields headers that have no
sequence, takes duplicate names, and cannot tell at which line it is. Hence our own short one.

Line ends of any system, blank lines, a byte-order mark, spaces between residues, lower case and a
missing last line end are all fine. Files of any size, read by several processes, go through
`blocks`, which finds the same records. Needs no TensorFlow.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import whitespace

from protlm_jax.data.sources import explained, open_source
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
    for start, header, lines in entries(str(path)):
        try:
            yield record_of(str(path), start, header, lines, policy)
        except ProtlmError as error:
            yield BadRecord(name_of(header)[0], start, error)


def _read_one(path: str, policy: ResiduePolicy) -> Iterator[Record]:
    """The records of one file, names not yet compared."""
    for start, header, lines in entries(path):
        yield record_of(path, start, header, lines, policy)


def entries(path: str) -> Iterator[tuple[int, str, list[tuple[int, str]]]]:
    """Line of the header, header, and the lines below it with their numbers, of each record.

    What stands there need not be residues.

    Raises:
      ProtlmError: the file is missing, empty, truncated, damaged, or not FASTA.
    """
    header = ""
    start = 0
    lines: list[tuple[int, str]] = []
    for number, line in text_lines(path):
        if not line:
            continue
        if line[0] != ">":
            if not start:
                raise no_header(path, number, line)
            lines.append((number, line))
            continue
        if start:
            yield start, header, lines
        header, start, lines = line[1:], number, []
    if not start:
        raise no_proteins(path)
    yield start, header, lines


def record_of(
    path: str, start: int, header: str, lines: list[tuple[int, str]], policy: ResiduePolicy
) -> Record:
    """Puts one record together; `lines` are its sequence lines, not blank, with their numbers.

    Raises:
      ProtlmError: no name, no sequence, or a character that is not a residue.
    """
    name, description = name_of(header)
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
        number = line_of(error.position, lines)
        raise ProtlmError(f"{path}, line {number}: {error}") from None
    return Record(name, description, sequence, path, start)


def name_of(header: str) -> tuple[str, str]:
    """The first word of a header, and the rest."""
    name, _, description = header.strip(whitespace).replace("\t", " ").partition(" ")
    return name, description.strip(whitespace)


def line_of(position: int, lines: list[tuple[int, str]]) -> int:
    """Number of the line that holds the residue at a 1-based position."""
    for number, line in lines:
        position -= sum(c not in whitespace for c in line)
        if position <= 0:
            return number
    raise AssertionError("the position is not in these lines")


def text_lines(path: str, strip: str = whitespace) -> Iterator[tuple[int, str]]:
    """Lines of a file, decompressed and stripped of these characters, with 1-based numbers.

    Raises:
      ProtlmError: the file is missing, empty, truncated, damaged, or not text.
    """
    number = 0
    # Descriptions may hold any encoding; what is not UTF-8 stays readable as \xe9.
    with (
        explained(path, lambda: number),
        io.TextIOWrapper(
            open_source(path), encoding="utf-8-sig", errors="backslashreplace"
        ) as text,
    ):
        for number, line in enumerate(text, start=1):
            if "\0" in line:
                raise not_text(path, number)
            yield number, line.strip(strip)


def not_text(path: str, line: int) -> ProtlmError:
    """What there is to say about a file with a NUL byte in this line."""
    return ProtlmError(
        f"{path}, line {line}: binary data, not text; give a text file, plain or compressed with "
        "gzip, bzip2, xz or zstd (not an archive such as tar)"
    )


def no_header(path: str, line: int, text: str) -> ProtlmError:
    """What there is to say about a file that begins with something else than a header."""
    return ProtlmError(
        f"{path}, line {line}: {_shorten(text)} stands before any header; a FASTA file begins "
        "with a line '>name', and the sequence follows on the next lines"
    )


def no_proteins(path: str) -> ProtlmError:
    """What there is to say about a file of blank lines."""
    return ProtlmError(f"{path} holds no proteins; is it the right file?")


def _shorten(line: str) -> str:
    return repr(line if len(line) <= 40 else line[:37] + "...")
