"""Finished parts of long work: kept with their digests, made again where they are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.parts import claim, finish, finished


def test_a_part_is_there_once_its_note_is_and_while_nothing_has_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note, file = tmp_path / "a.json", tmp_path / "a-1.bin"
    file.write_bytes(b"numbers")
    assert finished(note) is None and not caplog.text
    finish(note, [file], steps=1)
    assert finished(note)["steps"] == 1
    for damaged, content in ((file, b"numbert"), (note, note.read_bytes().replace(b"1", b"2"))):
        whole = damaged.read_bytes()
        damaged.write_bytes(content)
        assert finished(note) is None and "made again" in caplog.text
        damaged.write_bytes(whole)
        caplog.clear()
    later = tmp_path / "a-2.bin"
    later.write_bytes(b"more")
    finish(note, [later], steps=2)
    assert finished(note)["steps"] == 2 and not file.exists()


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"files": 3}', '{"files": {"a": 1}}', '{"files": {"../a": null}}', "{"]
)
def test_a_note_that_is_none_is_a_part_to_be_made(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    assert finished(tmp_path / "a.json") is None
    finish(tmp_path / "a.json")
    assert finished(tmp_path / "a.json") == {"files": {}}


def test_work_with_other_settings_is_refused(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 0})
    claim(tmp_path, {"seed": 0})
    with pytest.raises(ProtlmError, match="seed was 0 and is 1. Use these again, or delete"):
        claim(tmp_path, {"seed": 1})
    with pytest.raises(ProtlmError, match="another version of protlm"):
        claim(tmp_path, {"format": 2})
