"""Blocks: however a file is cut, the same records come out as from the plain reader."""

from __future__ import annotations

import gzip
import lzma
import pickle
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protlm_jax import bundled
from protlm_jax.data.blocks import TextBlock, cut, entries
from protlm_jax.data.entries import ReleaseEntry, from_header
from protlm_jax.data.fasta import BadRecord, read_every_record
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS, RESIDUES, ResiduePolicy

POLICIES = [ResiduePolicy(rare, lower) for rare in ("X", "keep") for lower in ("upper", "error")]  # type: ignore[arg-type]


def write(folder: Path, data: bytes) -> str:
    (folder / "p.fasta").write_bytes(data)
    return str(folder / "p.fasta")


def by_blocks(path: str, size: int, policy: ResiduePolicy = ResiduePolicy()) -> list:
    """Entries, and faults as (name, line, message); or the one message of the whole file."""
    try:
        return [plain(e) for block in cut(path, size) for e in entries(block, policy)]
    except ProtlmError as error:
        return [str(error)]


def by_reader(path: str, policy: ResiduePolicy = ResiduePolicy()) -> list:
    """What the reader of single records gives, in the same form."""
    try:
        return [
            plain(r)
            if isinstance(r, BadRecord)
            else from_header(r.id, r.description, r.sequence, r.file, r.line)
            for r in read_every_record(path, policy)
        ]
    except ProtlmError as error:
        return [str(error)]


def plain(answer: ReleaseEntry | BadRecord) -> ReleaseEntry | tuple[str, int, str]:
    if isinstance(answer, BadRecord):
        return answer.id, answer.line, str(answer.error)
    return answer


line_ends = st.sampled_from(["\n", "\r\n", "\r", "\n\n", " \n", "\n \t\r\n"])
texts = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([">", ">", " >", "> "]), st.text("ab|>=n3 \t", max_size=9)),
        st.tuples(st.text(AMINO_ACIDS, max_size=9), st.text(RESIDUES + "acu \t", max_size=9)),
        st.tuples(st.sampled_from(["*", "J", "é", "1"]), st.just("K")),
    ).map("".join),
    max_size=12,
)


@settings(deadline=None, max_examples=150)
@given(
    lines=texts,
    end=line_ends,
    last=st.booleans(),
    size=st.integers(1, 80),
    policy=st.sampled_from(POLICIES),
)
def test_blocks_of_any_size_give_what_the_reader_gives(
    tmp_path_factory, lines, end, last, size, policy
):
    text = end.join([">a first", "MK", *lines, ""] if last else [">a first", "MK", *lines])
    path = write(tmp_path_factory.mktemp("b"), text.encode())
    assert by_blocks(path, size, policy) == by_reader(path, policy)


@settings(deadline=None, max_examples=150)
@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.tuples(
            st.sampled_from([b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"]), st.binary()
        ).map(b"".join),
        st.text(">\n\r \tAMKuj*x\0\ufeffé", max_size=40).map(str.encode),
        st.lists(st.sampled_from([b">a\n", b"MK", b"\r", b"\n", b"\0", b"\xef\xbb\xbf", b"\xe9"]))
        .map(b"".join)
        .map(lambda data: b">a\n" + data),
    ).filter(lambda data: not data.lstrip(b"\xef\xbb\xbf \n\r\t\v\f").startswith(b"<")),
    size=st.integers(1, 30),
)
@example(data=b">a\nMK\n\r\n\0", size=1)
@example(data=b"\n\n \r\n>a\nMK\r>b\r\nGG", size=4)
@example(data=b"\n" * 9 + b"x>a\nMK", size=2)
def test_any_bytes_give_what_the_reader_gives(tmp_path_factory, data, size):
    path = write(tmp_path_factory.mktemp("b"), data)
    answers = by_blocks(path, size)
    assert answers == by_reader(path)
    assert answers and all(
        path in (a if isinstance(a, str) else a[2])
        for a in answers
        if not isinstance(a, ReleaseEntry)
    )


@settings(deadline=None, max_examples=100)
@given(
    data=st.text("<>/?! \n=\"'entryUniRf50MKab", max_size=60).map(lambda t: ("<" + t).encode()),
    size=st.integers(1, 30),
)
def test_any_xml_gives_records_or_one_error(tmp_path_factory, data, size):
    path = write(tmp_path_factory.mktemp("b"), data)
    answers = by_blocks(path, size)
    assert answers and all(path in str(answer) for answer in answers)


def test_real_proteins_come_back_whole():
    path = str(bundled.path("pretraining"))
    expected = by_reader(path)
    assert len(expected) > 1000
    for size in (5_000, 1 << 20):
        assert by_blocks(path, size) == expected


def test_blocks_lie_end_to_end(tmp_path):
    text = b"\n\n>a\nMK\n\n>b\nGG\n>c\nAA"
    seen = bytearray()
    blocks = list(cut(write(tmp_path, b"\xef\xbb\xbf" + text), 9, seen.extend))
    assert seen == b"\xef\xbb\xbf" + text
    assert b"".join(block.data for block in blocks) == text
    assert [(b.number, b.line, b.kind) for b in blocks] == [(0, 1, "fasta"), (1, 6, "fasta")]
    assert all(b.data.startswith(b">") for b in blocks[1:])


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_a_truncated_file_ends_in_an_error_after_its_whole_blocks(tmp_path, compress):
    lines = random.Random(2).choices(AMINO_ACIDS, k=300_000)
    text = "".join(f">p{i}\n{''.join(lines[i : i + 300])}\n" for i in range(0, len(lines), 300))
    whole = compress(text.encode())
    names = []
    with pytest.raises(ProtlmError, match="truncated"):
        for block in cut(write(tmp_path, whole[: len(whole) * 3 // 4]), 2000):
            names += [entry.id for entry in entries(block)]
    assert names == [f"p{i * 300}" for i in range(len(names))]


def test_a_block_made_by_hand_must_begin_with_a_header():
    with pytest.raises(ProtlmError, match="f, line 8: 'MK' stands before any header"):
        list(entries(TextBlock("f", 0, 7, b"\nMK\n>a\nMK", "fasta")))


def test_blocks_and_entries_travel_between_processes(tmp_path):
    (block,) = cut(write(tmp_path, b">a\nMK\n>b\n"))
    assert pickle.loads(pickle.dumps(block)) == block
    good, bad = entries(pickle.loads(pickle.dumps(block)))
    assert pickle.loads(pickle.dumps(good)) == good
    assert str(pickle.loads(pickle.dumps(bad)).error) == str(bad.error)


def test_neither_jax_nor_tensorflow_is_needed():
    code = "import sys; from protlm_jax.data import blocks, tables, pipeline\n"
    code += "assert not {'jax', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_record_longer_than_any_protein_is_bad_and_takes_no_memory(tmp_path):
    """Also where the end of the record falls between two pieces of the text."""
    for line_end, lines in ((b"\n", 1), (b"\n", 200_000), (b"\r\n", 150_001)):
        long = (b"A" * (20_000_000 // lines) + line_end) * lines
        text = line_end.join(
            [b">a x", b"MK", b">giant y", long + b">b z", b"MKV", b">c", b"1", b""]
        )
        path = write(tmp_path, gzip.compress(text, 1))
        tracemalloc.start()
        answers = by_blocks(path, 1000)
        assert tracemalloc.get_traced_memory()[1] < 80e6
        tracemalloc.stop()
        message = rf"{path}, line 3: the text of 'giant' has more than 16,777,216 characters"
        assert [a[0] if isinstance(a, tuple) else a.id for a in answers] == ["a", "giant", "b", "c"]
        assert answers[1][1] == 3 and answers[1][2].startswith(message)
        assert answers[2].line == 4 + lines and f"line {7 + lines}:" in answers[3][2]


def test_a_sequence_or_header_longer_than_any_is_bad_on_both_roads(tmp_path):
    text = b">a\n" + b"M" * 1_000_000 + b"\n>b\n" + b"MK\n" * 500_001 + b">" + b"c" * (1 << 24)
    path = write(tmp_path, text + b" x\nMK\n>d\nMK\n")
    plain_ones, by_block = by_reader(path), by_blocks(path, 1 << 20)
    assert [a.id for a in (plain_ones[0], plain_ones[-1])] == ["a", "d"] and len(plain_ones) == 4
    assert plain_ones[0] == by_block[0] and plain_ones[-1] == by_block[-1]
    for answer, other in zip(plain_ones[1:3], by_block[1:3], strict=True):
        assert answer[1] == other[1] and "more than 1" in answer[2] and "more than 1" in other[2]
