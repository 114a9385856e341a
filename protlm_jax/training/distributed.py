"""Several hosts that train as one, and how a run ends when its machines are taken away.

A host that will be taken away gets SIGTERM: all hosts save at one step, on which they agree, and
exit with a code that asks for the same command again. A host that is lost without notice is
detected within a minute, by a closed connection or by JAX's heartbeats.
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
from typing import Any, Self

import jax

from protlm_jax.errors import ProtlmError, Stopped
from protlm_jax.storage.owner import Occupied, owned

HEARTBEAT = 40  # seconds without a heartbeat, after which a host counts as lost

# The C library's SIGTERM action that JAX installs. It is put back at the first update only: before,
# no step would read it.
_jax_sigterm: ctypes.Array[ctypes.c_char] | None = None
_on_abort: Any = None  # the C library holds its address


@dataclass(frozen=True)
class Hosts:
    """The place of a process among `count` hosts; None: detected from the cluster's environment.

    `coordinator` is HOST:PORT of host 0, and `index` counts from 0.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


@contextlib.contextmanager
def connected(hosts: Hosts | None) -> Iterator[None]:
    """Connects to the other hosts, before JAX's first use; None for one host.

    Of several hosts, one that fails ends its process at once: the others wait for it in the middle
    of a step, and notice that it is gone. Raises a ProtlmError where the hosts do not find each
    other.
    """
    if hosts is None:
        yield
        return
    global _jax_sigterm
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    before = _sigterm()
    try:
        jax.distributed.initialize(
            *(hosts.coordinator, hosts.count, hosts.index),
            # A process whose place is given has all devices of its machine, also under SLURM.
            cluster_detection_method="deactivate" if hosts.coordinator else None,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise ProtlmError(
            f"the hosts do not find each other: {error}. TPU pods, SLURM and Open MPI are "
            f"recognised; elsewhere give --coordinator HOST:PORT --hosts N --host I"
        ) from error
    _exit_on_abort()
    if callable(signal.getsignal(signal.SIGTERM)):
        _jax_sigterm = _sigterm(before)
    try:
        yield
    except Stopped as stopped:
        if _jax_sigterm is not None:
            _exit(stopped)
        jax.distributed.shutdown()  # all hosts stop here together
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        _exit(error)


def _exit(error: BaseException) -> None:
    """Reports why this host ends, and ends it: an orderly exit would wait for the other hosts."""
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
    os._exit(code)


def _lost(host: str, reason: str) -> str:
    return (
        f"error: {host} cannot go on: another host is gone, or the network between them "
        f"({reason}). Start the same command on all hosts again: it goes on from the last "
        f"checkpoint"
    )


def _exit_on_abort() -> None:
    """Exits with the code for "again" where JAX aborts because a host sends no heartbeats.

    JAX aborts from a thread of its own, without a usable hook: the callback that jaxlib accepts is
    called with a value that it cannot convert (0.10). An abort in a Python thread is another error.
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


def _sigterm(action: Any = None) -> ctypes.Array[ctypes.c_char]:
    """The C library's `struct sigaction` of SIGTERM, which `action` replaces if given."""
    before = ctypes.create_string_buffer(1024)  # larger than the struct on any system
    ctypes.CDLL(None).sigaction(int(signal.SIGTERM), action, before)
    return before


def is_primary() -> bool:
    """Whether this is host 0, which writes files and prints messages."""
    return jax.process_index() == 0


def print_once(text: str) -> None:
    """Prints to standard error, on host 0 alone."""
    if is_primary():
        print(text, file=sys.stderr, flush=True)


def broadcast(value: int) -> int:
    """Host 0's value, on all hosts; a barrier too."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(value))


def require_shared(file: Path) -> None:
    """Raises a ProtlmError where this host does not see a file of host 0; called by all hosts."""
    broadcast(0)  # it is written
    if not file.exists():
        raise ProtlmError(
            f"host {jax.process_index()} does not see {file}, which host 0 has written: give a "
            f"--workdir on a disk that all hosts share"
        )


@contextlib.contextmanager
def owned_by_hosts(workdir: Path) -> Iterator[None]:
    """Locks a run's folder for these hosts while the block runs; called by all of them.

    Raises a ProtlmError on all hosts where host 0 does not get the lock.
    """
    refused: ProtlmError | None = None
    with contextlib.ExitStack() as stack:
        if is_primary():
            try:
                stack.enter_context(owned(workdir, inside=True))
            except ProtlmError as error:
                refused = error
        if broadcast(refused is not None):
            if jax.distributed.is_initialized():  # so that no host takes the others for lost
                jax.distributed.shutdown()
            raise refused or Occupied(f"{workdir}: host 0 does not get the folder of this run")
        yield


class SigtermNotice:
    """Records SIGTERM instead of ending at once, from `listen` on: `with SigtermNotice() as s`.

    A SIGTERM that nobody asked about is passed on to the previous handler at the end.
    """

    def __init__(self) -> None:
        self._arrived = False
        self._before: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            if self._arrived and kind is None and callable(self._before):
                signal.raise_signal(signal.SIGTERM)

    def listen(self) -> None:
        """Starts to record; with several hosts JAX does, so that they agree on the step."""
        global _jax_sigterm
        if _jax_sigterm is not None:
            _sigterm(_jax_sigterm)
            _jax_sigterm = None
        main = threading.current_thread() is threading.main_thread()
        if self._before is None and main and not jax.distributed.is_initialized():
            self._before = signal.signal(signal.SIGTERM, self._record)

    def _record(self, *_: object) -> None:
        self._arrived = True

    def received(self, step: int) -> bool:
        """Whether to save and stop at this step; called by all hosts at each step."""
        if not jax.distributed.is_initialized():
            return self._arrived
        from jax.experimental import multihost_utils

        return bool(multihost_utils.reached_preemption_sync_point(step))
