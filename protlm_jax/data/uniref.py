"""Reads UniRef XML: clusters, each as its representative.

The XML says what the FASTA of the same release does not: to which UniRef50 cluster the
representative of a UniRef90 or UniRef100 cluster belongs. Only the representative has a sequence.
Format: https://www.uniprot.org/docs/uniref.xsd; names of the root (`UniRef`, `UniRef50`, ...) and
encodings (UTF-8, once ISO-8859-1) have changed over the releases.

The text is cut between entries, and the standard library's expat parses each entry by itself: so
one broken entry does not take the others with it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from string import whitespace
from xml.etree import ElementTree

from protlm_jax.data.entries import ReleaseEntry, number_of, own_uniref50
from protlm_jax.data.fasta import LONGEST_SEQUENCE, BadRecord, line_of, shorten, too_long
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import ResidueError, ResiduePolicy, normalise

ENTRY_END = b"</entry>"

_ENTRY = re.compile(rb"<entry[\s>]")
_ROOT = re.compile(rb"<UniRef\w*[\s>]")
_ROOT_END = re.compile(rb"\s*</UniRef\w*\s*>\s*")
_ENCODING = re.compile(rb"<\?xml[^>]*\bencoding\s*=\s*[\"']([\w.:-]+)")
_COMMENTS = re.compile(rb"(?:\s|<!--.*?-->)*", re.DOTALL)
_ID = re.compile(rb"<entry\b[^>]*?\bid\s*=\s*[\"']([^\"'<>]*)")


def recognise(path: str, line: int, beginning: bytes) -> None:
    """Takes the beginning of an XML file for UniRef, or not.

    Raises:
      ProtlmError: it is some other XML, or HTML.
    """
    if not _ROOT.search(beginning):
        raise ProtlmError(
            f"{path}, line {line}: XML or HTML, but not of UniRef; give FASTA or UniRef XML (if "
            "this came from the web: is it an error page?)"
        )


def body(path: str, line: int, texts: Iterator[bytes]) -> Iterator[bytes]:
    """The entries of a file in UTF-8, without what surrounds them; no line end is lost before them.

    Args:
      path: the file, for messages.
      line: line on which the first text begins.
      texts: the file, in texts that end with `ENTRY_END`, save perhaps the last.
    Raises:
      ProtlmError: there is no entry, the end is missing, or the encoding is not what it says.
    """
    encoding, closed = "", False
    for number, text in enumerate(texts):
        if number == 0:
            declared = _ENCODING.search(text)
            encoding = declared[1].decode() if declared else "utf-8"
        text = _in_utf8(path, line, text, encoding)
        if number == 0 and (first := _ENTRY.search(text)):
            if ENTRY_END in text[: first.start()]:
                raise ProtlmError(
                    f"{path}, line {line}: the end of an entry stands before the first one begins; "
                    "download the file again"
                )
            text = b"\n" * text.count(b"\n", 0, first.start()) + text[first.start() :]
        before, end, after = text.rpartition(ENTRY_END)
        closed = bool(_ROOT_END.fullmatch(after))
        line += text.count(b"\n")
        yield before + end
    if not closed:
        raise ProtlmError(
            f"{path} is truncated or damaged: it does not end with an entry and the closing tag of "
            f"UniRef (last line read: {line}); copy or download the file again"
        )


def _in_utf8(path: str, line: int, text: bytes, encoding: str) -> bytes:
    """Text in UTF-8 with plain line ends."""
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if encoding.lower() in ("utf-8", "us-ascii"):
        return text
    try:
        return text.decode(encoding).encode()
    except (LookupError, ValueError) as error:
        raise ProtlmError(
            f"{path}, from line {line}: cannot be read in the encoding {encoding!r} that its first "
            f"line names ({error}); download the file again, or convert it to UTF-8"
        ) from None


def entries(
    data: bytes, file: str, line: int, policy: ResiduePolicy = ResiduePolicy()
) -> Iterator[ReleaseEntry | BadRecord]:
    """One answer for each entry of a block, in order.

    Args:
      data: whole entries in UTF-8, as `body` gives them.
      file: where they are from.
      line: line on which `data` begins.
      policy: what happens to rare residues and lower case.
    """
    for piece in data.split(ENTRY_END)[:-1]:
        before = _COMMENTS.match(piece)
        text = piece[before.end() if before else 0 :]
        start = line + piece.count(b"\n", 0, len(piece) - len(text))
        try:
            # A declaration would change how the entry is read: its encoding, or what "&x;" is.
            if not _ENTRY.match(text):
                raise ProtlmError(
                    f"{file}, line {start}: {shorten(text[:50].decode('utf-8', 'replace'))} stands "
                    "where an entry should begin; download the file again"
                )
            yield _entry(text + ENTRY_END, file, start, policy)
        except ProtlmError as error:
            name = _ID.search(text)
            yield BadRecord(name[1].decode("utf-8", "replace") if name else "", start, error)
        line += piece.count(b"\n")


def _entry(text: bytes, file: str, line: int, policy: ResiduePolicy) -> ReleaseEntry:
    """The representative of one entry's cluster."""
    try:
        # The elements of a member are let go as soon as it ends: there may be 100,000 of them.
        for _, root in ElementTree.iterparse(io.BytesIO(text)):
            if root.tag == "member":
                root.clear()
    except ElementTree.ParseError as error:
        row, column = error.position
        raise ProtlmError(
            f"{file}, line {line + row - 1}: not well-formed XML ({error.msg.partition(':')[0]} in "
            f"column {column + 1}); download the file again"
        ) from None
    name = root.get("id", "")  # the last element to end is the entry itself
    if not name:
        raise ProtlmError(f"{file}, line {line}: an entry without an id; download the file again")
    letters = root.findtext("representativeMember/sequence") or ""
    if not letters.strip(whitespace):
        raise ProtlmError(
            f"{file}, line {line}: {name!r} has no sequence of a representative; remove the entry "
            "or download the file again"
        )
    if len(letters) > LONGEST_SEQUENCE:
        raise too_long(file, line, name, "sequence", LONGEST_SEQUENCE)
    sequence = _sequence(letters, name, text, file, line, policy)
    reference = root.find("representativeMember/dbReference")
    member = {} if reference is None else _properties(reference)
    length = number_of(member.get("length"))
    if length and length != len(sequence):
        raise ProtlmError(
            f"{file}, line {line}: {name!r} has {len(sequence)} residues where its length is said "
            f"to be {length}; download the file again"
        )
    cluster = _properties(root)
    return ReleaseEntry(
        name,
        sequence,
        (root.findtext("name") or "").strip().removeprefix("Cluster: "),
        number_of(cluster.get("member count")),
        cluster.get("common taxon", ""),
        number_of(cluster.get("common taxon ID")),
        "" if reference is None else reference.get("id", ""),
        own_uniref50(name) or member.get("UniRef50 ID", ""),
        file,
        line,
    )


def _properties(element: ElementTree.Element) -> dict[str, str]:
    """The first value of each property that stands directly below an element."""
    found: dict[str, str] = {}
    for child in element.iterfind("property"):
        found.setdefault(child.get("type", ""), child.get("value", ""))
    return found


def _sequence(
    letters: str, name: str, text: bytes, file: str, line: int, policy: ResiduePolicy
) -> str:
    """The normalised residues; a fault is named with its own line."""
    try:
        return normalise(letters, policy, record=name)
    except ResidueError as error:
        first = line + text.count(b"\n", 0, text.find(b"<sequence"))
        at = line_of(error.position, list(enumerate(letters.split("\n"), first)))
        raise ProtlmError(f"{file}, line {at}: {error}") from None
