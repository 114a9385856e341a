"""What Orbax says is kept, and only what follows from a failed read is not shown."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace

import orbax.checkpoint
import pytest
from absl import logging as absl_logging

from protlm_jax.training import orbax_messages
from protlm_jax.training.checkpoints import Checkpoints


def test_what_orbax_reports_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orbax_messages.LOGGER, "handlers", [])  # of runs that are still open

    def report(text: str) -> None:
        name = str(Path(orbax.checkpoint.__file__).parent / "future.py")
        logger = absl_logging.get_absl_logger()
        logger.handle(logger.makeRecord("absl", logging.WARNING, name, 1, text, (), None))

    checkpoints = Checkpoints(tmp_path / "checkpoints", every=1, keep=1)
    report("a slow disk")
    checkpoints.close()
    assert "WARNING a slow disk" in (tmp_path / "orbax.log").read_text()
    report("of a reader")
    assert "of a reader" not in (tmp_path / "orbax.log").read_text()
    assert caplog.messages == ["of a reader"]


def test_only_dropped_reads_of_orbax_are_not_shown() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    hidden = []
    for call in (loop.call_soon_threadsafe, loop.call_soon):
        try:
            call(print)
        except RuntimeError as error:
            traceback = error.__traceback__.tb_next  # type: ignore[union-attr]
            event = SimpleNamespace(object=None, exc_value=error, exc_traceback=traceback)
            hidden.append(orbax_messages._is_of_a_failed_read(event))
    assert hidden == [True, False]
