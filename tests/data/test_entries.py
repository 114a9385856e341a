"""Headers and UniRef XML: every field comes out, and no cluster is lost to a broken file."""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from protlm_jax.data.blocks import cut, entries
from protlm_jax.data.entries import ReleaseEntry, from_header
from protlm_jax.data.fasta import BadRecord
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import ResiduePolicy

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


REAL = Path(__file__).parent / "files" / "uniref50.xml"


def read(path: Path, size: int = 1 << 20, **policy: str) -> list[ReleaseEntry | BadRecord]:
    return [
        entry for block in cut(str(path), size) for entry in entries(block, ResiduePolicy(**policy))
    ]


@pytest.fixture(scope="module")
def real() -> list[ReleaseEntry]:
    return read(REAL)


def test_real_clusters(real):
    (first, second), digest = real, hashlib.blake2b(digest_size=4)
    digest.update(first.sequence.encode())
    assert len(first.sequence) == 332 and digest.hexdigest() == "a87b5fcf"
    assert real[0] == ReleaseEntry(
        id="UniRef50_Q9EPS7",
        sequence=real[0].sequence,
        description="Pheromone receptor V3R6",
        members=64,
        taxon="Muroidea",
        taxon_id=337687,
        representative="Q9EPS7_MOUSE",
        uniref50="UniRef50_Q9EPS7",
        file=str(REAL),
        line=5,
    )
    assert (second.id, second.line, second.members) == ("UniRef50_Q95604", 58, 5423)
    assert (second.taxon, second.taxon_id, second.representative) == (
        "Eutheria", 9347, "1C17_HUMAN",
    )  # fmt: skip
    assert len(second.sequence) == 372 and second.sequence.endswith("DESLIACKA")


@pytest.mark.parametrize("size", [1, 3000, 4000, 7000])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\r"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"<UniRef ", b"<UniRef50 ").replace(b"</UniRef", b"</UniRef50"),
        lambda text: gzip.compress(text[:3000]) + gzip.compress(text[3000:]),
    ],
    ids=["as it is", "crlf", "cr", "bom", "other root", "gz members"],
)
def test_neither_blocks_nor_line_ends_matter(tmp_path, real, size, change):
    (tmp_path / "u.xml").write_bytes(change(REAL.read_bytes()))
    found = read(tmp_path / "u.xml", size)
    assert [(c.id, c.sequence, c.line, c.members) for c in found] == [
        (c.id, c.sequence, c.line, c.members) for c in real
    ]


def test_clusters_at_90_know_their_uniref50_cluster(tmp_path):
    text = REAL.read_text().replace('id="UniRef50_Q9EPS7"', 'id="UniRef90_Q9EPS7"')
    text = text.replace(
        '<property type="UniRef90 ID" value="UniRef90_Q9EPS7"/>',
        '<property type="UniRef50 ID" value="UniRef50_A"/>',
    )
    (tmp_path / "u.xml").write_text(text)
    found = read(tmp_path / "u.xml")[0]
    assert found.uniref50 == "UniRef50_A"


def test_latin_1_is_read(tmp_path):
    text = REAL.read_text().replace("UTF-8", "ISO-8859-1").replace("Pheromone", "Phéromone")
    (tmp_path / "u.xml").write_bytes(text.encode("latin-1"))
    found = read(tmp_path / "u.xml")
    assert found[0].description == "Phéromone receptor V3R6"
    (tmp_path / "u.xml").write_bytes(text.replace("ISO-8859-1", "UTF-8").encode("latin-1"))
    broken, whole = read(tmp_path / "u.xml")
    assert "line 6" in str(broken.error) and whole.id == "UniRef50_Q95604"
    (tmp_path / "u.xml").write_bytes(text.replace("ISO-8859-1", "klingon").encode("latin-1"))
    with pytest.raises(ProtlmError, match=r"u.xml.*'klingon'"):
        read(tmp_path / "u.xml")


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("MVITPL", "MVIJPL", ["line 25", "'UniRef50_Q9EPS7'", "position 4", "J means"]),
        ("RPIQII", "RP-QII", ["line 26", "position 63", "gap"]),
        ("MVITPL", "MVITP", ["line 5", "331 residues", "332"]),
        ('<entry id="UniRef50_Q9EPS7"', "<entry", ["line 5", "without an id"]),
        ("<name>Cluster: Ph", "<name>Cluster: <Ph", ["line 6", "not well-formed"]),
        ("representativeMember", "reprisentativeMember", ["line 5", "no sequence"]),
        ("R6</name>", "R6</nome>", ["line 6", "mismatched tag"]),
        ("R6</name>", "R6 &bad;</name>", ["line 6", "undefined entity"]),
    ],
)
def test_a_broken_entry_is_named_and_leaves_the_other(tmp_path, real, old, new, parts):
    text = re.sub(re.escape(old), new, REAL.read_text(), count=0 if "repr" in old else 1)
    if "repr" in old:  # both ends of the element, but in the first entry only
        head, end, rest = text.partition("</entry>")
        text = head + end + rest.replace(new, old)
    (tmp_path / "u.xml").write_text(text)
    bad, good = read(tmp_path / "u.xml")
    assert isinstance(bad, BadRecord) and bad.line == 5
    assert bad.id == ("" if "without an id" in parts else "UniRef50_Q9EPS7")
    for part in ["u.xml", *parts]:
        assert part in str(bad.error)
    assert good.sequence == real[1].sequence
    assert good.line == 58


@pytest.mark.parametrize("rare", ["X", "keep"])
def test_the_policy_is_applied(tmp_path, rare):
    (tmp_path / "u.xml").write_text(REAL.read_text().replace("MVITPL", "MVuTPL"))
    found = read(tmp_path / "u.xml", rare=rare)[0].sequence
    assert found.startswith("MVXT" if rare == "X" else "MVUT")


def test_every_truncation_is_noticed(tmp_path):
    text = REAL.read_bytes().rstrip()
    for end in [*range(1, len(text), 97), len(text) - 1, text.rindex(b"</UniRef")]:
        (tmp_path / "u.xml").write_bytes(text[:end])
        with pytest.raises(ProtlmError, match=r"u\.xml"):
            read(tmp_path / "u.xml", 3000)


def test_no_cluster_is_lost_to_a_wrong_byte(tmp_path):
    text = REAL.read_bytes()
    for at in range(0, len(text), 83):
        (tmp_path / "u.xml").write_bytes(text[:at] + b"<" + text[at + 1 :])
        try:
            found = read(tmp_path / "u.xml", 3000)
        except ProtlmError as error:
            assert "u.xml" in str(error)
        else:
            assert len(found) == 2 or any(isinstance(f, BadRecord) for f in found), at


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "not of UniRef"),
        (b"\n\n<uniprot><entry></entry></uniprot>", "line 1: XML or HTML"),
        (b'<?xml version="1.0"?><UniRef50 x="1"></UniRef50>', "does not end with an entry"),
        (b"<UniRef50 ><entry", "truncated"),
    ],
)
def test_other_files_are_refused(tmp_path, text, part):
    (tmp_path / "u.xml").write_bytes(text)
    with pytest.raises(ProtlmError, match=part):
        read(tmp_path / "u.xml")


@pytest.mark.parametrize(
    "between",
    [
        b'<?xml version="1.0" encoding="foo"?>',
        b'<?xml version="1.0" encoding="utf-7"?>',
        b'<!DOCTYPE a [<!ENTITY x "AAAA">]>',
        b"text",
    ],
)
def test_nothing_between_entries_changes_how_they_are_read(tmp_path, real, between):
    """An encoding that nobody knows was a LookupError; an entity made four residues of two."""
    text = REAL.read_bytes().replace(b"</entry>", b"</entry>\n" + between, 1)
    line = text[: text.index(between)].count(b"\n") + 1
    text = text.replace(b"<sequence", b"<!-- a comment --><sequence")
    (tmp_path / "x.xml").write_bytes(text)
    first, second = read(tmp_path / "x.xml")
    assert first == replace(real[0], file=first.file)
    assert isinstance(second, BadRecord) and second.line == line
    assert f"x.xml, line {line}: {between.decode()[:30]!r}"[:-1] in str(second.error)
    (tmp_path / "x.xml").write_bytes(text.replace(between, b"<!-- any -->\n <!-- text -->"))
    assert [c.sequence for c in read(tmp_path / "x.xml")] == [c.sequence for c in real]


def test_entities_are_not_expanded(tmp_path):
    text = REAL.read_bytes().replace(b"?>", b'?>\n<!DOCTYPE a [<!ENTITY x "AAAA">]>', 1)
    (tmp_path / "x.xml").write_bytes(re.sub(rb"(<sequence[^>]*>)", rb"\1&x;", text))
    first, second = read(tmp_path / "x.xml")
    assert "undefined entity" in str(first.error) and "undefined entity" in str(second.error)
