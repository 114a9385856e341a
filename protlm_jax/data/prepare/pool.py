"""A few worker processes that neither run ahead of their parent nor outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from protlm_jax.errors import ProtlmError

_WAITING = 2  # tasks per worker that may wait: each holds a block of input in memory


class Pool:
    """Runs functions for their effects, in worker processes, or here when there is one worker.

    A failed task raises in `submit` or `wait`, the earliest submitted one first; then no new tasks
    are started.

    Raises:
        ProtlmError: fewer workers than one; from `submit` and `wait`, a worker was killed.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ProtlmError(f"workers is {workers}; at least one has to do the work")
        self._limit = _WAITING * workers
        self._tasks: deque[tuple[Future[None], Callable[[], object] | None]] = deque()
        self._executor: ProcessPoolExecutor | None = None
        if workers > 1:
            # Not fork: whoever calls this may have threads, and JAX's do not survive it.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(workers, context, _follow_parent)

    def submit(
        self,
        function: Callable[..., None],
        *arguments: Any,
        then: Callable[[], object] | None = None,
    ) -> None:
        """Starts a task, after waiting for an earlier one where too many are under way.

        Args:
            then: is called here when the task has ended well.
        """
        if self._executor is None:
            function(*arguments)
            if then is not None:
                then()
            return
        if len(self._tasks) >= self._limit:
            self._finish_one()
        self._tasks.append((self._executor.submit(function, *arguments), then))

    def wait(self) -> None:
        """Waits for all tasks."""
        while self._tasks:
            self._finish_one()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def _finish_one(self) -> None:
        task, then = self._tasks.popleft()
        try:
            task.result()
        except BrokenProcessPool:
            raise ProtlmError(
                "a worker process was killed, probably because memory ran out; run the same "
                "command again to go on, with fewer --workers"
            ) from None
        if then is not None:
            then()


def _follow_parent() -> None:
    """In a worker: ends with its parent, however that ends, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
