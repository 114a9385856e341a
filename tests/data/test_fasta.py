"""The FASTA reader: what was written comes back, what is broken is named with file and line."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from protlm_jax import bundled
from protlm_jax.data.fasta import looks_like_nucleotides, read_every_record, read_fasta
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS, ResiduePolicy

COMPRESS = {
    "plain": lambda data: data,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}
TWO = b">a first\nMKTA\nYIAK\n>b\nGGSS\n"


def write(folder: Path, data: bytes, name: str = "p.fasta") -> str:
    file = folder / name
    file.write_bytes(data)
    return str(file)


def error_of(*files: str, policy: ResiduePolicy = ResiduePolicy()) -> str:
    with pytest.raises(ProtlmError) as error:
        list(read_fasta(*files, policy=policy))
    return str(error.value)


@pytest.mark.parametrize("how", COMPRESS)
@pytest.mark.parametrize("name", ["p.fasta", "p.fa.gz"])
def test_compression_is_seen_from_the_bytes(tmp_path, how, name):
    first, second = read_fasta(write(tmp_path, COMPRESS[how](TWO), name))
    assert (first.id, first.description, first.sequence, first.line) == (
        "a",
        "first",
        "MKTAYIAK",
        1,
    )
    assert (second.id, second.description, second.sequence, second.line) == ("b", "", "GGSS", 4)
    assert second.file == str(tmp_path / name)


@pytest.mark.parametrize("how", ["gz", "bz2", "xz", "zst"])
def test_every_truncation_is_noticed(tmp_path, how):
    whole = COMPRESS[how](TWO)
    for cut in range(6, len(whole)):
        message = error_of(write(tmp_path, whole[:cut]))
        assert "p.fasta" in message and "again" in message, cut


@pytest.mark.parametrize("how", ["gz", "bz2", "xz", "zst"])
def test_damage_is_noticed(tmp_path, how):
    data = bytearray(
        COMPRESS[how](lzma.decompress(bundled.path("pretraining").read_bytes())[:9000])
    )
    data[len(data) // 2] ^= 0xFF
    assert "p.fasta" in error_of(write(tmp_path, bytes(data)))


@pytest.mark.parametrize(
    "data",
    [
        TWO.replace(b"\n", b"\r\n"),
        TWO.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + TWO,
        b"\n\n" + TWO.replace(b"\n", b"\n\n"),
        TWO.rstrip(),
        TWO.lower().replace(b"first", b"first"),
        b">a first\nM K T A Y\tI A K  \n> b \n GGSS",
        b">a\tfirst\nMKTAYIAK\n>b\nGGSS",
    ],
    ids=["crlf", "cr", "bom", "blank lines", "no last end", "lower case", "spaced", "tab"],
)
def test_harmless_variants_are_read(tmp_path, data):
    records = list(read_fasta(write(tmp_path, data)))
    assert [(r.id, r.sequence) for r in records] == [("a", "MKTAYIAK"), ("b", "GGSS")]
    assert records[0].description == "first"


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ["is empty"]),
        (b"\n \n", ["no proteins"]),
        (gzip.compress(b"", mtime=0), ["no proteins"]),
        (b"MKTA\n>a\nMK\n", ["line 1", "'MKTA'", "before any header"]),
        (b"# note\n>a\nMK\n", ["line 1", "'# note'", "before any header"]),
        (b">a\nMK\n>b\n>c\nMK\n", ["line 3", "'b'", "no sequence"]),
        (b">a\nMK\n>b\n", ["line 3", "'b'", "is the file complete?"]),
        (b">\nMK\n", ["line 1", "without a name"]),
        (b">a\nMK\n>b\nMK\n>a x\nGG\n", ["line 5", "'a'", "(line 1)"]),
        (b">a\nMKT\n\nM K*\n", ["line 4", "'a'", "position 6", "'*'", "stop"]),
        (b">a\nMKT\n>b\nM-K\n", ["line 4", "'b'", "position 2", "gap"]),
        (b">a\nMK\0T\n", ["line 2", "a NUL byte", "after 2", "run together"]),
        (b">a\nMKTAYIAKQR\n\0MKVLAAGWWD\n>b\nMK\n", ["line 3", "a NUL byte", "after 0"]),
        (">a\nMKT".encode("utf-16"), ["line 1", "UTF-16", "binary"]),
        (">abcdef\nMKT".encode("utf-16-le"), ["line 1", "UTF-16", "binary"]),
        (b">a\n" + bytes(range(256)), ["line 2", "binary"]),
        (b">a\nMK\n>long x\n" + b"A" * 1_000_001, ["line 3", "'long'", "1,000,000"]),
        (b">a\n" + b"MKVA\n" * 250_001, ["line 1", "'a'", "1,000,000"]),
        (b"PK\x03\x04\x00\x00", ["binary", "archive"]),
        (b">a\nMK\xe9\n", ["line 2", "position 3"]),
    ],
)
def test_faults_are_named_with_file_and_line(tmp_path, data, parts):
    message = error_of(write(tmp_path, data))
    for part in ["p.fasta", *parts]:
        assert part in message


def test_names_must_differ_across_files(tmp_path):
    one = write(tmp_path, b">a\nMK\n", "one.fa")
    two = write(tmp_path, b">b\nMK\n>a\nMK\n", "two.fa")
    message = error_of(one, two)
    assert f"{two}, line 3" in message and f"{one}, line 1" in message


def test_the_policy_is_applied(tmp_path):
    file = write(tmp_path, b">a\nmkU\n")
    assert next(read_fasta(file)).sequence == "MKX"
    assert next(read_fasta(file, policy=ResiduePolicy(rare="keep"))).sequence == "MKU"
    assert "line 2" in error_of(file, policy=ResiduePolicy(lower_case="error"))


def test_descriptions_in_other_encodings_stay_readable(tmp_path):
    latin, utf = read_fasta(write(tmp_path, b">a caf\xe9\nMK\n>b caf\xc3\xa9\nMK\n"))
    assert (latin.description, utf.description) == ("caf\\xe9", "café")


words = st.text("abcXYZ019_|.:;=-", min_size=1, max_size=12)
proteins = st.tuples(
    words, st.lists(words, max_size=3).map(" ".join), st.text(AMINO_ACIDS, min_size=1)
)


@given(
    records=st.lists(proteins, min_size=1, max_size=6, unique_by=lambda r: r[0]),
    how=st.sampled_from(sorted(COMPRESS)),
    width=st.integers(1, 70),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_is_written_comes_back(tmp_path_factory, records, how, width, end):
    text = ""
    for name, description, sequence in records:
        lines = [sequence[i : i + width] for i in range(0, len(sequence), width)]
        text += end.join([f">{name} {description}", *lines, ""])
    file = write(tmp_path_factory.mktemp("f"), COMPRESS[how](text.encode()))
    assert [(r.id, r.description, r.sequence) for r in read_fasta(file)] == records


def test_every_record_gets_an_answer(tmp_path):
    file = write(tmp_path, b">a x\nMK\n>b\nM1\n>a\nU\n>\nMK\n>c\n")
    answers = list(read_every_record(file, ResiduePolicy(rare="keep")))
    assert [(a.id, a.line) for a in answers] == [("a", 1), ("b", 3), ("a", 5), ("", 7), ("c", 9)]
    assert [getattr(a, "sequence", None) for a in answers] == ["MK", None, "U", None, None]
    messages = [str(answers[i].error) for i in (1, 3, 4)]
    assert "position 2" in messages[0] and "without a name" in messages[1]
    assert "no sequence" in messages[2]
    with pytest.raises(ProtlmError, match="before any header"):
        list(read_every_record(write(tmp_path, b"MK\n")))


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ("ATGGCGTTAGCTAGCTAGG", True),
        ("ATGNNNGGCCTTAACC", True),
        ("AXGAAAXXXGGGCCC", True),  # RNA, whose U became X
        ("ACGTACGTACGTAC", False),  # too short
        ("AATAATAAAATAAATAATAA", False),  # antifreeze proteins are like this
        ("GGGGGGGGGGGGGGGGGGGG", False),
        ("ATGGCGTTAGCTAGCTAGGM", False),
    ],
)
def test_what_looks_like_nucleotides(sequence, expected):
    assert looks_like_nucleotides(sequence) == expected


def test_nucleotides_are_warned_of_once(tmp_path, caplog):
    file = write(tmp_path, b">g1\nATGGCGTTAGCTAGCTAGG\n>p\nMKTAYIAKQRQISFV\n>g2\natgaaatttgggccc\n")
    for _ in range(2):
        assert len(list(read_fasta(file))) == 3
        assert len(list(read_every_record(file))) == 3
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{file}: 2 of 3 records have only the letters of nucleotides")
