"""A few worker processes that neither run ahead of their parent nor outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing.connection import wait
from typing import Any

from protlm_jax.errors import ProtlmError

_WAITING = 2  # tasks per worker that may wait: each holds a block of input in memory


class Workers(ExitStack):
    """Worker processes, until the block of `with` ends; one worker works in this process.

    Raises:
        ProtlmError: fewer workers than one.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        if count < 1:
            raise ProtlmError(f"workers is {count}; at least one has to do the work")
        self._limit = _WAITING * count
        self._executor: ProcessPoolExecutor | None = None
        if count > 1:
            # Not fork: whoever calls this may have threads, and JAX's do not survive it.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(count, context, _follow_parent)
            self.callback(self._executor.shutdown, cancel_futures=True)

    def run(
        self, function: Callable[..., None], tasks: Iterable[tuple[Any, ...]]
    ) -> Iterator[None]:
        """Calls `function` with the arguments of each task; gives None for each that has ended.

        A failed task raises here, the earliest one first; then no further tasks are started.

        Raises:
            ProtlmError: a worker was killed.
        """
        running: deque[Future[None]] = deque()
        try:
            for task in tasks:
                if self._executor is None:
                    function(*task)
                    yield
                    continue
                if len(running) >= self._limit:
                    yield running.popleft().result()
                running.append(self._executor.submit(function, *task))
            while running:
                yield running.popleft().result()
        except BrokenProcessPool:
            raise ProtlmError(
                "a worker process was killed, probably because memory ran out; run the same "
                "command again to go on, with fewer --workers"
            ) from None


def _follow_parent() -> None:
    """In a worker: ends with its parent, however that ends, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
