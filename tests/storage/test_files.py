"""Files that appear whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.files import atomic_file, cannot_write, umask, write_atomically


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a"
    write_atomically(file, "first")
    with pytest.raises(RuntimeError), atomic_file(file) as opened:
        opened.write(b"second")
        raise RuntimeError
    assert file.read_text() == "first"
    assert [p.name for p in file.parent.iterdir()] == ["a"]


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_umask_decides_who_may_read(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        assert umask() == mask
        write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a").symlink_to(victim)
    write_atomically(tmp_path / "a", "mine")
    assert victim.read_text() == "precious"
    assert (tmp_path / "a").read_text() == "mine" and not (tmp_path / "a").is_symlink()


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError("write failed: error message = 'No space left on device'"), True),  # HDF5
        (ValueError('IoError: Os { code: 27, message: "File too large" }'), True),  # safetensors
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (OSError(errno.EROFS, "Read-only file system"), False),
    ],
)
def test_space_is_asked_for_where_it_is_missing(error: Exception, full: bool) -> None:
    said = str(cannot_write(Path("a"), error))
    assert said.startswith("cannot write a: ") and said.endswith("choose another place")
    assert ("free some space" in said) == full


def test_what_the_disk_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(ProtlmError, match=r"cannot write .*; choose another place"):
        write_atomically(tmp_path / "a" / "b", "")
    if Path("/dev/full").exists():
        with (
            pytest.raises(ProtlmError, match="No space left on device; free some space"),
            atomic_file(tmp_path / "c") as file,
            open("/dev/full", "wb", buffering=0) as full,
        ):
            full.write(b"x")
            file.write(b"x")
