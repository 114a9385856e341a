"""metrics.jsonl and TensorBoard events of a run."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged
from protlm_jax.storage.files import cannot_write

CHECK = "check"  # the last name of a line: CRC-32 of the others


class MetricsWriter:
    """Appends to `workdir/metrics.jsonl` and to TensorBoard events in `workdir`.

    A line is one JSON object, "step" first and a checksum last. Numbers are written in full; what
    depends on the clock is named "time/...". An array with an entry per layer is a list, and in
    TensorBoard one curve per layer: `layers/encoder/grad_norm` is `layers/encoder/03/grad_norm`.
    What is later than `resume_step` is cut; damaged lines before it are kept, with a warning.
    """

    def __init__(self, workdir: str | Path, resume_step: int) -> None:
        # Not tensorboardX's SummaryWriter: its thread dies on a full disk, and then it hangs.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self.path = Path(workdir) / "metrics.jsonl"
        self._failed = False
        with self._failures():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line is written or not, and closing cannot fail.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o666)
            self._lines = open(descriptor, "ab", buffering=0)  # noqa: SIM115 (closed in close)
            self._lines.truncate(_length_until(self.path, resume_step))
            # Without the suffix, two starts within one second would get one name.
            suffix = f".{resume_step}.{os.getpid()}"
            self._events = EventsWriter(str(self.path.parent / "events"), suffix)
            first = resume_step + 1 if resume_step else 0
            self._add_event(first, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a line of floats, integers, scalar arrays, or arrays [layers] after `step` updates.

        A killed process loses no line that was written.
        """
        arrays = {name: np.asarray(value) for name, value in values.items()}
        record = {"step": step} | {name: _plain(array.tolist()) for name, array in arrays.items()}
        with self._failures():
            record[CHECK] = _check(record)
            line = json.dumps(record, allow_nan=False).encode() + b"\n"
            if self._lines.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._add_event(step, summary=_summary(arrays))

    def flush(self) -> None:
        """Returns when all lines are on the disk itself; before a checkpoint of their steps."""
        with self._failures():
            os.fsync(self._lines.fileno())
            self._events.flush()

    def close(self) -> None:
        """Closes the files; raises no failure a second time."""
        raised_before = suppress(ProtlmError) if self._failed else nullcontext()
        with raised_before, self._failures():
            self._lines.close()
            self._events.close()

    def _add_event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=step, **content))

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            if error.errno == errno.ELOOP:
                raise ProtlmError(f"{self.path} is a symbolic link: remove it") from error
            raise cannot_write(self.path, error) from error


def _summary(arrays: Mapping[str, np.ndarray]) -> Any:
    """TensorBoard's form of one line."""
    from tensorboardX.proto.summary_pb2 import Summary

    values = []
    for name, array in arrays.items():
        group, _, measure = name.rpartition("/")
        for layer, value in enumerate(np.atleast_1d(array)):
            tag = f"{group}/{layer:02d}/{measure}" if array.ndim else name
            values.append(Summary.Value(tag=tag, simple_value=float(value)))
    return Summary(value=values)


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: null."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without their checksums, which older versions did not
    write.

    Raises Damaged where a line is not as it was written, and ProtlmError where it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return [_parsed(line, file, number) for number, line in enumerate(opened, start=1)]
    except OSError as error:
        raise ProtlmError(f"{file} cannot be read: {error.strerror}") from error


def _parsed(line: bytes, file: Path, number: int) -> dict[str, Any]:
    """One line whose checksum is right."""
    try:
        record = json.loads(line)
        check = record.pop(CHECK, None)
        whole = isinstance(record["step"], int) and check in (None, _check(record))
        # Only the checksum is text; any other text is a checksum whose name is damaged.
        if whole and not any(isinstance(value, str) for value in record.values()):
            return record
        reason = "its checksum does not match"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        reason = "it is no JSON object with a step"
    raise Damaged(f"{file}, line {number} is damaged: {reason}. Remove that line to go on without")


def _check(record: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record).encode()):08x}"


def _length_until(path: Path, resume_step: int) -> int:
    """Bytes of the whole lines up to a step; their steps never decrease."""
    length = end = 0
    damaged: list[tuple[int, int]] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines if resume_step else (), start=1):
            end += len(line)
            try:
                step = _parsed(line, path, number)["step"]
            except Damaged:
                damaged.append((number, end))
                continue
            if step > resume_step:
                break
            if line.endswith(b"\n"):  # it was not torn when the run was killed
                length = end
    for number, end in damaged:
        what = "stays as it is" if end <= length else "is cut off with those of later steps"
        print(f"WARNING: {path}, line {number} is damaged; it {what}", file=sys.stderr)
    return length
