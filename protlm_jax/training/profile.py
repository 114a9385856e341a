"""A trace of a few steps, for TensorBoard's profile tab or XProf."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces the steps from the first to the last one, on every host, into the run's folder.

    Args:
        steps: the two, counted from 1; empty for no trace.
        workdir: gets `plugins/profile/<time>/`, where TensorBoard looks for it.
    """

    def __init__(self, steps: Sequence[int], workdir: Path) -> None:
        self.steps, self.workdir, self._on = steps, workdir, False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()

    def before(self, step: int) -> None:
        """Before a step is dispatched."""
        if self.steps and step == self.steps[0]:
            jax.profiler.start_trace(self.workdir)
            self._on = True

    def after(self, step: int, state: Any) -> None:
        """After a step was dispatched; waits for the last one, so that the trace has all of it."""
        if self._on and step == self.steps[1]:
            jax.block_until_ready(state)
            self.__exit__()
