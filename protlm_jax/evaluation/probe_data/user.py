"""The user's own proteins as a benchmark, from a table (`table`) or FASTA files.

FASTA comes as biotrainer has it: `>name SET=train VALIDATION=False`, with `TARGET=...` for a label
of the protein, or labels of its residues (`residues`) and possibly `MASK=...`; or with further
files of the same names and the residues' labels, and possibly one with 1 for each residue that
counts and 0 for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from protlm_jax.data.fasta import entries, name_of, read_fasta
from protlm_jax.data.sources import explained, open_source
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data import residues, splits, table
from protlm_jax.evaluation.probe_data.base import (
    Benchmark,
    LabelledProtein,
    Level,
    View,
    known,
)
from protlm_jax.evaluation.probe_data.labels import LabelColumn, Labels, parse
from protlm_jax.evaluation.probe_data.splits import UserProtein
from protlm_jax.vocabularies import AS_WRITTEN


def read(
    path: Path,
    labels: Path | Sequence[Path] | None = None,
    mask: Path | None = None,
    *,
    targets: Sequence[str] = (),
    multilabel: Sequence[str] = (),
    split: Sequence[str] = (),
) -> Benchmark:
    """A benchmark of the user's files, read now.

    Args:
        path: a table or a FASTA file (recognised by its first character), possibly compressed.
        labels, mask: with FASTA, the labels of residues, a file for each target (none: the headers
            say TARGET=...), and 1 for each residue that counts.
        targets: columns of labels, as "stability" or "stability:number"; () takes those that
            neither identify, nor divide, nor describe the proteins.
        multilabel: columns whose cells hold several labels, separated by "|" or ";".
        split: the column that divides the proteins, "random", or words as "train=0,1,2".

    Raises:
        ProtlmError: what is wrong, with file, line and column, and what to do about it.
    """
    request = splits.parse_split(split)
    files = (labels,) if isinstance(labels, Path) else tuple(labels or ())
    notes: list[str] = []
    column = request.column or "SET"
    if not (files or _is_fasta(path)):
        found, columns, column, notes = table.read(path, targets, multilabel, request)
    elif request.column or (files and (targets or multilabel)):
        raise ProtlmError(f"{path} is a FASTA file: it has no columns to name")
    elif not files:
        name = next(iter((*multilabel, *targets)), "target")
        found, columns = _read_annotated(path, name, several=bool(multilabel))
    else:
        found, columns = _read_files(path, files, mask)
    if mask and not files:
        raise ProtlmError("--mask belongs to --labels: give both, or none")
    lengths = [len(p.sequence) for p in found]
    by_residue = {c.name for c in columns if files or residues.of_residues(c, lengths)}
    if whole := [c.name for c in columns if by_residue and c.name not in by_residue]:
        raise ProtlmError(
            f"{path}: {min(by_residue)!r} labels residues and {whole[0]!r} proteins, which are not "
            "learned together; name columns of one kind in --targets"
        )
    level: Level = "residue" if by_residue else "protein"
    made: list[Labels] = []
    of_labels: list[str] = []
    for one in columns:
        if by_residue:
            of_one, more = residues.parse(one, lengths, [p.counted for p in found])
            made.append(of_one)
        else:
            of_column, more = parse(one)
            made += of_column
        of_labels += more
    found, more = splits.assign(files[0] if files else path, found, request, column)
    notes += [*more, *splits.duplicates(found), *of_labels]
    names = [of.target.name for of in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ProtlmError(f"{path}: two columns hold {twice[0]!r}; rename one of them")
    for of in made:
        notes += _checked(path, of, found)
    return _benchmark(path, level, found, made, notes)


def split_of(description: str) -> str:
    """The split by biotrainer's attributes: SET=train with VALIDATION=True is valid."""
    attributes = _attributes(description)
    split = attributes.get("SET", "")
    if split.casefold() == "train" and attributes.get("VALIDATION", "").casefold() == "true":
        return "valid"
    return split


def _attributes(description: str) -> dict[str, str]:
    """KEY=value words of a header."""
    words = (word.partition("=") for word in description.split())
    return {key.upper(): value for key, equals, value in words if equals}


def _is_fasta(path: Path) -> bool:
    with explained(str(path), lambda: 0), open_source(str(path)) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b">")


def _read_annotated(
    path: Path, name: str, several: bool
) -> tuple[list[UserProtein], list[LabelColumn]]:
    """Proteins whose headers give their label as TARGET=..., and these labels."""
    found, cells, places = [], [], []
    for record in read_fasta(path, policy=AS_WRITTEN):
        attributes = _attributes(record.description)
        if "TARGET" not in attributes:
            raise ProtlmError(
                f"{path}, line {record.line}: {record.id!r} has no label: write TARGET=... into "
                f"its header, or give the labels of residues in a file of their own"
            )
        cells.append(attributes["TARGET"])
        places.append(f"{path}, line {record.line}, TARGET")
        counted, split = attributes.get("MASK", ""), split_of(record.description)
        if counted:
            _require_mask(path, record.line, record.id, counted, record.sequence)
        found.append(UserProtein(record.line, record.id, record.sequence, split, counted))
    kind = table.named(["target"], name, str(path)).kind
    return found, [LabelColumn("target", kind, cells, places, str(path), several=several)]


def _read_files(
    path: Path, files: Sequence[Path], mask: Path | None
) -> tuple[list[UserProtein], list[LabelColumn]]:
    """Proteins of one FASTA file with the residues' labels of others."""
    every = {file: _strings(file) for file in files}
    masks = _strings(mask) if mask else {}
    cells: dict[Path, list[str]] = {file: [] for file in files}
    places: dict[Path, list[str]] = {file: [] for file in files}
    found = []
    for record in read_fasta(path, policy=AS_WRITTEN):
        where = f"{path}, line {record.line}: {record.id!r}"
        first, split, counted = 0, "", ""
        for file, of_file in every.items():
            if record.id not in of_file:
                raise ProtlmError(f"{where} has no labels in {file}; add them or remove it")
            line, text, its_split = of_file.pop(record.id)
            first, split = first or line, split or its_split
            cells[file].append(text)
            places[file].append(f"{file}, line {line}: {record.id!r}")
        if mask:
            line, counted, _ = masks.pop(record.id, (0, "", ""))
            if not line:
                raise ProtlmError(f"{where} has no mask in {mask}; add one or remove it")
            counted = "".join(counted.split())
            _require_mask(mask, line, record.id, counted, record.sequence)
        split = split or split_of(record.description)
        found.append(UserProtein(first, record.id, record.sequence, split, counted))
    for of, left in (*every.items(), (mask, masks)):
        if left:
            raise ProtlmError(
                f"{of}: {next(iter(left))!r} has no sequence in {path}; add or remove it"
            )
    names = [file.name.partition(".")[0] for file in files] if len(files) > 1 else ["label"]
    return found, [
        LabelColumn(name, "", cells[file], places[file], str(file))
        for name, file in zip(names, files, strict=True)
    ]


def _strings(path: Path) -> dict[str, tuple[int, str, str]]:
    """Name -> (line, text, split) of each entry of a FASTA file that holds no residues."""
    found: dict[str, tuple[int, str, str]] = {}
    for line, header, below in entries(str(path)):
        name, description = name_of(header)
        if not name or name in found:
            what = f"the name {name!r} a second time" if name else "a header without a name"
            raise ProtlmError(f"{path}, line {line}: {what}; give every protein its own")
        found[name] = line, " ".join(text for _, text in below), split_of(description)
    return found


def _require_mask(file: Path, line: int, name: str, mask: str, sequence: str) -> None:
    if not set(mask) <= {"0", "1"}:
        raise ProtlmError(f"{file}, line {line}: a mask with other characters than 0 and 1")
    if len(mask) != len(sequence):
        raise ProtlmError(
            f"{file}, line {line}: the mask of {name!r} has {len(mask)} letters for "
            f"{len(sequence)} residues; give one for each residue"
        )


def _checked(path: Path, of: Labels, found: list[UserProtein]) -> list[str]:
    """Notes on the labels of a target in the splits; ProtlmError where a split has none."""
    target = of.target
    by_side: dict[str, list[np.ndarray]] = {"train": [], "valid": [], "test": []}
    for p, value in zip(found, of.values, strict=True):
        by_side[splits.side(p.split)].append(value[known(target, value)])
    labels = {side: np.unique(np.concatenate(values)) for side, values in by_side.items()}
    for side, different in labels.items():
        if not different.size:
            raise ProtlmError(
                f"{path}, {target.name!r}: no protein in split {side!r} has a label; name another "
                "column in --targets, or divide the proteins anew (--split random)"
            )
    notes = _conflicts(of, found) if of.values[0].ndim == 0 else []
    if labels["train"].size < 2:
        notes.append(
            f"WARNING: all labels of {target.name!r} in training are the same: a head has nothing "
            "to learn."
        )
    if target.kind == "classes":
        unseen = sorted(set(range(len(target.classes))) - set(labels["train"].tolist()))
        if unseen:
            names = [target.classes[code] for code in unseen[:10]]
            notes.append(f"{target.name}: never in training: {', '.join(names)}.")
    return notes


def _conflicts(of: Labels, found: list[UserProtein]) -> list[str]:
    """A warning about sequences that training has with different labels."""
    labels: dict[str, set[float]] = {}
    first: dict[str, str] = {}
    for p, value in zip(found, of.values, strict=True):
        if p.split == "train" and known(of.target, value):
            labels.setdefault(p.sequence, set()).add(float(value))
            first.setdefault(p.sequence, p.id)
    names = [first[sequence] for sequence, different in labels.items() if len(different) > 1]
    warning = (
        f"WARNING: {len(names):,} sequences are in training several times with different labels "
        f"in {of.target.name!r} ({splits.shown(names)})."
    )
    return [warning] if names else []


def _benchmark(
    path: Path, level: Level, found: list[UserProtein], made: list[Labels], notes: list[str]
) -> Benchmark:
    by_split: dict[str, list[LabelledProtein]] = {"train": [], "valid": []}
    for i, p in enumerate(found):
        values = {of.target.name: of.values[i] for of in made}
        by_split.setdefault(p.split, []).append(LabelledProtein(p.id, p.sequence, values))
    tests = sorted(name for name in by_split if name not in ("train", "valid"))
    return Benchmark(
        name=path.name.partition(".")[0],
        title=path.name,
        level=level,
        targets=tuple(of.target for of in made),
        splits={name: partial(list, by_split[name]) for name in ("train", "valid", *tests)},
        views={name: View(name, name) for name in tests},
        licence="your own",
        source=path.name,
        notes=tuple(notes),
    )
