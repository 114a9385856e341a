"""Reads FASTA files, plain or compressed, local or remote, one record at a time.

What other readers skip silently (text before the first header, headers without a sequence, double
names) is an error here with file, line and remedy; Biopython's `SimpleFastaParser` does not even
know the line. Line ends of any system, blank lines, a byte-order mark, spaces between residues,
lower case and a missing last line end are accepted. `blocks` reads large files in several
processes, and finds the same records.

Memory does not depend on the file: a line or sequence longer than any protein is not kept, and its
record is a bad one.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import whitespace

from protlm_jax.data.sources import explained, open_source
from protlm_jax.errors import ProtlmError, one_error
from protlm_jax.vocabularies import ResidueError, ResiduePolicy, normalise

LONGEST_SEQUENCE = 1_000_000
"""Letters of a sequence. The longest protein known, PKZILLA-1, has 45,212 residues."""
LONGEST_LINE = 1 << 24
"""Characters of a line: headers that join the names of identical proteins have millions."""
SHORTEST_NUCLEOTIDES = 15

log = logging.getLogger(__name__)
_warned: set[str] = set()  # files: one command may read a file several times


@dataclass(frozen=True, slots=True)
class Record:
    """One protein of a FASTA file: first word and rest of its header, normalised sequence, the
    1-based line of the header in the decompressed file, and the letters as they were written."""

    id: str
    description: str
    sequence: str
    file: str
    line: int
    written: str


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that is no protein: name (may be empty), line of the header, and the error."""

    id: str
    line: int
    error: ProtlmError


def read_fasta(*paths: str | Path, policy: ResiduePolicy = ResiduePolicy()) -> Iterator[Record]:
    """The records of FASTA files, in order; `policy` is for rare residues and lower case.

    Raises:
      ProtlmError: a file is missing, empty, truncated, damaged, or not FASTA; a record has no
        name, a name seen before (in any of the files), no sequence, or a character that is not a
        residue. It names all records of the file that cannot be read; those before them have been
        yielded by then.
    """
    seen: dict[str, tuple[str, int]] = {}
    for path in map(str, paths):
        records = read_every_record(path, policy)
        for record in records:
            if isinstance(record, BadRecord):
                others = [other.error for other in records if isinstance(other, BadRecord)]
                raise one_error([record.error, *others])
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
    """A `Record` or a `BadRecord` for each header of a FASTA file, in order; names may repeat.
    Raises ProtlmError where the file as a whole is missing, empty, truncated, damaged, or not
    FASTA."""
    path = str(path)
    records = nucleotides = 0
    for start, header, lines in entries(path):
        records += 1
        try:
            record = record_of(path, start, header, lines, policy)
        except ProtlmError as error:
            yield BadRecord(name_of(header)[0], start, error)
        else:
            nucleotides += looks_like_nucleotides(record.sequence)
            yield record
    if nucleotides and path not in _warned:
        _warned.add(path)
        log.warning("%s", nucleotides_found(path, nucleotides, records))


def looks_like_nucleotides(sequence: str) -> bool:
    """Whether a normalised sequence has the letters of DNA or RNA: A, C, G, and T or U (which may
    have become X), and no other but N. No protein of UniProt at 50 % identity does; a peptide may.
    """
    return (
        len(sequence) >= SHORTEST_NUCLEOTIDES
        and sequence[0] in "ACGTUNX"  # the next line alone would do: this one is quick
        and not sequence.strip("ACGTUNX")
        and all(letter in sequence for letter in "ACG")
        and any(letter in sequence for letter in "TUX")
    )


def nucleotides_found(path: str, count: int, records: int) -> str:
    """The warning about records that are DNA or RNA."""
    return (
        f"{path}: {count:,} of {records:,} records have only the letters of nucleotides "
        "(A, C, G, T or U, N), and are read as proteins all the same; if this is DNA or RNA, "
        "translate it first"
    )


def entries(path: str) -> Iterator[tuple[int, str, list[tuple[int, str]]]]:
    """Line of the header, header, and the numbered lines below it, of each record, unchecked; of a
    sequence longer than `LONGEST_SEQUENCE` only a beginning, which `record_of` refuses. Raises
    ProtlmError as `read_every_record`."""
    header = ""
    start = 0
    lines: list[tuple[int, str]] = []
    letters = 0
    for number, line in _lines(path, whitespace):
        if not line:
            continue
        if line[0] != ">":
            if not start:
                raise no_header(path, number, line)
            if letters <= LONGEST_SEQUENCE:
                lines.append((number, line[: LONGEST_SEQUENCE + 1]))
                letters += len(line)
            continue
        if start:
            yield start, header, lines
        header, start, lines, letters = line[1:], number, [], 0
    if not start:
        raise no_proteins(path)
    yield start, header, lines


def record_of(
    path: str, start: int, header: str, lines: list[tuple[int, str]], policy: ResiduePolicy
) -> Record:
    """One record; `lines` are its sequence lines that are not blank, with their numbers. Raises
    ProtlmError for no name, no sequence, or a character that is not a residue."""
    if len(header) >= LONGEST_LINE:
        raise too_long(path, start, name_of(header[:100])[0], "header", LONGEST_LINE)
    name, description = name_of(header)
    if not name:
        raise ProtlmError(f"{path}, line {start}: a header without a name; write '>name'")
    if not lines:
        raise ProtlmError(
            f"{path}, line {start}: {name!r} has a header but no sequence; add the sequence or "
            "remove the header (at the end of a file: is the file complete?)"
        )
    if sum(len(line) for _, line in lines) > LONGEST_SEQUENCE:
        raise too_long(path, start, name, "sequence", LONGEST_SEQUENCE)
    written = "".join(line for _, line in lines)
    try:
        sequence = normalise(written, policy, record=name)
    except ResidueError as error:
        number = line_of(error.position, lines)
        raise ProtlmError(f"{path}, line {number}: {error}") from None
    return Record(name, description, sequence, path, start, "".join(written.split()))


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
    """Lines of a file, decompressed and stripped of these characters, with 1-based numbers; raises
    ProtlmError as `read_every_record`, and for a line of more than `LONGEST_LINE` characters."""
    for number, line in _lines(path, strip):
        if len(line) > LONGEST_LINE:
            raise ProtlmError(
                f"{path}, line {number}: more than {LONGEST_LINE:,} characters in one line; is it "
                "the right file?"
            )
        yield number, line


def _lines(path: str, strip: str) -> Iterator[tuple[int, str]]:
    """As `text_lines`; of a line that is too long the first `LONGEST_LINE` + 1 characters."""
    number = 0
    # Descriptions may hold any encoding; what is not UTF-8 stays readable as \xe9.
    with (
        explained(path, lambda: number),
        io.TextIOWrapper(
            open_source(path), encoding="utf-8-sig", errors="backslashreplace"
        ) as text,
    ):
        read = partial(text.readline, LONGEST_LINE + 1)
        for number, line in enumerate(iter(read, ""), start=1):
            rest = line
            if len(line) > LONGEST_LINE:  # look for a NUL, and for the next line
                while rest and rest[-1] != "\n" and "\0" not in rest:
                    rest = text.readline(1 << 20)
            if "\0" in rest:
                raise not_text(path, number, rest)
            yield number, line.strip(strip)


def not_text(path: str, line: int, text: str) -> ProtlmError:
    """The error for a file with a NUL byte in this line, or in this part of it."""
    rest = text.rstrip("\r\n")
    zeros = rest.count("\0")
    marked = rest.startswith(("\\xff\\xfe", "\\xfe\\xff"))
    if marked or (zeros > 3 and 0.4 < zeros / len(rest) < 0.6):
        what = "text in UTF-16, or binary data; save it as UTF-8, or"
    elif zeros <= 3 and rest.replace("\0", "").replace("\t", "").isprintable():
        return ProtlmError(
            f"{path}, line {line}: a NUL byte (\\0) after {rest.index(chr(0))} characters; such a "
            "file was damaged when it was written or joined, and two sequences may have run "
            "together there: make it again"
        )
    else:
        what = "binary data, not text;"
    return ProtlmError(
        f"{path}, line {line}: {what} give a text file, plain or compressed with gzip, bzip2, xz "
        "or zstd (not an archive such as tar)"
    )


def too_long(path: str, line: int, name: str, what: str, most: int) -> ProtlmError:
    """The error for a record that is longer than any protein."""
    return ProtlmError(
        f"{path}, line {line}: the {what} of {name!r} has more than {most:,} characters, "
        "which no protein has; remove the record (is it a genome, or did the line ends get lost?)"
    )


def no_header(path: str, line: int, text: str) -> ProtlmError:
    """The error for a file that does not begin with a header."""
    return ProtlmError(
        f"{path}, line {line}: {shorten(text)} stands before any header; a FASTA file begins "
        "with a line '>name', and the sequence follows on the next lines"
    )


def no_proteins(path: str) -> ProtlmError:
    """The error for a file of blank lines."""
    return ProtlmError(f"{path} holds no proteins; is it the right file?")


def shorten(line: str) -> str:
    """The beginning of a line, in quotes."""
    return repr(line if len(line) <= 40 else line[:37] + "...")
