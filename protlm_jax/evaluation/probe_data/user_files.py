"""The user's labelled proteins as they stand in their files, a table or FASTA.

A table has a header line and the columns `sequence`, optionally `id` and `split`, and one column
for each target, "stability" or, to say what it is, "stability:number" or "stability:classes". An
empty cell is an unknown label.

FASTA comes as biotrainer has it: `>name SET=train VALIDATION=False`, with `TARGET=...` for a label
of the protein; or with a second file of the same names and a letter for each residue, "?" where it
is unknown, and possibly a third one with 1 for each residue that counts and 0 for the others.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from protlm_jax.data.fasta import entries, name_of, read_fasta, text_lines
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AS_WRITTEN, normalise

OWN_COLUMNS = ("id", "sequence", "split")


@dataclass(frozen=True)
class Entry:
    """One protein of the user's.

    Attributes:
        line: where it begins in its file.
        id, sequence: of the protein; the sequence is normalised.
        split: as written, "" where the file says nothing.
        labels: target -> what is written, "" where nothing is.
        counted: at residue level "1" and "0" for each residue; "" counts all.
    """

    line: int
    id: str
    sequence: str
    split: str
    labels: dict[str, str] = field(default_factory=dict)
    counted: str = ""


def read_table(path: Path) -> tuple[list[str], list[Entry]]:
    """Names of the target columns, and the rows, of a file separated by commas or tabs.

    Raises:
        ProtlmError: a column is missing or there twice, a row is too long or short, a sequence is
            none, or an id is there twice.
    """
    lines = text_lines(str(path), strip="\r\n")  # empty cells at the end stay
    _, header = next(lines, (0, ""))
    separator = "\t" if "\t" in header else ","
    columns = [cell.strip() for cell in next(csv.reader([header], delimiter=separator), [])]
    targets = _targets(path, columns)
    found: list[Entry] = []
    reader = csv.reader((line for _, line in lines), delimiter=separator, strict=True)
    while True:
        number = reader.line_num + 2
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ProtlmError(f"{path}, line {number}: {error}; close the quotes") from None
        if cells is None:
            break
        if not any(cells):
            continue
        if len(cells) != len(columns):
            raise ProtlmError(
                f"{path}, line {number}: {len(cells)} cells under {len(columns)} columns; put a "
                f"cell with {separator!r} in it in quotes, and leave no column out"
            )
        row = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
        found.append(_entry(path, number, row, targets))
    if not found:
        raise ProtlmError(f"{path} holds no proteins below its header; is it the right file?")
    unique(path, found)
    return targets, found


def _targets(path: Path, columns: list[str]) -> list[str]:
    if "sequence" not in columns:
        raise ProtlmError(
            f"{path}, line 1: no column 'sequence' among {', '.join(map(repr, columns))}; the "
            f"first line names the columns: sequence, optionally id and split, and the targets"
        )
    twice = [c for i, c in enumerate(columns) if c in columns[:i]]
    if twice or "" in columns:
        raise ProtlmError(
            f"{path}, line 1: "
            + (f"two columns are called {twice[0]!r}" if twice else "a column has no name")
            + "; give every column a name of its own"
        )
    targets = [c for c in columns if c not in OWN_COLUMNS]
    if not targets:
        raise ProtlmError(
            f"{path}, line 1: no column holds labels; add one beside {', '.join(columns)}"
        )
    return targets


def _entry(path: Path, number: int, row: dict[str, str], targets: list[str]) -> Entry:
    if "id" in row and not row["id"]:
        raise ProtlmError(f"{path}, line {number}, column 'id': empty; name the protein")
    name = row.get("id", f"row{number}")
    try:
        sequence = normalise(row["sequence"], AS_WRITTEN, record=name)
    except ProtlmError as error:
        raise ProtlmError(f"{path}, line {number}, column 'sequence': {error}") from None
    if "split" in row and not row["split"]:
        raise ProtlmError(
            f"{path}, line {number}, column 'split': empty; say train, valid or test, or leave "
            f"the column out and the proteins are split by a hash of their sequence"
        )
    return Entry(number, name, sequence, row.get("split", ""), {t: row[t] for t in targets})


def unique(path: Path, found: list[Entry]) -> None:
    """Raises ProtlmError where an id is there twice."""
    first: dict[str, int] = {}
    for entry in found:
        if entry.id in first:
            raise ProtlmError(
                f"{path}, line {entry.line}: the id {entry.id!r} was used in line "
                f"{first[entry.id]}; give every protein an id of its own, or remove the double"
            )
        first[entry.id] = entry.line


def read_annotated(path: Path) -> list[Entry]:
    """Proteins of a FASTA file, with the label "target" that their headers give as TARGET=...

    Raises:
        ProtlmError: for what `read_fasta` refuses, or a header without a target.
    """
    found = []
    for record in read_fasta(path, policy=AS_WRITTEN):
        attributes = _attributes(record.description)
        if "TARGET" not in attributes:
            raise ProtlmError(
                f"{path}, line {record.line}: {record.id!r} has no label: write TARGET=... into "
                f"its header, or give the labels of residues in a file of their own"
            )
        labels = {"target": attributes["TARGET"]}
        split = _split(attributes)
        found.append(Entry(record.line, record.id, record.sequence, split, labels))
    return found


def read_pair(path: Path, labels: Path, mask: Path | None) -> list[Entry]:
    """Proteins of one FASTA file with the residues' labels ("label") of another.

    Raises:
        ProtlmError: for what `read_fasta` refuses; a name is in one file alone; or a protein's
            labels or mask are not as many as its residues.
    """
    letters = {name: (line, text, split) for line, name, text, split in _strings(labels)}
    masks = {name: (line, text) for line, name, text, _ in _strings(mask)} if mask else {}
    found = []
    for record in read_fasta(path, policy=AS_WRITTEN):
        line, text, split = letters.pop(record.id, (0, "", ""))
        where = f"{path}, line {record.line}: {record.id!r}"
        if not line:
            raise ProtlmError(f"{where} has no labels in {labels}; add them or remove it")
        _same_length(labels, line, record.id, text, record.sequence)
        counted = ""
        if mask:
            mask_line, counted = masks.pop(record.id, (0, ""))
            if not mask_line:
                raise ProtlmError(f"{where} has no mask in {mask}; add one or remove it")
            _same_length(mask, mask_line, record.id, counted, record.sequence)
            if not set(counted) <= {"0", "1"}:
                raise ProtlmError(f"{mask}, line {mask_line}: a mask of other signs than 0 and 1")
        split = split or _split(_attributes(record.description))
        entry = Entry(line, record.id, record.sequence, split, {"label": text}, counted)
        found.append(entry)
    for file, left in ((labels, list(letters)), (mask, list(masks))):
        if left:
            raise ProtlmError(f"{file}: {left[0]!r} has no sequence in {path}; add or remove it")
    return found


def _strings(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """(line, name, letters, split) of each entry of a FASTA file that holds no residues."""
    seen: set[str] = set()
    for line, header, below in entries(str(path)):
        name, description = name_of(header)
        if not name or name in seen:
            what = f"the name {name!r} a second time" if name else "a header without a name"
            raise ProtlmError(f"{path}, line {line}: {what}; give every protein its own")
        seen.add(name)
        yield (
            line,
            name,
            "".join("".join(t.split()) for _, t in below),
            _split(_attributes(description)),
        )


def _same_length(file: Path, line: int, name: str, text: str, sequence: str) -> None:
    if len(text) != len(sequence):
        raise ProtlmError(
            f"{file}, line {line}: {name!r} has {len(text)} letters for {len(sequence)} residues; "
            f"give one for each residue ('?' where the label is unknown)"
        )


def _attributes(description: str) -> dict[str, str]:
    """KEY=value words of a header."""
    words = (word.partition("=") for word in description.split())
    return {key.upper(): value for key, equals, value in words if equals}


def _split(attributes: dict[str, str]) -> str:
    """What biotrainer's attributes say: SET=train with VALIDATION=True, or SET=val, is valid."""
    split = attributes.get("SET", "")
    if split == "val" or (split == "train" and attributes.get("VALIDATION") == "True"):
        return "valid"
    return split
