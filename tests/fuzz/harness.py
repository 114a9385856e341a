"""Gives changed inputs to one reader and says what it does: accept, refuse, or fail."""

from __future__ import annotations

import random
import re
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.mutators import Kind, mutated

from protlm_jax.errors import ProtlmError, Stopped
from protlm_jax.vocabularies import VOCABULARIES

ALLOWED = (ProtlmError, Stopped, SystemExit)  # the last one is argparse's
SECONDS = 10
MOST_MEMORY = 1 << 20  # KiB that one input may add to the largest size of the process
LONGEST_MESSAGE = 3000


@dataclass(frozen=True)
class Case:
    """A reader in a folder where it finds all that it needs beside the input.

    Attributes:
        path: the file that an input is written to.
        seeds: valid inputs.
        read: reads the file. Raises `Lost` when it says nothing about a part of it.
    """

    path: Path
    seeds: Sequence[bytes]
    read: Callable[[], object]


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        make: gives the case in an empty folder.
        kind: how inputs are changed.
        words: what else may stand in a text.
        codec: from the file to what lies in it (a header, what is compressed), and back: most
            inputs are changed there.
        share: of all inputs, relative to other targets.
        slow: it is left out of the short run.
    """

    make: Callable[[Path], Case]
    kind: Kind = "json"
    words: Sequence[bytes] = ()
    codec: tuple[Callable[[bytes], bytes], Callable[[bytes, bytes], bytes]] | None = None
    share: float = 1.0
    slow: bool = False


class Lost(Exception):
    """A reader that neither used nor reported some records."""


class Hang(BaseException):
    """A reader was not done in time; no handler of errors may stop it."""


@dataclass(frozen=True)
class Failure:
    """What a reader did that it must not do.

    Attributes:
        kind: the exception and where it was raised, the same for inputs of one fault.
        index: of the input, from which it can be made again.
        how: the changes that made it.
        data: the input.
    """

    kind: str
    index: int
    how: str
    data: bytes


class Fuzzer:
    """One target in one folder."""

    def __init__(self, name: str, target: Target, folder: Path, seed: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.target, self.seed = name, target, seed
        self.case = target.make(folder)
        self.accepted = self.refused = 0
        for data in self.case.seeds:  # what is imported late is imported now
            self._read(data)

    def input(self, index: int) -> tuple[bytes, str]:
        """The input of this number, and how it was made; 0 is the first seed."""
        rng = random.Random(f"{self.seed}/{self.name}/{index}")
        if not index:
            return self.case.seeds[0], "seed 0"
        codec = self.target.codec
        if codec and rng.random() < 0.7:
            decode, encode = codec
            outer = rng.choice(self.case.seeds)
            data, how = mutated(self.target.kind, [decode(outer)], self.target.words, rng)
            return encode(outer, data), f"inside: {how}"
        kind = "bytes" if codec else self.target.kind
        return mutated(kind, self.case.seeds, self.target.words, rng)

    def run(self, index: int) -> Failure | None:
        """Reads one input."""
        data, how = self.input(index)
        with suppress(OSError):  # where this is no Linux, larger inputs hide smaller ones
            Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
        began, before = time.monotonic(), _largest()
        fault = self._read(data)
        seconds = time.monotonic() - began
        if not fault and seconds > SECONDS:
            fault = f"{seconds:.0f} seconds"
        if not fault and (grown := _largest() - before) > MOST_MEMORY:
            fault = f"memory grew by {grown >> 10} MB"
        return Failure(fault, index, how, data) if fault else None

    def _read(self, data: bytes) -> str:
        """What is wrong, "" for nothing."""
        self.case.path.write_bytes(data)
        try:
            with _limited(SECONDS):
                self.case.read()
            self.accepted += 1
        except ALLOWED as error:
            self.refused += 1
            if len(str(error)) > LONGEST_MESSAGE:
                return "a long message"
        except (Exception, Hang) as error:
            return _kind(error)
        finally:
            for name in [name for name in VOCABULARIES if name.startswith("custom-")]:
                del VOCABULARIES[name]
        return ""


def _largest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _kind(error: BaseException) -> str:
    """The exception, and the last line of the package that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/protlm_jax/" in f.filename] or frames
    file = re.sub(r".*/protlm_jax/", "", ours[-1].filename)
    said = f" ({error})" if isinstance(error, Lost) else ""
    return f"{type(error).__name__} at {file}:{ours[-1].lineno}{said}"


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
