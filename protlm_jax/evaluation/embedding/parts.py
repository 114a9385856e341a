"""Results on their way to one file: parts in a work folder, each there whole or not at all.

A part is a file with the arrays of some proteins laid end to end, one kind of vectors after the
other, and a JSON file, written after it, that says which proteins these are and has their digest.
What is in no part, or in a damaged one, is computed again.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.spec import Arrays, EmbeddingSpec
from protlm_jax.storage.digests import Damaged, digest_of, verify_entries
from protlm_jax.storage.files import atomic_file
from protlm_jax.storage.json_files import read_json, write_json

log = logging.getLogger(__name__)

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
    if made.get("format") != asked.get("format"):
        return ["another version of protlm wrote it"]
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

    def __init__(self, folder: Path, spec: EmbeddingSpec, width: int, records: int) -> None:
        self.folder, self.spec, self.width = folder, spec, width
        self.done = np.zeros(records, bool)
        self.failures: dict[int, Failure] = {}
        self._part = np.full(records, -1, np.int32)
        self._residues = np.zeros(records, np.int64)
        # Where the arrays of each protein begin in its part.
        self._begins: dict[str, np.ndarray] = {n: np.zeros(records, np.int64) for n in spec.vectors}
        self._parts: list[Path] = []
        self._contents: list[list[Any]] = []  # size and digest of each
        self._clear()

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: dict[str, Any],
        spec: EmbeddingSpec,
        width: int,
        records: int,
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
        parts = cls(folder, spec, width, records)
        for header in sorted(folder.glob("part-*.json")):
            part = header.with_suffix("")
            try:
                about = read_json(header)
                verify_entries(folder, {part.name: about["content"]}, what=str(part))
                parts._take(part, about)
            except (ProtlmError, KeyError, TypeError, ValueError, IndexError):
                log.warning("%s is damaged: its proteins are computed again", part)
                header.unlink()
        return parts

    def add(self, record: int, residues: int, arrays: Arrays) -> None:
        """Takes the result of a protein for the next part."""
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
        number = 1 + max((int(p.name[5:]) for p in self._parts), default=-1)
        part = self.folder / f"part-{number:06d}"
        with atomic_file(part) as file:
            for name in self.spec.vectors:
                for _, _, arrays in self._results:
                    file.write(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
        about = {
            "records": [record for record, _, _ in self._results],
            "residues": [residues for _, residues, _ in self._results],
            "failures": [asdict(failure) for failure in self._failures],
            "content": [part.stat().st_size, digest_of(part)],
        }
        write_json(part.with_suffix(".json"), about, indent=None)
        self._take(part, about)
        self._clear()

    def has(self, record: int) -> bool:
        """Whether a protein has an embedding."""
        return bool(self._part[record] >= 0)

    def read(self, record: int, vectors: str) -> np.ndarray:
        """The array of one protein that has an embedding."""
        part = self._parts[self._part[record]]
        shape = self.spec.shape(vectors, int(self._residues[record]), self.width)
        offset = int(self._begins[vectors][record])
        dtype = self.spec.numpy_dtype
        raw = np.fromfile(part, np.uint8, math.prod(shape) * dtype.itemsize, offset=offset)
        return raw.view(dtype).reshape(shape)

    def verify(self) -> None:
        """Raises Damaged where a part is not what was written."""
        for part, content in zip(self._parts, self._contents, strict=True):
            try:
                verify_entries(self.folder, {part.name: content}, what=part.name)
            except Damaged as error:
                raise Damaged(
                    f"{part} is damaged: run the same command again, which computes it anew"
                ) from error

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder)

    def _take(self, part: Path, about: dict[str, Any]) -> None:
        """Takes a part in."""
        records = np.array(about["records"], np.int64)
        residues = np.array(about["residues"], np.int64)
        failures = [Failure(**fields) for fields in about["failures"]]
        each = len(self.spec.layers) * self.width * self.spec.numpy_dtype.itemsize
        at = 0
        for name, begins in self._begins.items():
            sizes = each * (residues if name == "residues" else np.ones_like(residues))
            begins[records] = at + np.cumsum(sizes) - sizes
            at += int(sizes.sum())
        self._residues[records] = residues
        self._part[records] = len(self._parts)
        self._parts.append(part)
        self._contents.append(about["content"])
        self.failures |= {failure.record: failure for failure in failures}
        self.done[records] = True
        self.done[[failure.record for failure in failures]] = True

    def _clear(self) -> None:
        self._results: list[tuple[int, int, Arrays]] = []
        self._failures: list[Failure] = []
        self._held, self._since = 0, time.monotonic()
