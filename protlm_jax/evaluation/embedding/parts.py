"""Results on their way to one file: parts in a work folder, each there whole or not at all.

A part is the digest of its header, eight bytes with the header's length, the header as JSON, and
then, for each kind of vectors, the arrays of its proteins laid end to end. The header has a digest
of each array. What is in no part, or in a damaged one, is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.wanted import Wanted
from protlm_jax.storage.digests import FASTEST, Damaged, digest_of_data
from protlm_jax.storage.files import atomic_file
from protlm_jax.storage.json_files import read_json, write_json

log = logging.getLogger(__name__)

PART_BYTES = 1 << 26
PART_SECONDS = 60.0
SETTINGS = "settings.json"

_DIGEST = 16  # bytes of a header's
_HEX = 32  # characters of an array's


@dataclass(frozen=True)
class Failure:
    """A record of the input without an embedding: its place (from 0), line, name, and why."""

    record: int
    line: int
    id: str
    reason: str


def differences(made: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """The settings that are not what they were, one line each."""
    if made.get("format") != asked.get("format"):
        return ["another version of protlm wrote it"]
    return [
        f"{name} was {made.get(name)!r} and is {asked.get(name)!r}"
        for name in sorted(made.keys() | asked.keys())
        if made.get(name) != asked.get(name)
    ]


class _File(NamedTuple):
    """A part: its file, and by vectors where its arrays begin and their digests end to end."""

    path: Path
    begins: dict[str, int]
    algorithm: str
    digests: dict[str, str]


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
        self._files: list[_File] = []

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
            if other := differences(read_json(file, remedy=f"delete {folder}"), settings):
                raise ProtlmError(
                    f"{folder} holds an unfinished embedding with other settings: "
                    f"{'; '.join(other)}. Use these again, or delete that folder"
                )
        else:
            write_json(file, settings)
        parts = cls(folder, wanted, width, records)
        for path in sorted(folder.glob("part-*")):
            try:
                found = parts._add(path)
            except Damaged:
                log.warning("%s is damaged: its proteins are computed again", path)
                path.unlink()
                continue
            parts.done[found] = True
        return parts

    def write(
        self, results: list[tuple[int, int, dict[str, np.ndarray]]], failures: list[Failure]
    ) -> None:
        """Adds one part: (record, residues, arrays by vectors) of each protein."""
        flat = {
            name: [np.ascontiguousarray(arrays[name]).view(np.uint8).data for *_, arrays in results]
            for name in self.wanted.vectors
        }
        header: dict[str, Any] = {
            "records": [record for record, _, _ in results],
            "residues": [residues for _, residues, _ in results],
            "failures": [asdict(failure) for failure in failures],
            "bytes": {name: sum(data.nbytes for data in flat[name]) for name in flat},
            "algorithm": FASTEST,
            "digests": {
                name: "".join(digest_of_data(data).rpartition(":")[2] for data in flat[name])
                for name in flat
            },
        }
        text = json.dumps(header).encode()
        text = len(text).to_bytes(8, "little") + text
        last = int(self._files[-1].path.name.removeprefix("part-")) if self._files else -1
        path = self.folder / f"part-{last + 1:06d}"
        with atomic_file(path) as file:
            file.write(hashlib.blake2b(text, digest_size=_DIGEST).digest() + text)
            for arrays in flat.values():
                for data in arrays:
                    file.write(data)
        self.done[self._add(path, check=False)] = True

    def read(self, record: int, vectors: str) -> np.ndarray:
        """The array of one protein that has an embedding.

        Raises:
            Damaged: it is not what was written.
        """
        file = self._files[self._part[record]]
        shape = self.wanted.shape(vectors, int(self._residues[record]), self.width)
        before = self._start if vectors == "residues" else self._row
        dtype = self.wanted.numpy_dtype
        each = len(self.wanted.layers) * self.width * dtype.itemsize
        offset = file.begins[vectors] + int(before[record]) * each
        raw = np.fromfile(file.path, np.uint8, math.prod(shape) * dtype.itemsize, offset=offset)
        if digest_of_data(raw.data, file.algorithm) != self.digest(record, vectors):
            raise Damaged(
                f"{file.path} is damaged: run the same command again, which computes it anew"
            )
        return raw.view(dtype).reshape(shape)

    def digest(self, record: int, vectors: str) -> str:
        """Of the array that `read` gives."""
        file, at = self._files[self._part[record]], int(self._row[record]) * _HEX
        return f"{file.algorithm}:{file.digests[vectors][at : at + _HEX]}"

    def has(self, record: int) -> bool:
        """Whether a protein has an embedding."""
        return bool(self._part[record] >= 0)

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder)

    def _add(self, path: Path, *, check: bool = True) -> np.ndarray:
        """Takes a part in, and returns the records that it answers for.

        Raises:
            Damaged: it is not what was written; nothing is taken in.
        """
        with path.open("rb") as file:
            told = file.read(_DIGEST)
            length = file.read(8)
            text = file.read(min(int.from_bytes(length, "little"), path.stat().st_size))
        if hashlib.blake2b(length + text, digest_size=_DIGEST).digest() != told:
            raise Damaged(f"{path} is damaged")
        header = json.loads(text)
        records = np.array(header["records"], np.int64)
        residues = np.array(header["residues"], np.int64)
        begins: dict[str, int] = {}
        at = _DIGEST + 8 + len(text)
        for name in self.wanted.vectors:
            begins[name] = at
            at += header["bytes"][name]
        self._row[records] = np.arange(len(records))
        self._start[records] = np.cumsum(residues) - residues
        self._residues[records] = residues
        self._part[records] = len(self._files)
        self._files.append(_File(path, begins, header["algorithm"], header["digests"]))
        if check:
            try:
                for record in records:
                    for name in self.wanted.vectors:
                        self.read(record, name)
            except Damaged:
                self._part[records] = -1
                self._files.pop()
                raise
        failures = [Failure(**fields) for fields in header["failures"]]
        self.failures |= {failure.record: failure for failure in failures}
        return np.concatenate([records, np.array([f.record for f in failures], np.int64)])


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
