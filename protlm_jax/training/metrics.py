"""metrics.jsonl, TensorBoard events, throughput, and progress on the screen."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged
from protlm_jax.storage.files import cannot_write
from protlm_jax.training.hardware import peak_flops

CHECK = "check"  # the last name of a line: CRC-32 of the others


def require_finite(step: int, value: float, name: str = "loss") -> None:
    """Raises a ProtlmError that names the step where a number is not finite."""
    if not math.isfinite(value):
        raise ProtlmError(
            f"training stopped: {name} is {value} at step {step}. Checkpoints hold earlier, finite "
            f"states only. Start in a new workdir with a lower schedule.learning_rate, a longer "
            f"schedule.warmup_steps, or optimizer.clip_norm=1.0"
        )


class MetricsWriter:
    """Appends to `workdir/metrics.jsonl` and to TensorBoard events in `workdir`.

    A line is one JSON object, "step" first and a checksum last. Numbers are written in full, so
    equal numbers mean equal bits; what depends on the clock is named "time/...". An array with an
    entry per layer is a list, and in TensorBoard one curve per layer: `layers/encoder/grad_norm`
    becomes `layers/encoder/03/grad_norm`.

    Args:
        workdir: the run's folder.
        resume_step: later lines and events are cut, and written again; 0 cuts all. A damaged line
            before them is kept, with a warning.

    Raises:
        ProtlmError: the files cannot be read or written.
    """

    def __init__(self, workdir: str | Path, resume_step: int) -> None:
        # Not tensorboardX's SummaryWriter: its thread dies on a full disk, and then it hangs.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self.path = Path(workdir) / "metrics.jsonl"
        self._failed = False
        with self._failures():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line is written or it is not, and closing has nothing left to fail at.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o666)
            self._lines = open(descriptor, "ab", buffering=0)  # noqa: SIM115 (closed in close)
            self._lines.truncate(_length_until(self.path, resume_step))
            # Two starts within one second would get one name, but for the suffix.
            suffix = f".{resume_step}.{os.getpid()}"
            self._events = EventsWriter(str(self.path.parent / "events"), suffix)
            first = resume_step + 1 if resume_step else 0
            self._add_event(first, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds one line; a killed process loses none that was written.

        Args:
            step: number of updates made.
            values: floats, integers, scalar arrays, or arrays [layers].
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
        """Flushes and closes the files; raises no failure a second time."""
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


class NoMetrics:
    """Stands for a `MetricsWriter` on hosts that do not write."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


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
    """The lines of a run's metrics.jsonl, without their checksums.

    Raises:
        Damaged: a line is not as it was written; lines of older versions have no checksum.
        ProtlmError: the file cannot be read.
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


class Throughput:
    """Speed between two readings, in tokens that are not padding.

    Args:
        flops_per_token: of training, forward and backward.
        devices: all that train.
    """

    def __init__(self, flops_per_token: float, devices: Sequence[Any]) -> None:
        self.flops_per_token = flops_per_token
        self.peak = peak_flops(devices[0].device_kind) * len(devices)
        self._since: float | None = None
        self._tokens = self._steps = 0

    def add(self, tokens: int) -> None:
        """Counts a step that just ended; the first, with its compilation, starts the clock."""
        if self._since is None:
            self._since = time.perf_counter()
            return
        self._tokens += tokens
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what is not training, such as an evaluation."""
        begin = time.perf_counter()
        yield
        if self._since is not None:
            self._since += time.perf_counter() - begin

    def read(self) -> dict[str, float]:
        """Since the last reading: `time/tokens_per_second`, `time/seconds_per_step`,
        `time/model_flops_per_second` over all devices, and `time/mfu`, their share of the devices'
        bf16 peak, where that is known. Empty when no step was counted.
        """
        if self._since is None or not self._steps:
            return {}
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        flops = self._tokens * self.flops_per_token / seconds
        rates = {
            "time/tokens_per_second": self._tokens / seconds,
            "time/seconds_per_step": seconds / self._steps,
            "time/model_flops_per_second": flops,
        }
        self._since, self._tokens, self._steps = now, 0, 0
        return rates | ({"time/mfu": flops / self.peak} if self.peak else {})


class ProgressReporter:
    """A bar on a terminal, a plain line now and then in a log.

    Args:
        total: the run's last step.
        start: the step it goes on from.
        every: steps between lines in a log.
        stream: standard error by default.
        shown: False on hosts that print nothing.
    """

    def __init__(
        self,
        total: int,
        start: int,
        every: int,
        stream: TextIO | None = None,
        shown: bool = True,
    ) -> None:
        self.total, self.start, self.every, self.shown = total, start, every, shown
        self.stream = stream or sys.stderr
        self._begin = time.monotonic()
        self._bar: Any = None
        if shown and self.stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=start, unit="step", file=self.stream, dynamic_ncols=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """After each step; `metrics` holds "loss" and may hold "asked/accuracy"."""
        names = {"loss": "loss", "asked/accuracy": "accuracy"}
        shown = {names[n]: f"{float(metrics[n]):.4f}" for n in names if n in metrics}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self.every == 0 or step in (self.start + 1, self.total):
            self._print(
                f"{', '.join(f'{n} {v}' for n, v in shown.items())}, {self._eta(step)}", step
            )

    def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None:
        """After each evaluation: its numbers on a line that stays."""
        numbers = ", ".join(f"{name} {float(value):.4f}" for name, value in metrics.items())
        if self._bar is not None:
            self._bar.write(f"step {step}: {numbers}", file=self.stream)
        else:
            self._print(numbers, step)

    def _print(self, text: str, step: int) -> None:
        if self.shown:
            print(f"step {step}/{self.total}: {text}", file=self.stream, flush=True)

    def _eta(self, step: int) -> str:
        seconds = (time.monotonic() - self._begin) / (step - self.start) * (self.total - step)
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
