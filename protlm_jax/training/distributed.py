"""Several hosts that train as one, and how a run ends when its machines are taken away.

Every host runs the same command and holds a part of the same arrays. Two things end a run from
outside. A machine that is about to go says so (SIGTERM): all hosts save at one step, on which they
agree, and leave with an exit code that asks for the same command again. Before the first update
there is nothing to save, and the host leaves alone. A machine that is gone says nothing: the others
notice within a minute, by a closed connection or by JAX's heartbeats, and leave with the same code
instead of waiting for it.
"""

from __future__ import annotations

import contextlib
import ctypes
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
from protlm_jax.storage.owner import Occupied, owned

_Action = ctypes.Array[ctypes.c_char]

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
    global _jax_sigterm
    before = _sigterm()
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
    _survive_abort()
    if callable(signal.getsignal(signal.SIGTERM)):
        _jax_sigterm = _sigterm(before)
    try:
        yield
    except Stopped as stopped:
        if _jax_sigterm is not None:
            _leave(stopped)
        jax.distributed.shutdown()  # all hosts stop here together
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        _leave(error)


def _leave(error: BaseException) -> None:
    """Ends the process of a host that failed, or whose neighbour did."""
    code = 1
    if isinstance(error, Stopped):
        print(error, file=sys.stderr)
        code = Stopped.EXIT_CODE
    elif isinstance(error, ProtlmError):
        print(f"error: {error}", file=sys.stderr)
    elif isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
        first = str(error).strip().splitlines()[0][:300]
        print(_lost(f"host {jax.process_index()}", first), file=sys.stderr)
        code = Stopped.EXIT_CODE
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an orderly exit would wait for the other hosts


def _lost(host: str, reason: str) -> str:
    return (
        f"error: {host} cannot go on: another host is gone, or the network between them "
        f"({reason}). Start the same command on all hosts again: it goes on from the last "
        f"checkpoint"
    )


_on_abort: Any = None  # the C library holds its address


def _survive_abort() -> None:
    """Ends the process as `_leave` does where JAX aborts it, because a host falls silent.

    JAX does so from a thread of its own. Its public interface has no other way, and the callback
    that jaxlib takes is called with a value that it cannot convert (0.10). What aborts in a thread
    of Python's is something else, and ends as ever.
    """
    global _on_abort
    line = _lost("this host", "no sign of life; see above").encode() + b"\n"
    stderr = os.dup(2)  # imports of TensorFlow point it elsewhere for a while

    def handle(_: int) -> None:
        if threading.get_ident() not in [thread.ident for thread in threading.enumerate()]:
            os.write(stderr, line)
            os._exit(Stopped.EXIT_CODE)

    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort)


_jax_sigterm: _Action | None = None  # JAX's, until the first update: it would answer there only


def _sigterm(action: _Action | None = None) -> _Action:
    """The C library's struct of what happens at SIGTERM, which `action` replaces if given."""
    before = ctypes.create_string_buffer(1024)  # larger than the struct on any system
    ctypes.CDLL(None).sigaction(int(signal.SIGTERM), action, before)
    return before


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


@contextlib.contextmanager
def owned_by_all(workdir: Path) -> Iterator[None]:
    """Keeps a run's folder to these hosts while the block runs; called by all of them.

    Raises:
        ProtlmError: on all hosts, where the leading one does not get the folder.
    """
    refused: ProtlmError | None = None
    with contextlib.ExitStack() as stack:
        if leads():
            try:
                stack.enter_context(owned(workdir, inside=True))
            except ProtlmError as error:
                refused = error
        if agreed(refused is not None):
            if _joined():  # all leave here together; none is to take the others for lost
                jax.distributed.shutdown()
            raise refused or Occupied(f"{workdir}: host 0 does not get the folder of this run")
        yield


class Farewell:
    """Notes SIGTERM instead of ending at once: `with Farewell() as farewell`.

    It begins with `listen`, when there is something to save. One that came and was not asked for
    is passed on to whoever listened before.
    """

    def __init__(self) -> None:
        self._heard = False
        self._before: Any = None

    def __enter__(self) -> Farewell:
        return self

    def listen(self) -> None:
        """From now on SIGTERM is noted."""
        global _jax_sigterm
        if _jax_sigterm is not None:  # of several hosts, so that they agree on the step
            _sigterm(_jax_sigterm)
            _jax_sigterm = None
        alone = not _joined() and threading.current_thread() is threading.main_thread()
        if self._before is None and alone:
            self._before = signal.signal(signal.SIGTERM, self._hear)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            if self._heard and kind is None and callable(self._before):
                signal.raise_signal(signal.SIGTERM)

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
