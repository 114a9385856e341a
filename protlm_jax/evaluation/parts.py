"""Results of records on their way to one file, in parts that outlast a kill.

A part (`storage.parts`) holds the arrays of some records, one kind after the other, and its note
says which records these are. Records in no part, or in a damaged one, are computed again.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.storage.digests import Damaged, verify_entries
from protlm_jax.storage.files import atomic_file
from protlm_jax.storage.parts import FILES, claim, finish, finished

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
Shape = Callable[[str, int], tuple[int, ...]]
"""Of the array of one kind, of a record of so many residues."""

PART_BYTES = 1 << 26
PART_SECONDS = 60.0
_REMEDY = "its proteins are computed again"


@dataclass(frozen=True)
class Failure:
    """A record of the input without a result: its place (from 0), line, name, and why."""

    record: int
    line: int
    id: str
    reason: str


class Parts:
    """The parts of one output.

    Attributes:
        done: [records] bool, whether there is a result or a failure.
        failures: by record.
    """

    def __init__(
        self, folder: Path, records: int, names: Sequence[str], shape: Shape, dtype: np.dtype
    ) -> None:
        self.folder, self.names, self.shape, self.dtype = folder, tuple(names), shape, dtype
        self.done = np.zeros(records, bool)
        self.failures: dict[int, Failure] = {}
        self._part = np.full(records, -1, np.int32)
        self._residues = np.zeros(records, np.int64)
        # Where the arrays of each record begin in its part.
        self._begins = {name: np.zeros(records, np.int64) for name in names}
        self._parts: list[tuple[Path, dict[str, Any]]] = []  # and the size and digest of each
        self._clear()

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: dict[str, Any],
        records: int,
        names: Sequence[str],
        shape: Shape,
        dtype: np.dtype,
    ) -> Parts:
        """The folder with what an earlier run has left in it.

        Args:
            folder: there is one.
            settings: JSON of all that decides the results.
            records: how many there are.
            names: kinds of arrays of a record, alike in dtype.
            shape: of each.

        Raises:
            ProtlmError: it belongs to other settings, or cannot be read or written.
        """
        claim(folder, settings)
        parts = cls(folder, records, names, shape, dtype)
        for note in sorted(folder.glob("part-*.json")):
            about, part = finished(note, remedy=_REMEDY), note.with_suffix("")
            try:
                if about is not None:
                    parts._take(part, about)
            except (LookupError, TypeError, ValueError, OverflowError):
                log.warning("%s is damaged: %s", part, _REMEDY)
        return parts

    def add(self, record: int, residues: int, arrays: Arrays) -> None:
        """Takes the result of a record for the next part."""
        self._results.append((record, residues, arrays))
        self._held += sum(array.nbytes for array in arrays.values())

    def fail(self, failure: Failure) -> None:
        """Takes a failure for the next part."""
        self._failures.append(failure)

    def flush(self, *, whole: bool = False) -> None:
        """Writes a part when there is enough for one, or, with `whole`, anything."""
        due = self._held >= PART_BYTES or time.monotonic() - self._since >= PART_SECONDS
        if not (self._results or self._failures) or not (due or whole):
            return
        number = 1 + max((int(part.name[5:]) for part, _ in self._parts), default=-1)
        part = self.folder / f"part-{number:06d}"
        with atomic_file(part) as file:
            for name in self.names:
                for _, _, arrays in self._results:
                    file.write(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
        about = {
            "records": [record for record, _, _ in self._results],
            "residues": [residues for _, residues, _ in self._results],
            "failures": [asdict(failure) for failure in self._failures],
        }
        self._take(part, finish(part.with_suffix(".json"), [part], **about))
        self._clear()

    def has(self, record: int) -> bool:
        """Whether a record has a result."""
        return bool(self._part[record] >= 0)

    def read(self, record: int, name: str) -> np.ndarray:
        """One array of a record that has a result."""
        part, _ = self._parts[self._part[record]]
        shape = self.shape(name, int(self._residues[record]))
        offset = int(self._begins[name][record])
        return np.fromfile(part, self.dtype, math.prod(shape), offset=offset).reshape(shape)

    def verify(self) -> None:
        """Raises Damaged where a part is not what was written."""
        for part, entries in self._parts:
            try:
                verify_entries(self.folder, entries, what=part.name)
            except Damaged as error:
                raise Damaged(
                    f"{part} is damaged: run the same command again, which computes it anew"
                ) from error

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder)

    def _take(self, part: Path, about: dict[str, Any]) -> None:
        records = np.array(about["records"], np.int64)
        residues = np.array(about["residues"], np.int64)
        failures = [Failure(**fields) for fields in about["failures"]]
        sizes = {
            name: [self.dtype.itemsize * math.prod(self.shape(name, n)) for n in about["residues"]]
            for name in self.names
        }
        if sum(map(sum, sizes.values())) != about[FILES][part.name][0] or (residues < 0).any():
            raise ValueError("the arrays are of other sizes")
        at = 0
        for name, of_name in sizes.items():
            self._begins[name][records] = at + np.cumsum(of_name) - of_name
            at += sum(of_name)
        self._residues[records] = residues
        self._part[records] = len(self._parts)
        self._parts.append((part, about[FILES]))
        self.failures |= {failure.record: failure for failure in failures}
        self.done[records] = True
        self.done[[failure.record for failure in failures]] = True

    def _clear(self) -> None:
        self._results: list[tuple[int, int, Arrays]] = []
        self._failures: list[Failure] = []
        self._held, self._since = 0, time.monotonic()
