"""What a run reports while it trains: metrics of each step, speed, a bar or lines."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, TextIO

import jax

from protlm_jax.config.run import TrainConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.training.distributed import is_primary, print_once
from protlm_jax.training.hardware import peak_flops
from protlm_jax.training.metrics import MetricsWriter

LONG_PROTEINS = {
    "crop": "each epoch shows another random piece of them",
    "chunk": "each is read in pieces of nearly equal length",
    "drop": "they are left out",
}


def is_due(step: int, every: int, last: int) -> bool:
    """Whether what happens at multiples of `every` (0: never), and at the last step, happens."""
    return every > 0 and (step % every == 0 or step == last)


class StepLog:
    """Reads the metrics of each step when the next one was dispatched, checks and writes them.

    A finite update of a finite state makes a finite state, so everything that is saved is finite.
    `writer` is None on hosts that do not write.
    """

    def __init__(
        self,
        train: TrainConfig,
        start: int,
        writer: MetricsWriter | None,
        schedule: Callable[[Any], Any],
        throughput: Throughput,
    ) -> None:
        self.train, self.writer, self.schedule = train, writer, schedule
        self.throughput = throughput
        self.progress = ProgressReporter(train.steps, start, train.log_every, shown=is_primary())
        self._pending: tuple[int, dict[str, jax.Array], int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()

    def add(self, step: int, metrics: dict[str, jax.Array], tokens: int) -> None:
        """Takes a step that was dispatched, and reads the one before it."""
        self._read()
        self._pending = step, metrics, tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For evaluating and saving: reads the last step first, and stops the clock."""
        self._read()
        with self.throughput.paused():
            yield

    def evaluated(self, step: int, line: Mapping[str, float]) -> None:
        """Writes and shows the metrics of an evaluation."""
        if self.writer is not None:
            self.writer.write(step, line)
        self.progress.evaluated(step, line)

    def _read(self) -> None:
        if self._pending is None:
            return
        (step, on_device, tokens), self._pending = self._pending, None
        metrics = jax.device_get(on_device)
        if metrics.get("skipped/now"):
            self._report_skipped(step, int(metrics.get("skipped/in_a_row", 0)))
        else:
            for name in ("loss", "gradient_norm", "update_norm"):
                require_finite(step, float(metrics[name]), name)
        self.throughput.add(tokens)
        self.progress.update(step, metrics)
        due = is_due(step, self.train.log_every, self.train.steps) or step == 1
        if due and self.writer is not None:
            rate = float(self.schedule(step - 1))
            self.writer.write(step, {**metrics, "learning_rate": rate, **self.throughput.read()})

    def _report_skipped(self, step: int, in_a_row: int) -> None:
        """Reports an update that was skipped; raises when there are too many in a row."""
        limit = self.train.skip_limit
        if in_a_row > limit > 0:
            raise ProtlmError(
                f"training stopped: updates {step - limit} to {step} had losses or gradients that "
                f"are not finite, or far too large, and train.skip_limit is {limit}. The last "
                f"checkpoint was written before or during them, with finite parameters; go on in a "
                f"new workdir with a lower schedule.learning_rate, or with optimizer.clip_norm=1.0"
            )
        if in_a_row:
            print_once(f"step {step}: the update was left out, {in_a_row} in a row")


def require_finite(step: int, value: float, name: str = "loss") -> None:
    """Raises a ProtlmError that names the step where a number is not finite."""
    if not math.isfinite(value):
        raise ProtlmError(
            f"training stopped: {name} is {value} at step {step}. Checkpoints hold earlier, finite "
            f"states only. Start in a new workdir with a lower schedule.learning_rate, a longer "
            f"schedule.warmup_steps, or optimizer.clip_norm=1.0"
        )


class Throughput:
    """Speed between two readings, in tokens that are not padding."""

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
        """Stops the clock."""
        begin = time.perf_counter()
        yield
        if self._since is not None:
            self._since += time.perf_counter() - begin

    def read(self) -> dict[str, float]:
        """Since the last reading; empty when no step was counted.

        `time/tokens_per_second`, `time/seconds_per_step`, `time/model_flops_per_second` over all
        devices, and `time/mfu`, their share of the devices' bf16 peak, where that is known.
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
    """A bar on a terminal; elsewhere a line every `every` steps. `stream` is standard error by
    default.
    """

    def __init__(
        self, total: int, start: int, every: int, stream: TextIO | None = None, shown: bool = True
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

    def close(self) -> None:
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
            numbers = ", ".join(f"{name} {value}" for name, value in shown.items())
            left = (time.monotonic() - self._begin) / (step - self.start) * (self.total - step)
            minutes, seconds = divmod(round(left), 60)
            eta = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
            self._print(f"{numbers}, {eta}", step)

    def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None:
        """After each evaluation; its metrics stay on the screen."""
        numbers = ", ".join(f"{name} {float(value):.4f}" for name, value in metrics.items())
        if self._bar is not None:
            self._bar.write(f"step {step}: {numbers}", file=self.stream)
        else:
            self._print(numbers, step)

    def _print(self, text: str, step: int) -> None:
        if self.shown:
            print(f"step {step}/{self.total}: {text}", file=self.stream, flush=True)
