"""Headers of releases: every field comes out, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from protlm_jax.data.blocks import cut, entries
from protlm_jax.data.entries import ReleaseEntry, from_header

FILES = Path(__file__).parent / "files"


def entry(header: str) -> ReleaseEntry:
    name, _, description = header.partition(" ")
    return from_header(name, description, "MK", "f", 7)


def test_a_uniref_header():
    assert entry(
        "UniRef50_A0A5A9P0L4 peptidylprolyl isomerase n=12 Tax=Triplophysa tibetana "
        "TaxID=1572043 RepID=A0A5A9P0L4_9TELE"
    ) == ReleaseEntry(
        id="UniRef50_A0A5A9P0L4",
        sequence="MK",
        description="peptidylprolyl isomerase",
        members=12,
        taxon="Triplophysa tibetana",
        taxon_id=1572043,
        representative="A0A5A9P0L4_9TELE",
        uniref50="UniRef50_A0A5A9P0L4",
        file="f",
        line=7,
    )


@pytest.mark.parametrize(
    ("header", "fields"),
    [
        # Releases before 2018 have no TaxID.
        ("UniRef90_Q9K794 A b n=2 Tax=Bacillus RepID=AGRB_BACHD", ("A b", 2, "Bacillus", 0)),
        ("UniRef100_X a n=3 of x n=1 Tax=B (c=d) TaxID=5 RepID=Y", ("a n=3 of x", 1, "B (c=d)", 5)),
        ("UniRef90_X n=4 Tax=B TaxID=N/A RepID=Y", ("", 4, "B", 0)),
        ("UniRef90_X a n=4", ("a", 4, "", 0)),
        ("UniRef90_X Cluster: a; n=29; B|Rep: c", ("Cluster: a; n=29; B|Rep: c", 0, "", 0)),
        ("UniRef90_X", ("", 0, "", 0)),
        (f"UniRef90_X a n={'9' * 5000} Tax=B", ("a", 0, "B", 0)),
    ],
)
def test_variants_of_uniref_headers(header, fields):
    found = entry(header)
    assert (found.description, found.members, found.taxon, found.taxon_id) == fields


def test_a_cluster_knows_its_own_kind():
    for kind in ("50", "90", "100"):
        found = entry(f"UniRef{kind}_Q1 x n=1 Tax=B TaxID=1 RepID=R")
        assert found.uniref50 == ("UniRef50_Q1" if kind == "50" else "")


@pytest.mark.parametrize(
    ("header", "fields"),
    [
        (
            "sp|P05067|A4_HUMAN Amyloid-beta OS=Homo sapiens OX=9606 GN=APP PE=1 SV=3",
            ("Amyloid-beta GN=APP PE=1 SV=3", "Homo sapiens", 9606),
        ),
        ("tr|A|A_B Name OS=Homo sapiens", ("Name", "Homo sapiens", 0)),
        ("tr|A|A_B OS=Zea mays OX=4577", ("", "Zea mays", 4577)),
        ("tr|A|A_B Name of FOOS=5", ("Name of FOOS=5", "", 0)),
        ("mine OS=Homo sapiens", ("OS=Homo sapiens", "", 0)),  # not UniProt's: left as it is
    ],
)
def test_variants_of_uniprot_headers(header, fields):
    found = entry(header)
    assert (found.description, found.taxon, found.taxon_id) == fields
    assert found.id == header.partition(" ")[0]


def test_the_headers_of_a_real_release():
    found = [e for block in cut(str(FILES / "uniprot.fasta")) for e in entries(block)]
    assert [(e.id.split("|")[1], len(e.sequence), e.line) for e in found] == [
        ("P53508", 154, 1), ("M4CKE4", 302, 3), ("G9KBR1", 148, 5),
        ("C4KHV1", 194, 7), ("F8AN26", 98, 9), ("A0A0F3QN05", 205, 11),
    ]  # fmt: skip
    assert found[3].description == "V-type proton ATPase subunit E GN=atpE PE=3 SV=1 Split=0"
    assert found[3].taxon == "Sulfolobus islandicus (strain M.16.4 / Kamchatka #3)"
    assert {(e.members, e.taxon_id, e.representative, e.uniref50, e.file) for e in found} == {
        (0, 0, "", "", str(FILES / "uniprot.fasta"))
    }


def test_other_headers_keep_their_text():
    assert entry("SRR5690349_123 any n=3 text Tax=B") == ReleaseEntry(
        "SRR5690349_123", "MK", "any n=3 text Tax=B", file="f", line=7
    )
    assert entry("A0A183 n=41") == ReleaseEntry("A0A183", "MK", "", 41, file="f", line=7)
