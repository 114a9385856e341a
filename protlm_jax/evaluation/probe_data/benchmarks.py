"""The benchmarks of `bundled/benchmarks.toml`, and the readers of their files."""

from __future__ import annotations

import lzma
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax import bundled
from protlm_jax.data.fasta import name_of
from protlm_jax.data.tables import MISSING, TextTable, find_column, number, read_table
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import (
    UNKNOWN,
    Benchmark,
    LabelledProtein,
    PaperRow,
    Target,
    View,
)
from protlm_jax.evaluation.probe_data.table import SEQUENCES
from protlm_jax.evaluation.probe_data.user import split_of
from protlm_jax.storage.json_files import LARGEST
from protlm_jax.vocabularies import AS_WRITTEN, normalise

NEAREST = 6
"""Pairs of residues closer than this along the chain are not predicted as contacts."""
Q3, Q8 = "HEC", "GHIEBSTC"
FOLDS = 1195
GB1_SITES = (39, 40, 41, 54)  # counted from 1, in FLIP's construct, which goes on after the domain
GB1_PARENT = (
    "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTELEVLFQGPLDPNSMATYEVLCEVARKLGTDDREVVL"
    "FLLNVFIPQPTLAQLIGALRALKEEGRLTFPLLAECLFRAGRRDLLRDLLHLDPRFLERHLAGTMSYFSPYQLTVLHVDGELCARDIRSLIF"
    "LSKDTIGSRSTPQTFLHWVYCMENLDLLGPTDVDALMSMLRSLSRVDLQRQVQTLMGLHLSGPSHSQHYRHTPLEHHHHHH"
)
_Q3_OF_Q8 = np.array([Q3.index(state) for state in "HHHEECCC"], np.int8)
_FAR_CHAIN, _FAR_PROTEIN = 25.0, 30.0  # percent identity to the nearest training protein
_CONSERVATION = "123456789"
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)

Words = Collection[str]  # what a file calls a split


def load(name: str, data_dir: Path | None = None) -> Benchmark:
    """One of NAMES; its proteins are read when a split is called.

    Args:
        data_dir: has the files of benchmarks that do not ship with the package.

    Raises:
        ProtlmError: there is no such benchmark, or its files are missing.
    """
    if name not in NAMES:
        raise ProtlmError(f"no benchmark {name!r}; there is {', '.join(NAMES)}")
    about, read = _ABOUT.get(name, _ABOUT["gb1"]), _BUNDLED.get(name)
    if name in _GB1:
        about, read = {**about, "title": _GB1[name]}, partial(_variants, name)
    elif read is None:
        read = partial(_FROM_FOLDER[name], _existing(name, about, data_dir))
    targets = [Target(**{**t, "classes": tuple(t.get("classes", ()))}) for t in about["targets"]]
    if name == "remote_homology":
        targets = [Target("fold", "classes", tuple(f"fold {i}" for i in range(FOLDS)))]
    return Benchmark(
        name=name,
        title=about["title"],
        level=about["level"],
        targets=tuple(targets),
        splits={s: partial(read, tuple(words)) for s, words in about["splits"].items()},
        views={view: View(**fields) for view, fields in about["views"].items()},
        licence=about["licence"],
        source=about["source"],
        notes=tuple(about["notes"]),
        paper=tuple(
            PaperRow(model, view, target, float(percent), published["source"])
            for published in (about.get("published", {"percent": {}}),)
            for model, percents in published["percent"].items()
            for (view, target), percent in zip(published["of"], percents, strict=True)
        ),
    )


def _existing(name: str, about: dict[str, Any], folder: Path | None) -> Path:
    """The folder of a benchmark's files, all of which are there."""
    files, where = ", ".join(about["files"]), about["where"]
    if folder is None:
        raise ProtlmError(
            f"{name} does not ship with protlm: give --data_dir FOLDER, with {files} in it, from "
            f"{where}"
        )
    for file in about["files"]:
        if not (folder / file).is_file():
            raise ProtlmError(f"{folder / file} is missing; {name} needs {files}, from {where}")
    return folder


@cache
def _secondary_structure(words: Words) -> list[LabelledProtein]:
    """A label counts where the residue is resolved and its state is known.

    Three states follow from eight by one rule: G, H, I helix; E, B strand; the rest other. CASP13
    and CASP14 publish the pi helix as other, and are changed. NetSurfP-2.0 publishes three states
    alone: these are kept, and the eight states, of another run of DSSP, contradict the rule at
    0.3 % of the training residues that have both.
    """
    found = []
    for chain in bundled.secondary_structure(*words):
        resolved = _codes(chain.mask, "01") == 1
        q3, q8 = _codes(chain.q3, Q3), _codes(chain.q8 or "-" * len(chain.seq), Q8)
        if chain.split in ("casp13", "casp14"):
            q3 = np.where(q8 == UNKNOWN, q3, _Q3_OF_Q8[q8])
        states = {"q3": q3, "q8": q8}
        labels = {name: np.where(resolved, q, np.int8(UNKNOWN)) for name, q in states.items()}
        marks = {}
        if chain.cb513_mask is not None:
            marks["own_mask"] = _codes(chain.cb513_mask, "01") == 1
        if chain.identity is not None:
            marks["far"] = np.full(len(chain.seq), chain.identity < _FAR_CHAIN)
        sequence = normalise(chain.seq, AS_WRITTEN, record=chain.id)
        found.append(LabelledProtein(chain.id, sequence, labels, marks))
    return found


def _codes(letters: str, alphabet: str) -> np.ndarray:
    """int8 index of each letter in an alphabet, UNKNOWN where it is not part of it."""
    table = np.full(256, UNKNOWN, np.int8)
    table[np.frombuffer(alphabet.encode("ascii"), np.uint8)] = np.arange(len(alphabet))
    return table[np.frombuffer(letters.encode("ascii"), np.uint8)]


@cache
def _table(name: str) -> TextTable:
    return read_table(bundled.path(name))


@cache
def _localization(words: Words) -> list[LabelledProtein]:
    location, _ = load("localization").targets
    found = []
    for row in _table("localization").rows:
        if row["set"] not in words:
            continue
        labels = {
            "location": np.array(location.classes.index(row["location"]), np.int8),
            "membrane": np.array(int(row["membrane"] or UNKNOWN), np.int8),
        }
        notes = {"kingdom": row["kingdom"]} if row["kingdom"] else {}
        far = {"far": np.array(float(row["identity"]) < _FAR_PROTEIN)} if row["identity"] else {}
        sequence = normalise(row["sequence"], AS_WRITTEN, record=row["accession"])
        found.append(LabelledProtein(row["accession"], sequence, labels, far, notes))
    return found


@cache
def _variants(name: str, words: Words) -> list[LabelledProtein]:
    """Variants of protein G's domain B1, changed at four sites (8,733 in all splits)."""
    found = []
    for row in _table("gb1").rows:
        if row[name.removeprefix("gb1_")] not in words:
            continue
        sequence = list(GB1_PARENT)
        for site, residue in zip(GB1_SITES, row["sites"], strict=True):
            sequence[site - 1] = residue
        fitness = {"fitness": np.array(float(row["fitness"]), np.float32)}
        found.append(LabelledProtein(row["sites"], "".join(sequence), fitness))
    return found


@cache
def _contacts(words: Words) -> list[LabelledProtein]:
    """The file gives, for each residue, how far along the chain lie those that it touches."""
    found = []
    for chain in bundled.json_lines("contacts"):
        if chain["split"] in words:
            pairs = [(i, i + apart) for i, row in enumerate(chain["contacts"]) for apart in row]
            label = {"contact": np.array(pairs, np.int32).reshape(-1, 2)}
            found.append(LabelledProtein(chain["id"], chain["seq"], label))
    return found


@cache
def _stability(folder: Path, words: Words) -> list[LabelledProtein]:
    files = [folder / f"stability.{word}.csv.gz" for word in words]
    return [
        LabelledProtein(name, sequence, {"stability": np.array(value, np.float32)})
        for _, name, sequence, value in _numbers(files)
    ]


@cache
def _remote_homology(folder: Path, words: Words) -> list[LabelledProtein]:
    found = []
    files = [folder / f"remote_homology.{word}.csv.gz" for word in words]
    for place, name, sequence, fold in _numbers(files):
        if fold not in range(FOLDS):
            raise ProtlmError(f"{place}: no fold {fold:g}; there are {FOLDS}, from 0")
        found.append(LabelledProtein(name, sequence, {"fold": np.array(fold, np.int16)}))
    return found


def _numbers(files: list[Path]) -> list[tuple[str, str, str, float]]:
    """(place, name, sequence, number) of the rows of TAPE's tables."""
    found = []
    for file in files:
        table = read_table(file)
        columns = [find_column(table, names) for names in (SEQUENCES, ("label", "target"))]
        if None in columns:
            raise ProtlmError(f"{file}: the first line names no columns seq and label")
        for row, (residues, text) in enumerate(
            zip(*(table.column(str(column)) for column in columns), strict=True)
        ):
            place = table.place(row)
            if text in MISSING:
                raise ProtlmError(f"{place}: a row without a label")
            name = f"{file.name.split('.')[1]}-{row + 1}"
            sequence = normalise(residues, AS_WRITTEN, record=place)
            found.append((place, name, sequence, number(text, place)))
    return found


@cache
def _conservation(folder: Path, words: Words) -> list[LabelledProtein]:
    file = folder / _ABOUT["conservation"]["files"][0]
    sequences = {name_of(header)[0]: text for header, text in _entries(file, "sequences.fasta")}
    found = []
    for header, text in _entries(file, "sampled.fasta"):
        name, described = name_of(header)
        if split_of(described) not in words:
            continue
        sequence = normalise(sequences.get(name, ""), AS_WRITTEN, record=f"{file}, {name}")
        if len(text) != len(sequence) or not set(text) <= set(_CONSERVATION):
            raise ProtlmError(
                f"{file}: {name} has {len(sequence)} residues, its labels are {len(text)}, from "
                f"1 to 9: fetch the file again"
            )
        labels = {"conservation": _codes(text, _CONSERVATION)}
        found.append(LabelledProtein(name, sequence, labels))
    return found


@cache
def _entries(file: Path, member: str) -> list[tuple[str, str]]:
    """(header, text) of a FASTA file in FLIP's archive."""
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


_ABOUT: dict[str, Any] = tomllib.loads(bundled.path("benchmarks").read_text("utf-8"))
_GB1: dict[str, str] = _ABOUT["gb1"]["titles"]  # its splits share a section
_BUNDLED: dict[str, Callable[..., list[LabelledProtein]]] = {
    "secondary_structure": _secondary_structure,
    "localization": _localization,
    "contacts": _contacts,
}
_FROM_FOLDER: dict[str, Callable[..., list[LabelledProtein]]] = {
    "stability": _stability,
    "remote_homology": _remote_homology,
    "conservation": _conservation,
}
NAMES = ("secondary_structure", "localization", *_GB1, "contacts", *_FROM_FOLDER)
