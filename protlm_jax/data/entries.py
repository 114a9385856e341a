"""What is known of one protein of a release: `ReleaseEntry`, and what its FASTA header says.

Three kinds of headers are understood, and told apart by their own look:

    >UniRef50_Q9K794 Putative AgrB-like protein n=2 Tax=Bacillus TaxID=55087 RepID=AGRB_BACHD
    >sp|P05067|A4_HUMAN Amyloid-beta precursor protein OS=Homo sapiens OX=9606 GN=APP PE=1 SV=3
    >SRR5690349_123 whatever          (BFD, MGnify, your own: a name, and a text)

as https://www.uniprot.org/help/fasta-headers has them. Releases before 2018 have no OX= and no
TaxID=; a field that is missing stays unknown. `description` keeps whatever has no field of its own,
so nothing of a header is lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReleaseEntry:
    """One protein of a release.

    Attributes:
      id: first word of the header, or the cluster's id in UniRef XML.
      sequence: residues that have passed `vocabularies.normalise`.
      description: the protein's (for UniRef the cluster's) name, and what has no field here.
      members: number of proteins in the cluster; 0 where it is unknown.
      taxon: name of the organism; of the last common ancestor for a cluster. '' unknown.
      taxon_id: its number in the NCBI taxonomy, 0 unknown.
      representative: the cluster's representative, by entry name or UniParc id; '' unknown.
      uniref50: the UniRef50 cluster that holds it; '' unknown.
      file, line: where it stands; the 1-based line of the header in the decompressed text.
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


# The name of a cluster may hold anything, " n=3 " as well: hence the last n= that fits.
_UNIREF = re.compile(
    r"(?:(.*) )?n=([0-9]+)(?: Tax=(.*?))?(?: TaxID=(\S*))?(?: RepID=(\S*))?", re.DOTALL
).fullmatch
# From "OS=" up to the next field; after it "OX=", which is younger.
_ORGANISM = re.compile(r" ?\bOS=(.*?)(?: OX=([0-9]+))?(?= [A-Z][A-Za-z]*=|$)", re.DOTALL).search
_LONGEST_NUMBER = 18  # digits: what int64 holds


def from_header(id: str, description: str, sequence: str, file: str, line: int) -> ReleaseEntry:
    """The entry of a FASTA record; `description` is the header without its first word."""
    if id.startswith("UniRef"):
        return _uniref(id, description, sequence, file, line)
    if id.startswith(("sp|", "tr|")) and (found := _ORGANISM(description)):
        taxon, number = found.groups()
        rest = description[: found.start()] + description[found.end() :]
        return ReleaseEntry(
            id, sequence, rest.strip(), 0, taxon, number_of(number), file=file, line=line
        )
    if description.startswith("n=") and (members := number_of(description[2:])):
        # A representative and the size of its cluster, as clustering scripts write them.
        return ReleaseEntry(id, sequence, "", members, file=file, line=line)
    return ReleaseEntry(id, sequence, description, file=file, line=line)


def _uniref(id: str, description: str, sequence: str, file: str, line: int) -> ReleaseEntry:
    """A cluster: the entry is its representative, and belongs to the cluster itself."""
    members, taxon, taxon_id, representative = "", "", "", ""
    if found := _UNIREF(description):
        description, members, taxon, taxon_id, representative = (g or "" for g in found.groups())
    return ReleaseEntry(
        id,
        sequence,
        description,
        number_of(members),
        taxon,
        number_of(taxon_id),
        representative,
        own_uniref50(id),
        file=file,
        line=line,
    )


def own_uniref50(id: str) -> str:
    """The UniRef50 cluster that follows from an entry's own id alone; '' unknown."""
    return id if id.partition("_")[0] == "UniRef50" else ""


def number_of(text: str | None) -> int:
    """A number of a header; 0 for what is none, such as "N/A"."""
    if text and len(text) <= _LONGEST_NUMBER and text.isascii() and text.isdigit():
        return int(text)
    return 0
