"""One protein of a release, from its FASTA header or from UniRef XML.

Three kinds of headers are read, as in https://www.uniprot.org/help/fasta-headers:

    >UniRef50_Q9K794 Putative AgrB-like protein n=2 Tax=Bacillus TaxID=55087 RepID=AGRB_BACHD
    >sp|P05067|A4_HUMAN Amyloid-beta precursor protein OS=Homo sapiens OX=9606 GN=APP PE=1 SV=3
    >SRR5690349_123 any text          (BFD, MGnify, your own)

Releases before 2018 have no OX= and no TaxID=.

UniRef XML (https://www.uniprot.org/docs/uniref.xsd) has clusters, with the sequence of the
representative alone; unlike the FASTA of UniRef90 and UniRef100 it names the representative's
UniRef50 cluster. Names of the root and encodings (UTF-8, once ISO-8859-1) have changed over the
releases. The text is cut between entries, and expat parses each entry by itself, so a broken entry
does not affect the others.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from string import whitespace
from xml.etree import ElementTree

from protlm_jax.data.fasta import LONGEST_SEQUENCE, BadRecord, line_of, shorten, too_long
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import ResidueError, ResiduePolicy, normalise

ENTRY_END = b"</entry>"
LONGEST_ENTRY = 1 << 30  # bytes; a cluster may have a million members

_AGAIN = "download the file again"
_ENTRY = re.compile(rb"<entry[\s>]")
_ROOT = re.compile(rb"<UniRef\w*[\s>]")
_ROOT_END = re.compile(rb"\s*</UniRef\w*\s*>\s*")
_ENCODING = re.compile(rb"<\?xml[^>]*\bencoding\s*=\s*[\"']([\w.:-]+)")
_COMMENTS = re.compile(rb"(?:\s|<!--.*?-->)*", re.DOTALL)
_ID = re.compile(rb"<entry\b[^>]*?\bid\s*=\s*[\"']([^\"'<>]*)")


@dataclass(frozen=True, slots=True)
class ReleaseEntry:
    """One protein of a release; fields are "" or 0 where the release does not give them.

    Attributes:
      id: first word of the header, or the cluster's id in UniRef XML.
      sequence: residues that have passed `vocabularies.normalise`.
      description: name of the protein (of UniRef: of the cluster), and text without a field here.
      members: number of proteins in the cluster.
      taxon, taxon_id: the organism and its number in the NCBI taxonomy; of a cluster its last
        common ancestor.
      representative: of the cluster, by entry name or UniParc id.
      uniref50: the UniRef50 cluster of the protein.
      file, line: its place; the 1-based line of the header in the decompressed text.
    """

    id: str
    sequence: str
    description: str = ""
    members: int = 0
    taxon: str = ""
    taxon_id: int = 0
    representative: str = ""
    uniref50: str = ""
    file: str = ""
    line: int = 0


# The name of a cluster may contain " n=3 " too: hence the last n= that fits.
_UNIREF = re.compile(
    r"(?:(.*) )?n=([0-9]+)(?: Tax=(.*?))?(?: TaxID=(\S*))?(?: RepID=(\S*))?", re.DOTALL
).fullmatch
# From "OS=" up to the next field, and then "OX=", which newer releases have.
_ORGANISM = re.compile(r" ?\bOS=(.*?)(?: OX=([0-9]+))?(?= [A-Z][A-Za-z]*=|$)", re.DOTALL).search
_LONGEST_NUMBER = 18  # digits: what int64 holds


def from_header(id: str, description: str, sequence: str, file: str, line: int) -> ReleaseEntry:
    """The entry of a FASTA record; `description` is the header without its first word."""
    if id.startswith("UniRef"):
        members = taxon = taxon_id = representative = ""
        if found := _UNIREF(description):
            groups = (group or "" for group in found.groups())
            description, members, taxon, taxon_id, representative = groups
        return ReleaseEntry(
            id,
            sequence,
            description,
            number_of(members),
            taxon,
            number_of(taxon_id),
            representative,
            own_uniref50(id),
            file,
            line,
        )
    if id.startswith(("sp|", "tr|")) and (found := _ORGANISM(description)):
        taxon, number = found.groups()
        rest = description[: found.start()] + description[found.end() :]
        return ReleaseEntry(
            id, sequence, rest.strip(), 0, taxon, number_of(number), file=file, line=line
        )
    if description.startswith("n=") and (size := number_of(description[2:])):
        # A representative and the size of its cluster, as clustering scripts write them.
        return ReleaseEntry(id, sequence, "", size, file=file, line=line)
    return ReleaseEntry(id, sequence, description, file=file, line=line)


def own_uniref50(id: str) -> str:
    """The UniRef50 cluster that an entry's own id names; "" unknown."""
    return id if id.partition("_")[0] == "UniRef50" else ""


def number_of(text: str | None) -> int:
    """A number of a header; 0 for anything else, such as "N/A"."""
    if text and len(text) <= _LONGEST_NUMBER and text.isascii() and text.isdigit():
        return int(text)
    return 0


def xml_body(
    path: str, line: int, beginning: bytes, texts: Iterator[tuple[bytes, int | None]]
) -> Iterator[bytes]:
    """The entries of a file in UTF-8, without the text around them; line ends before them are kept.

    Args:
      path: the file, for messages.
      line: line on which the first text begins.
      beginning: of the file.
      texts: the file, in texts that end with `ENTRY_END`, except perhaps the last; each with the
        number of line ends cut off an entry that is too long, or None.
    Raises:
      ProtlmError: it is other XML, or HTML; there is no entry, the end is missing, or the encoding
        is not the declared one.
    """
    if not _ROOT.search(beginning):
        raise ProtlmError(
            f"{path}, line {line}: XML or HTML, but not of UniRef; give FASTA or UniRef XML (if "
            "this came from the web: is it an error page?)"
        )
    encoding, closed = "", False
    for number, (text, left_out) in enumerate(texts):
        if left_out is not None:
            raise ProtlmError(
                f"{path}, in or after line {line}: an entry has more than {LONGEST_ENTRY:,} bytes; "
                f"{_AGAIN}"
            )
        if number == 0:
            declared = _ENCODING.search(text)
            encoding = declared[1].decode() if declared else "utf-8"
        text = _in_utf8(path, line, text, encoding)
        if number == 0 and (first := _ENTRY.search(text)):
            if ENTRY_END in text[: first.start()]:
                raise ProtlmError(
                    f"{path}, line {line}: the end of an entry stands before the first one begins; "
                    f"{_AGAIN}"
                )
            text = b"\n" * text.count(b"\n", 0, first.start()) + text[first.start() :]
        before, end, after = text.rpartition(ENTRY_END)
        closed = bool(_ROOT_END.fullmatch(after))
        line += text.count(b"\n")
        yield before + end
    if not closed:
        raise ProtlmError(
            f"{path} is truncated or damaged: it does not end with an entry and the closing tag of "
            f"UniRef (last line read: {line}); copy or {_AGAIN}"
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
            f"line names ({error}); {_AGAIN}, or convert it to UTF-8"
        ) from None


def xml_entries(
    data: bytes, file: str, line: int, policy: ResiduePolicy = ResiduePolicy()
) -> Iterator[ReleaseEntry | BadRecord]:
    """A `ReleaseEntry` or a `BadRecord` for each entry of a block, in order.

    Args:
      data: whole entries in UTF-8, as `xml_body` gives them.
      file: the file they are from.
      line: line on which `data` begins.
      policy: for rare residues and lower case.
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
                    f"where an entry should begin; {_AGAIN}"
                )
            yield _entry(text + ENTRY_END, file, start, policy)
        except ProtlmError as error:
            name = _ID.search(text)
            yield BadRecord(name[1].decode("utf-8", "replace") if name else "", start, error)
        line += piece.count(b"\n")


def _entry(text: bytes, file: str, line: int, policy: ResiduePolicy) -> ReleaseEntry:
    """The representative of one entry's cluster."""
    try:
        # Members are dropped as soon as they end: there may be 100,000.
        for _, root in ElementTree.iterparse(io.BytesIO(text)):
            if root.tag == "member":
                root.clear()
    except ElementTree.ParseError as error:
        row, column = error.position
        raise ProtlmError(
            f"{file}, line {line + row - 1}: not well-formed XML ({error.msg.partition(':')[0]} in "
            f"column {column + 1}); {_AGAIN}"
        ) from None
    name = root.get("id", "")  # the last element to end is the entry itself
    if not name:
        raise ProtlmError(f"{file}, line {line}: an entry without an id; {_AGAIN}")
    letters = root.findtext("representativeMember/sequence") or ""
    if not letters.strip(whitespace):
        raise ProtlmError(
            f"{file}, line {line}: {name!r} has no sequence of a representative; remove the entry "
            f"or {_AGAIN}"
        )
    if len(letters) > LONGEST_SEQUENCE:
        raise too_long(file, line, name, "sequence", LONGEST_SEQUENCE)
    try:
        sequence = normalise(letters, policy, record=name)
    except ResidueError as error:
        first = line + text.count(b"\n", 0, text.find(b"<sequence"))
        at = line_of(error.position, list(enumerate(letters.split("\n"), first)))
        raise ProtlmError(f"{file}, line {at}: {error}") from None
    reference = root.find("representativeMember/dbReference")
    member = {} if reference is None else _properties(reference)
    length = number_of(member.get("length"))
    if length and length != len(sequence):
        raise ProtlmError(
            f"{file}, line {line}: {name!r} has {len(sequence)} residues where its length is said "
            f"to be {length}; {_AGAIN}"
        )
    cluster = _properties(root)
    return ReleaseEntry(
        id=name,
        sequence=sequence,
        description=(root.findtext("name") or "").strip().removeprefix("Cluster: "),
        members=number_of(cluster.get("member count")),
        taxon=cluster.get("common taxon", ""),
        taxon_id=number_of(cluster.get("common taxon ID")),
        representative="" if reference is None else reference.get("id", ""),
        uniref50=own_uniref50(name) or member.get("UniRef50 ID", ""),
        file=file,
        line=line,
    )


def _properties(element: ElementTree.Element) -> dict[str, str]:
    """The first value of each property directly below an element."""
    found: dict[str, str] = {}
    for child in element.iterfind("property"):
        found.setdefault(child.get("type", ""), child.get("value", ""))
    return found
