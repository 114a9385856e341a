"""Benchmarks that do not ship with the package: stability, remote homology, conservation."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np

from protlm_jax.data.fasta import name_of
from protlm_jax.data.tables import MISSING, find_column, number, read_table
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import Benchmark, LabelledProtein, Target, View
from protlm_jax.evaluation.probe_data.columns import SEQUENCES
from protlm_jax.evaluation.probe_data.user_files import split_of
from protlm_jax.storage.json_files import LARGEST
from protlm_jax.vocabularies import AS_WRITTEN, normalise

_TAPE = (
    "the folder protein_benchmarks of the ProteinBERT repository (Brandes et al. 2022), "
    "each compressed with gzip"
)
_PARTS = ("train", "valid", "test")
FILES = {
    "stability": tuple(f"stability.{part}.csv.gz" for part in _PARTS),
    "remote_homology": tuple(f"remote_homology.{part}.csv.gz" for part in _PARTS),
    "conservation": ("flip_conservation_splits.zip",),
}
WHERE = {
    "stability": _TAPE,
    "remote_homology": _TAPE,
    "conservation": "splits/conservation/splits.zip of the FLIP repository (Dallago et al. 2021), "
    "under that name",
}
FOLDS = 1195
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)
CONSERVATION = "123456789"


def existing(name: str, data_dir: Path | None) -> Path:
    """The folder of a benchmark's files.

    Raises:
        ProtlmError: no folder is named, or a file is not in it.
    """
    files = ", ".join(FILES[name])
    if data_dir is None:
        raise ProtlmError(
            f"{name} does not ship with protlm: say --data_dir FOLDER, with {files} in it, from "
            f"{WHERE[name]}"
        )
    for file in FILES[name]:
        if not (data_dir / file).is_file():
            raise ProtlmError(
                f"{data_dir / file} is missing; {name} needs {files}, from {WHERE[name]}"
            )
    return data_dir


def stability(folder: Path) -> Benchmark:
    """How well small designed proteins withstand a protease; files as `FILES` names them."""
    return Benchmark(
        name="stability",
        title="Stability of small proteins",
        level="protein",
        targets=(Target("stability", "number"),),
        splits={part: partial(_numbers, folder / f"stability.{part}.csv.gz") for part in _PARTS},
        views={"test": View("test", "test")},
        licence="as in the ProteinBERT repository: MIT",
        source="Rocklin et al. 2017, doi:10.1126/science.aan0693; Rao et al. 2019 (TAPE)",
        notes=(
            "Training holds designs of many folds, the test single substitutions of 17 of them. 26 "
            "of its 12,851 sequences stand in training exactly, where 43 stand twice.",
        ),
    )


def remote_homology(folder: Path) -> Benchmark:
    """Which of 1,195 folds a domain has, for superfamilies that training has not seen."""
    return Benchmark(
        name="remote_homology",
        title="Remote homology",
        level="protein",
        targets=(Target("fold", "classes", tuple(f"fold {i}" for i in range(FOLDS))),),
        splits={
            part: partial(_folds, folder / f"remote_homology.{part}.csv.gz") for part in _PARTS
        },
        views={"test": View("test", "unseen superfamilies")},
        licence="as in the ProteinBERT repository: MIT",
        source="Hou et al. 2018, doi:10.1093/bioinformatics/btx780; Rao et al. 2019 (TAPE)",
        notes=(
            "718 test domains of 136 folds, none of whose superfamilies is in training; folds go "
            "by TAPE's numbers.",
        ),
    )


def conservation(folder: Path) -> Benchmark:
    """How conserved each residue is among the protein's relatives, from 1 to 9."""
    file = folder / FILES["conservation"][0]
    return Benchmark(
        name="conservation",
        title="Conservation",
        level="residue",
        targets=(
            Target(
                "conservation",
                "classes",
                ("1 (variable)", *CONSERVATION[1:-1], "9 (conserved)"),
                letters=CONSERVATION,
            ),
        ),
        splits={part: partial(_conserved, file, part) for part in _PARTS},
        views={"test": View("test", "test")},
        licence="FLIP: AFL-3.0",
        source="Marquet et al. 2021, doi:10.1007/s00439-021-02411-y; Dallago et al. 2021 (FLIP); "
        "ConSurf-DB",
        notes=("41 sequences of the file have no labels in FLIP's split and take no part.",),
    )


def _proteins(
    file: Path, target: str, value: Callable[[float, str], np.ndarray]
) -> list[LabelledProtein]:
    """The proteins of a table with a number for each; `value` makes labels of them."""
    table = read_table(file)
    columns = [find_column(table, names) for names in (SEQUENCES, ("label", "target"))]
    if None in columns:
        raise ProtlmError(f"{file}: the first line names no columns seq and label")
    sequence, label = (table.column(str(column)) for column in columns)
    found = []
    for row, (residues, text) in enumerate(zip(sequence, label, strict=True)):
        place = table.place(row)
        if text in MISSING:
            raise ProtlmError(f"{place}: a row without a label")
        name = f"{file.name.split('.')[1]}-{row + 1}"
        labels = {target: value(number(text, place), place)}
        found.append(LabelledProtein(name, normalise(residues, AS_WRITTEN, record=place), labels))
    return found


@cache
def _numbers(file: Path) -> list[LabelledProtein]:
    return _proteins(file, "stability", lambda found, place: np.array(found, np.float32))


@cache
def _folds(file: Path) -> list[LabelledProtein]:
    def fold(found: float, place: str) -> np.ndarray:
        if found not in range(FOLDS):
            raise ProtlmError(f"{place}: no fold {found:g}; there are {FOLDS}, from 0")
        return np.array(found, np.int16)

    return _proteins(file, "fold", fold)


@cache
def _conserved(file: Path, part: str) -> list[LabelledProtein]:
    sequences = {name_of(header)[0]: text for header, text in _entries(file, "sequences.fasta")}
    found = []
    for header, text in _entries(file, "sampled.fasta"):
        name, described = name_of(header)
        if split_of(described) != part:
            continue
        labels = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int8) - ord("1")
        sequence = normalise(sequences.get(name, ""), AS_WRITTEN, record=f"{file}, {name}")
        if len(labels) != len(sequence) or not set(text) <= set(CONSERVATION):
            raise ProtlmError(
                f"{file}: {name} has {len(sequence)} residues, its labels are {len(labels)}, from "
                f"1 to 9: fetch the file again"
            )
        found.append(LabelledProtein(name, sequence, {"conservation": labels.astype(np.int8)}))
    return found


@cache
def _entries(file: Path, member: str) -> list[tuple[str, str]]:
    """(header, text) of a FASTA file in FLIP's archive; labels are no residues."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"splits/{member}") as raw:
            data = raw.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"{member} has more than {LARGEST:,} bytes")
        text = data.decode("ascii")
    # RuntimeError: encrypted, or compressed in a way that zipfile does not know.
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, *_DAMAGE) as error:
        raise ProtlmError(f"{file} cannot be read ({error}): fetch it again") from error
    entries = [entry.partition("\n") for entry in text.split(">")[1:]]
    return [(header.strip(), "".join(body.split())) for header, _, body in entries]
