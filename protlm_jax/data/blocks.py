"""Cuts source files of any size into blocks of whole records, and parses each block by itself.

Cutting is sequential and cheap: it only searches for the next record. Parsing is most of the work,
and any process can do it, in any order:

    for block in cut("uniref50.fasta.gz"):
        for entry in entries(block):  # here, or in another process
            ...

The records are those of `fasta.read_fasta`, except that names are not compared: 2 billion of them
fit no memory. FASTA and UniRef XML are told apart by their first character.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from string import whitespace
from typing import Literal

from protlm_jax.data.entries import (
    ENTRY_END,
    LONGEST_ENTRY,
    ReleaseEntry,
    from_header,
    xml_body,
    xml_entries,
)
from protlm_jax.data.fasta import (
    LONGEST_LINE,
    LONGEST_SEQUENCE,
    BadRecord,
    name_of,
    no_header,
    no_proteins,
    not_text,
    record_of,
    too_long,
)
from protlm_jax.data.sources import Watch, explained, open_source
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS, RARE, RESIDUES, ResiduePolicy
from protlm_jax.vocabularies.structure import is_paired, is_structured

Kind = Literal["fasta", "xml"]

BLOCK_SIZE = 1 << 24
"""Bytes of decompressed text in a block, by default."""

_READ = 1 << 20
_BLANK = whitespace.encode()
_BOM = b"\xef\xbb\xbf"
# Where a record ends: before a header at the start of a line; after a closing tag.
_RECORD_END = {"fasta": re.compile(rb"[\r\n](?=>)"), "xml": re.compile(ENTRY_END)}
_LONGEST_END = len(ENTRY_END)
_LONGEST = {"fasta": LONGEST_LINE, "xml": LONGEST_ENTRY}
_KEPT = 1 << 10  # bytes that are kept of a longer record, for its name
_INDENTED_HEADER = re.compile(rb"\n[ \t\x0b\x0c]+>")


@dataclass(frozen=True, slots=True)
class TextBlock:
    """Whole records of one file. `line` is the 1-based line on which `data` begins.

    `data` is text in UTF-8 (FASTA: in the encoding of the file). `cut`: the last record was too
    long, and only its beginning is here.
    """

    file: str
    number: int
    line: int
    data: bytes
    kind: Kind
    cut: bool = False


def cut(
    path: str, size: int = BLOCK_SIZE, watch: Watch | None = None
) -> Generator[TextBlock, None, None]:
    """The blocks of a file, in order; they depend on its text and on `size` alone.

    A block ends with the record that brings it to `size` bytes or more. A record that is longer
    than any protein loses its end, and `entries` gives a `BadRecord` for it. About two blocks are
    in memory at a time.

    Args:
      path: a local path or a URL; FASTA or UniRef XML, plain or compressed.
      size: bytes of decompressed text.
      watch: is called with all bytes of the file itself, in order, as they are read.
    Raises:
      ProtlmError: the file is missing, empty, truncated, damaged, binary, or neither FASTA nor
        UniRef XML: names file and line. Blocks before the fault have been yielded by then.
    """
    pieces = _pieces(path, watch)
    line, head = _beginning(path, pieces)
    kind: Kind = "xml" if head.lstrip(_BLANK).startswith(b"<") else "fasta"
    parts = _split(chain([head], pieces), size, kind)
    if kind == "xml":
        parts = ((text, None) for text in xml_body(path, line, head, parts))
    number = 0
    for text, left_out in parts:
        if text.strip(_BLANK):
            yield TextBlock(path, number, line, text, kind, left_out is not None)
            number += 1
        line += _line_ends(text) + (left_out or 0)


def entries(
    block: TextBlock, policy: ResiduePolicy = ResiduePolicy()
) -> Iterator[ReleaseEntry | BadRecord]:
    """A `ReleaseEntry` or a `BadRecord` for each record of a block, in order; raises ProtlmError
    for text before the first header."""
    if block.kind == "fasta":
        yield from _fasta(block, policy)
        return
    yield from xml_entries(block.data, block.file, block.line, policy)


def _pieces(path: str, watch: Watch | None) -> Iterator[bytes]:
    """The text of a file, in pieces that never end inside a line end (CR LF)."""
    line = 0
    with explained(path, lambda: line), open_source(path, watch) as source:
        piece = source.read(_READ).removeprefix(_BOM)
        while piece:
            if piece.endswith(b"\r"):
                piece += source.read(1)
            if (nul := piece.find(b"\0")) >= 0:
                before = piece[: max(piece.rfind(b"\n", 0, nul), piece.rfind(b"\r", 0, nul)) + 1]
                yield before
                at = piece[len(before) :].splitlines(keepends=True)[0]
                text = at.decode("utf-8", "backslashreplace")
                raise not_text(path, line + _line_ends(before) + 1, text)
            yield piece
            line += _line_ends(piece)
            piece = source.read(_READ)


def _beginning(path: str, pieces: Iterator[bytes]) -> tuple[int, bytes]:
    """The first piece that is not blank, and the line on which it begins."""
    line = 1
    for piece in pieces:
        if first := piece.lstrip(_BLANK):
            if not first.startswith((b">", b"<")):
                at = line + _line_ends(piece[: len(piece) - len(first)])
                text = first.splitlines()[0].decode("utf-8", "backslashreplace")
                raise no_header(path, at, text.strip(whitespace))
            return line, piece
        line += _line_ends(piece)
    raise no_proteins(path)


_Part = tuple[bytes, int | None]
"""A text, and how many line ends were cut off its last record (None: the record is whole)."""


def _split(pieces: Iterator[bytes], size: int, kind: Kind) -> Iterator[_Part]:
    """Cuts after each record that brings a text to `size` bytes or more; the rest comes last."""
    held, end = bytearray(), _RECORD_END[kind]
    for piece in pieces:
        searched = len(held)
        held += piece
        while len(held) >= size:
            found = end.search(held, max(0, size - _LONGEST_END, searched - _LONGEST_END))
            while found and found.end() < size:
                found = end.search(held, found.end())
            if not found:
                break
            at, searched = found.end(), 0
            yield bytes(held[:at]), None
            del held[:at]
        if len(held) > size + _LONGEST[kind]:
            kept = max(held.rfind(b"\n>"), held.rfind(b"\r>"), 0) + _KEPT
            text, last = bytes(held[:kept]), bytes(held[-1:])
            del held[:kept]
            left_out = _line_ends(held)
            held.clear()
            yield text, left_out + _skip(pieces, held, end, last)
    yield bytes(held), None


def _skip(pieces: Iterator[bytes], held: bytearray, end: re.Pattern[bytes], last: bytes) -> int:
    """Reads to the end of a record, adds the text after it to `held`, and returns the line ends
    passed."""
    line_ends = 0
    for piece in pieces:
        found = end.search(last + piece)
        at = found.end() - len(last) if found else len(piece)
        line_ends += _line_ends(piece[:at])
        if found:
            held += piece[at:]
            break
        last = piece[-1:]
    return line_ends


def _line_ends(text: bytes | bytearray) -> int:
    return text.count(b"\n") + text.count(b"\r") - text.count(b"\r\n")


def _fasta(block: TextBlock, policy: ResiduePolicy) -> Iterator[ReleaseEntry | BadRecord]:
    """The records of a block: correct ones at once, all others through `fasta.record_of`."""
    data, line = block.data, block.line
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if _INDENTED_HEADER.search(data):
        data = _INDENTED_HEADER.sub(b"\n>", data)
    text = data.lstrip(_BLANK)
    line += data.count(b"\n", 0, len(data) - len(text))
    if not text.startswith(b">"):
        first = text.partition(b"\n")[0].decode("utf-8", "backslashreplace")
        raise no_header(block.file, line, first)
    table, legal = _tables(policy)
    records = text[1:].split(b"\n>")
    for number, record in enumerate(records, 1):
        header, _, body = record.partition(b"\n")
        residues = body.translate(table, _BLANK)
        name, description = name_of(header.decode("utf-8", "backslashreplace"))
        if block.cut and number == len(records):
            error = too_long(block.file, line, name, "text", LONGEST_LINE)
            yield BadRecord(name, line, error)
        elif (
            name
            and 0 < len(residues) <= LONGEST_SEQUENCE
            and len(header) < LONGEST_LINE
            and not residues.translate(None, legal)
            and (body.isupper() or not is_paired(body.translate(None, _BLANK).decode("ascii")))
        ):
            yield from_header(name, description, residues.decode("ascii"), block.file, line)
        else:
            yield _with_fault(block.file, line, record, policy)
        line += record.count(b"\n") + 1


@lru_cache
def _tables(policy: ResiduePolicy) -> tuple[bytes, bytes]:
    """A translation of the bytes of a sequence, and the letters that are legal after it."""
    letters = bytearray(range(256))
    if policy.lower_case == "upper":
        letters = bytearray(bytes(letters).upper())
    if policy.rare == "keep":
        return bytes(letters), RESIDUES.encode()
    legal = AMINO_ACIDS.encode() + b"X"
    if policy.rare == "X":
        letters = letters.translate(bytes.maketrans(RARE.encode(), b"X" * len(RARE)))
    return bytes(letters), legal


def _with_fault(
    file: str, line: int, record: bytes, policy: ResiduePolicy
) -> ReleaseEntry | BadRecord:
    """What `fasta` makes of a record that the fast way does not read."""
    header, *rest = record.decode("utf-8", "backslashreplace").split("\n")
    numbered = ((number, text.strip(whitespace)) for number, text in enumerate(rest, line + 1))
    try:
        found = record_of(file, line, header, [(n, text) for n, text in numbered if text], policy)
    except ProtlmError as error:
        return BadRecord(name_of(header)[0], line, error)
    if is_structured(found.sequence):
        reason = ProtlmError(
            f"{file}, line {line}: {found.id!r} has structural letters beside its residues, which "
            "prepared data do not hold: train on the FASTA file itself (--config.data.fasta)"
        )
        return BadRecord(found.id, line, reason)
    return from_header(found.id, found.description, found.sequence, file, line)
