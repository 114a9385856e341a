"""A FASTA file as `protlm embed` and `protlm predict` read it: several times, never held."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.data.fasta import BadRecord, Record, read_every_record
from protlm_jax.data.rows import windows
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.formats import Keys, why_no_key
from protlm_jax.evaluation.parts import Failure
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import ResiduePolicy

PROTEINS_AT_ONCE = 1 << 16  # sorted by length together,
RESIDUES_AT_ONCE = 1 << 26  # if they have no more residues than this


class InputChanged(ProtlmError):
    """The input is not what it was when it was surveyed."""


@dataclass
class Survey:
    """The content of a FASTA file, and how it is read.

    residues: [records] int64, 0 where a record cannot be embedded, with the reason in `failures`;
    windowed: record, id, residues and windows of the proteins that do not fit at once; digest: of
    all names and sequences.
    """

    path: Path
    policy: ResiduePolicy
    keys: Keys
    residues: np.ndarray
    failures: list[Failure] = field(default_factory=list)
    windowed: list[dict[str, Any]] = field(default_factory=list)
    digest: str = ""


def survey_file(
    loaded: LoadedModel,
    path: Path,
    limit: int,
    policy: ResiduePolicy,
    keys: Keys = "number",
) -> Survey:
    """Surveys a file; a record that the model cannot read is a failure.

    Raises:
        ProtlmError: the file cannot be read, or a protein's name cannot be its key.
    """
    survey = Survey(path, policy, keys, np.zeros(0, np.int64))
    residues: list[int] = []
    lines: dict[str, int] = {}  # of the keys
    digest = hashlib.blake2b(digest_size=16)
    for place, record in enumerate(read_every_record(path, policy)):
        digest.update(_content(record))
        residues.append(0)
        try:
            if isinstance(record, BadRecord):
                raise record.error
            loaded.vocabulary.encode(record.sequence)
        except ProtlmError as error:
            survey.failures.append(Failure(place, record.line, record.id, str(error)))
            continue
        residues[-1] = size = len(record.sequence)
        if size > limit:
            found = {"record": place, "id": record.id, "residues": size}
            survey.windowed.append(found | {"windows": len(windows(size, limit))})
        if keys == "id":
            reason = why_no_key(record.id)
            if before := lines.get(record.id):
                reason = f"{record.id!r} is also the name in line {before}, and keys differ"
            if reason:
                reason += "; choose --keys number, biotrainer or md5"
                raise ProtlmError(f"{path}, line {record.line}: {reason}")
            lines[record.id] = record.line
    survey.residues, survey.digest = np.array(residues, np.int64), digest.hexdigest()
    return survey


def again(survey: Survey) -> Iterator[tuple[int, Record | BadRecord]]:
    """Place and record of all that was surveyed.

    Raises:
        InputChanged: the file is another one now.
    """
    digest, count = hashlib.blake2b(digest_size=16), 0
    for place, record in enumerate(read_every_record(survey.path, survey.policy)):
        digest.update(_content(record))
        count = place + 1
        if count > len(survey.residues):
            break
        yield place, record
    if count != len(survey.residues) or digest.hexdigest() != survey.digest:
        raise InputChanged(f"{survey.path} changed while it was read: run the same command again")


def together(survey: Survey) -> Iterator[tuple[list[int], list[Record]]]:
    """Places and records of the proteins that can be embedded, as many as are sorted together."""
    places: list[int] = []
    records: list[Record] = []
    held = 0
    for place, record in again(survey):
        if survey.residues[place] and isinstance(record, Record):
            places.append(place)
            records.append(record)
            held += len(record.sequence)
        if len(records) == PROTEINS_AT_ONCE or held >= RESIDUES_AT_ONCE:
            yield places, records
            places, records, held = [], [], 0
    if records:
        yield places, records


def _content(record: Record | BadRecord) -> bytes:
    sequence = record.sequence + "\n" if isinstance(record, Record) else ""
    return f">{record.id}\n{sequence}".encode()
