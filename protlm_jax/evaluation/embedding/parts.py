"""Results on their way to one file: parts in a work folder, each there whole or not at all.

A part is its header as JSON after eight bytes with its length, and then, for each kind of vectors,
the arrays of its proteins laid end to end. What is in no part is computed again after a kill.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.wanted import Wanted
from protlm_jax.storage.files import atomic_file, write_atomically

PART_BYTES = 1 << 26
PART_SECONDS = 60.0
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Failure:
    """A record of the input without an embedding: its place (from 0), line, name, and why."""

    record: int
    line: int
    id: str
    reason: str


def differences(made: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """The settings that are not what they were, one line each."""
    return [
        f"{name} was {made.get(name)!r} and is {asked.get(name)!r}"
        for name in sorted(made.keys() | asked.keys())
        if made.get(name) != asked.get(name)
    ]


class Parts:
    """The parts of one output.

    Attributes:
        done: [records] bool, whether there is a result or a failure.
        failures: those that came up while embedding, by record.
    """

    def __init__(self, folder: Path, wanted: Wanted, width: int, records: int) -> None:
        self.folder, self.wanted, self.width = folder, wanted, width
        self.done = np.zeros(records, bool)
        self.failures: dict[int, Failure] = {}
        self._part = np.full(records, -1, np.int32)
        self._row = np.zeros(records, np.int64)  # proteins before it in its part
        self._start = np.zeros(records, np.int64)  # residues before it in its part
        self._residues = np.zeros(records, np.int64)
        self._files: list[tuple[Path, dict[str, int]]] = []  # and where each payload begins

    @classmethod
    def open(
        cls, folder: Path, settings: dict[str, Any], wanted: Wanted, width: int, records: int
    ) -> Parts:
        """The folder with what an earlier run has left in it.

        Raises:
            ProtlmError: it belongs to other settings, or cannot be read or written.
        """
        file = folder / SETTINGS
        if file.exists():
            if other := differences(json.loads(file.read_text()), settings):
                raise ProtlmError(
                    f"{folder} holds an unfinished embedding with other settings: "
                    f"{'; '.join(other)}. Use these again, or delete that folder"
                )
        else:
            write_atomically(file, json.dumps(settings, indent=1) + "\n")
        parts = cls(folder, wanted, width, records)
        for path in sorted(folder.glob("part-*")):
            parts._add(path)
        return parts

    def write(
        self, results: list[tuple[int, int, dict[str, np.ndarray]]], failures: list[Failure]
    ) -> None:
        """Adds one part: (record, residues, arrays by vectors) of each protein."""
        header: dict[str, Any] = {
            "records": [record for record, _, _ in results],
            "residues": [residues for _, residues, _ in results],
            "failures": [asdict(failure) for failure in failures],
            "bytes": {
                name: sum(arrays[name].nbytes for _, _, arrays in results)
                for name in self.wanted.vectors
            },
        }
        text = json.dumps(header).encode()
        path = self.folder / f"part-{len(self._files):06d}"
        with atomic_file(path) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in self.wanted.vectors:
                for _, _, arrays in results:
                    file.write(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
        self._add(path)

    def read(self, record: int, vectors: str) -> np.ndarray | None:
        """The array of one protein; None where there is none."""
        if self._part[record] < 0:
            return None
        path, payloads = self._files[self._part[record]]
        shape = self.wanted.shape(vectors, int(self._residues[record]), self.width)
        before = self._start if vectors == "residues" else self._row
        dtype = self.wanted.numpy_dtype
        each = len(self.wanted.layers) * self.width * dtype.itemsize
        offset = payloads[vectors] + int(before[record]) * each
        raw = np.fromfile(path, np.uint8, math.prod(shape) * dtype.itemsize, offset=offset)
        return raw.view(dtype).reshape(shape)

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder)

    def _add(self, path: Path) -> None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        records = np.array(header["records"], np.int64)
        residues = np.array(header["residues"], np.int64)
        self._part[records] = len(self._files)
        self._row[records] = np.arange(len(records))
        self._start[records] = np.cumsum(residues) - residues
        self._residues[records] = residues
        self.done[records] = True
        for fields in header["failures"]:
            failure = Failure(**fields)
            self.failures[failure.record] = failure
            self.done[failure.record] = True
        begins: dict[str, int] = {}
        at = 8 + length
        for name in self.wanted.vectors:
            begins[name] = at
            at += header["bytes"][name]
        self._files.append((path, begins))


class Collector:
    """Gathers results until they are worth a part: so many bytes, or so much time."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._clear()

    def add(self, record: int, residues: int, arrays: dict[str, np.ndarray]) -> None:
        self._results.append((record, residues, arrays))
        self._held += sum(array.nbytes for array in arrays.values())

    def fail(self, failure: Failure) -> None:
        self._failures.append(failure)

    def flush(self, *, whole: bool = False) -> None:
        """Writes a part when it is time for one, or, with `whole`, when there is anything."""
        due = self._held >= PART_BYTES or time.monotonic() - self._since >= PART_SECONDS
        if (self._results or self._failures) and (due or whole):
            self.parts.write(self._results, self._failures)
            self._clear()

    def _clear(self) -> None:
        self._results: list[tuple[int, int, dict[str, np.ndarray]]] = []
        self._failures: list[Failure] = []
        self._held, self._since = 0, time.monotonic()
