"""Several hosts that train as one, and how a run ends when its machines are taken away.

Every host runs the same command and holds a part of the same arrays. Two things end a run from
outside. A machine that is about to go says so (SIGTERM): all hosts save at one step, on which they
agree, and leave with an exit code that asks for the same command again. A machine that is gone says
nothing: the others notice within a minute, and leave instead of waiting for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from protlm_jax.errors import ProtlmError, Stopped

HEARTBEAT = 40  # seconds without a word, after which a host counts as gone


@dataclass(frozen=True)
class Hosts:
    """Where a process stands among the others; None for what the cluster is to be asked.

    Attributes:
        coordinator: address of host 0, HOST:PORT.
        count: how many processes there are.
        index: which of them this one is, from 0.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


@contextlib.contextmanager
def joined(hosts: Hosts | None) -> Iterator[None]:
    """Joins the other hosts, before JAX's first use, and leaves as they do; None for one host.

    Of several hosts, one that fails ends its process at once: the others wait for it in the middle
    of a step, and are told by its silence.

    Raises:
        ProtlmError: the hosts do not find each other.
    """
    if hosts is None:
        yield
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            *(hosts.coordinator, hosts.count, hosts.index),
            # A process that was told its place has all devices of its machine, also under SLURM.
            cluster_detection_method="deactivate" if hosts.coordinator else None,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise ProtlmError(
            f"the hosts do not find each other: {error}. TPU pods, SLURM and Open MPI are "
            f"recognised; elsewhere say --coordinator HOST:PORT --hosts N --host I"
        ) from error
    try:
        yield
    except Stopped:
        raise  # all hosts stop here together
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        _leave(error)


def _leave(error: BaseException) -> None:
    """Ends the process of a host that failed, or whose neighbour did."""
    code = 1
    if isinstance(error, ProtlmError):
        print(f"error: {error}", file=sys.stderr)
    elif isinstance(error, jax.errors.JaxRuntimeError):
        first = str(error).strip().splitlines()[0][:300]
        print(
            f"error: host {jax.process_index()} cannot go on: another host is gone, or the network "
            f"between them ({first}). Start the same command on all hosts again: it goes on from "
            f"the last checkpoint",
            file=sys.stderr,
        )
        code = Stopped.EXIT_CODE
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an orderly exit would wait for the other hosts


def leads() -> bool:
    """Whether this is the host that writes files and speaks to people."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """For people, once."""
    if leads():
        print(text, file=sys.stderr, flush=True)


def agreed(value: int) -> int:
    """What the leading host found, on all hosts."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(value))


def require_shared(file: Path) -> None:
    """Checks that this host sees what the leading one has written; called by all.

    Raises:
        ProtlmError: it does not.
    """
    agreed(0)  # it is written
    if not file.exists():
        raise ProtlmError(
            f"host {jax.process_index()} does not see {file}, which host 0 has written: give a "
            f"--workdir on a disk that all hosts share"
        )


class Farewell:
    """Listens for SIGTERM while it is entered: `with Farewell() as farewell`."""

    def __init__(self) -> None:
        self._heard = False
        self._before: Any = None

    def __enter__(self) -> Farewell:
        # With several hosts JAX listens, so that they agree on the step.
        if not _joined() and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, *_: object) -> None:
        self._heard = True

    def due(self, step: int) -> bool:
        """Whether the run is to save and stop at this step; to be asked at each step, by all."""
        if not _joined():
            return self._heard
        from jax.experimental import multihost_utils

        return bool(multihost_utils.reached_preemption_sync_point(step))


def _joined() -> bool:
    return bool(jax.distributed.is_initialized())
