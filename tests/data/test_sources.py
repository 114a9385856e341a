"""Opening source files: every byte comes back, or an error says why not."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import fsspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.data.fasta import read_fasta
from protlm_jax.data.sources import explained, open_source, source_size
from protlm_jax.errors import ProtlmError

COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def read(path: Path | str) -> bytes:
    with explained(str(path), lambda: 0), open_source(str(path)) as source:
        return source.read()


@settings(deadline=None)
@given(
    parts=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=4),
    how=st.sampled_from(sorted(COMPRESS)),
)
def test_members_in_a_row_are_one_text(tmp_path_factory, parts, how):
    path = tmp_path_factory.mktemp("s") / "x"
    path.write_bytes(b"".join(map(COMPRESS[how], parts)))
    assert read(path) == b"".join(parts)


def bomb(how: str, megabytes: int) -> bytes:
    """A compressed text of letters A, and a second member."""
    compressor = {
        "gz": lambda: zlib.compressobj(wbits=31),
        "bz2": bz2.BZ2Compressor,
        "xz": lzma.LZMACompressor,
        "zst": lambda: zstandard.ZstdCompressor(level=19).compressobj(),
    }[how]()
    parts = [compressor.compress(b"A" * (1 << 20)) for _ in range(megabytes)]
    return b"".join([*parts, compressor.flush(), COMPRESS[how](b"\nMK")])


@pytest.mark.parametrize("how", COMPRESS)
def test_no_more_is_decompressed_than_asked_for(tmp_path, how):
    (tmp_path / "x").write_bytes(bomb(how, 16))
    tracemalloc.start()
    text, size = b"", 0
    with open_source(str(tmp_path / "x")) as source:
        while data := source.read(1 << 18):
            text, size = (text + data)[-4:], size + len(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == (16 << 20) + 3 and text == b"A\nMK"
    assert peak < 12 << 20 if how != "zst" else peak < 24 << 20


SCRIPT = """\
import re, sys
from pathlib import Path
from protlm_jax.data.blocks import cut, entries
from protlm_jax.data.fasta import read_every_record

def peak():  # not ru_maxrss, which a process inherits from the larger one that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

before = peak()
for path in sys.argv[1:]:
    plain = [(a.id, hasattr(a, "error")) for a in read_every_record(path)]
    cuts = [(a.id, hasattr(a, "error")) for block in cut(path) for a in entries(block)]
    assert plain == cuts == [("bomb", True), ("good", False)], (plain, cuts)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_bomb_takes_no_memory(tmp_path):
    for how in COMPRESS:
        parts = [b">bomb\n", *[b"A" * (1 << 20)] * 128, b"\n>good\nMK\n"]
        members = {part: COMPRESS[how](part) for part in set(parts)}
        (tmp_path / how).write_bytes(b"".join(members[part] for part in parts))
    files = [str(tmp_path / how) for how in COMPRESS]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100


@pytest.mark.parametrize("how", COMPRESS)
def test_what_stands_behind_the_last_member_is_damage(tmp_path, how):
    """The standard library takes bz2 and xz for finished there, and would lose the rest."""
    second = bytearray(COMPRESS[how](b">b\nGG\n"))
    second[1] ^= 0xFF
    (tmp_path / "x").write_bytes(COMPRESS[how](b">a\nMK\n") + second)
    with pytest.raises(ProtlmError, match="x is (damaged|truncated)"):
        read(tmp_path / "x")


@pytest.mark.parametrize("how", ["gz", "xz"])
def test_zeros_may_fill_up_a_file(tmp_path, how):
    (tmp_path / "x").write_bytes(COMPRESS[how](b"MK") + bytes(8) + COMPRESS[how](b"GG") + bytes(4))
    assert read(tmp_path / "x") == b"MKGG"


@pytest.mark.parametrize("how", [*COMPRESS, "plain"])
def test_every_byte_of_the_file_is_shown(tmp_path, how):
    data = COMPRESS.get(how, bytes)(b">a\nMK\n" * 50_000) * 2
    path = tmp_path / "x"
    path.write_bytes(data)
    seen = bytearray()
    with open_source(str(path), seen.extend) as source:
        while source.read(1 << 16):
            pass
    assert seen == data
    assert source_size(str(path)) == len(data)


@pytest.fixture
def remote():
    """A file system in memory, behind the same door as `gs://`."""
    files = fsspec.filesystem("memory")
    files.pipe("/release/p.fasta.gz", gzip.compress(b">a\nMK\n"))
    yield "memory://release/p.fasta.gz"
    files.rm("/release", recursive=True)


def test_remote_files_are_read(remote):
    seen = bytearray()
    with open_source(remote, seen.extend) as source:
        assert source.read() == b">a\nMK\n"
    assert source_size(remote) == len(seen) > 0
    assert [(r.id, r.sequence, r.file) for r in read_fasta(remote)] == [("a", "MK", remote)]


def test_faults_of_remote_files_are_named(remote, monkeypatch):
    with pytest.raises(ProtlmError, match=r"memory://none: no such file"):
        read("memory://none")
    with pytest.raises(ProtlmError, match=r"memory://none: no such file"):
        source_size("memory://none")
    with pytest.raises(ProtlmError, match=r"nosuch://x.*Protocol not known"):
        read("nosuch://x")

    def missing(url: str):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ProtlmError, match=r"gs://b/x needs a package.*gcsfs"):
        read("gs://b/x")


def test_a_connection_that_breaks_is_an_error(remote, monkeypatch):
    class Broken(type(fsspec.filesystem("memory").open("/release/p.fasta.gz"))):
        def read(self, size=-1):
            raise TimeoutError("gone")

    broken = Broken(None, "/release/p.fasta.gz", b"")
    monkeypatch.setattr(fsspec.filesystem("memory"), "open", lambda *_: broken)
    with pytest.raises(ProtlmError, match=r"cannot read memory://.*gone"):
        read(remote)


def test_local_files_that_cannot_be_read_are_named(tmp_path):
    for call in (read, lambda path: source_size(str(path))):
        with pytest.raises(ProtlmError, match="none: No such file"):
            call(tmp_path / "none")
    with pytest.raises(ProtlmError, match="directory"):
        read(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(ProtlmError, match="is empty"):
        read(tmp_path / "empty")
