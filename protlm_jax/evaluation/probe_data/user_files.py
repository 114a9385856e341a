"""The user's labelled proteins as they stand in their files, a table or FASTA.

A table has a header line and the columns `sequence`, optionally `id` and `split`, and one column
for each target, "stability" or, to say what it is, "stability:number" or "stability:classes":
`columns` says which names are known. An empty cell or NA is an unknown label.

FASTA comes as biotrainer has it: `>name SET=train VALIDATION=False`, with `TARGET=...` for a label
of the protein; or with a second file of the same names and a letter for each residue, "?" where it
is unknown, and possibly a third one with 1 for each residue that counts and 0 for the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from protlm_jax.data.fasta import entries, name_of, read_fasta
from protlm_jax.data.tables import MISSING, Table, shortened
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.columns import Roles
from protlm_jax.vocabularies import AS_WRITTEN, normalise


@dataclass(frozen=True)
class UserProtein:
    """One protein of the user's.

    Attributes:
        line: where it begins in its file.
        id, sequence: of the protein; the sequence is normalised.
        split: as written, "" where the file says nothing.
        label: of FASTA files, what is written: one, or a letter for each residue.
        counted: at residue level "1" and "0" for each residue; "" counts all.
    """

    line: int
    id: str
    sequence: str
    split: str
    label: str = ""
    counted: str = ""


def from_table(table: Table, roles: Roles) -> list[UserProtein]:
    """The proteins of a table, in its order; their labels stay there.

    Raises:
        ProtlmError: a sequence or an id is missing, a sequence is none, or an id is there twice.
    """
    found = []
    for number, (line, row) in enumerate(zip(table.lines, table.rows, strict=True)):
        name = row[roles.id] if roles.id else f"row{line}"
        if not name:
            raise ProtlmError(f"{table.place(number, roles.id)}: empty; name the protein")
        place, text = table.place(number, roles.sequence), row[roles.sequence]
        if text in MISSING:
            what = f"{text!r} means a missing value" if text else "empty"
            raise ProtlmError(
                f"{place}: {name!r} has no sequence ({what}); add it or remove the row"
            )
        try:
            sequence = normalise(text, AS_WRITTEN, record=name)
        except ProtlmError as error:
            raise ProtlmError(f"{place}: {error}") from None
        split = row[roles.split] if roles.split else ""
        entry = UserProtein(line, name, sequence, "" if split in MISSING else split)
        if roles.validation:
            place, alone = table.place(number, roles.validation), roles.split is None
            split = _from_validation(place, entry, row[roles.validation], alone)
            entry = replace(entry, split=split)
        found.append(entry)
    unique(table.file, found)
    return found


def unique(path: Path | str, found: list[UserProtein]) -> None:
    """Raises ProtlmError where an id is there twice."""
    first: dict[str, int] = {}
    for entry in found:
        if entry.id in first:
            raise ProtlmError(
                f"{path}, line {entry.line}: the id {entry.id!r} was used in line "
                f"{first[entry.id]}; give every protein an id of its own, or remove the double"
            )
        first[entry.id] = entry.line


def read_annotated(path: Path) -> list[UserProtein]:
    """Proteins of a FASTA file, with the label that their headers give as TARGET=...

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
        split, label = split_of(record.description), attributes["TARGET"]
        found.append(UserProtein(record.line, record.id, record.sequence, split, label))
    return found


def read_pair(path: Path, labels: Path, mask: Path | None) -> list[UserProtein]:
    """Proteins of one FASTA file with the residues' labels of another.

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
        split = split or split_of(record.description)
        entry = UserProtein(line, record.id, record.sequence, split, text, counted)
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
            split_of(description),
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


def split_of(description: str) -> str:
    """What biotrainer's attributes say: SET=train with VALIDATION=True is valid."""
    attributes = _attributes(description)
    split = attributes.get("SET", "")
    if split.casefold() == "train" and attributes.get("VALIDATION", "").casefold() == "true":
        return "valid"
    return split


_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")


def _from_validation(place: str, entry: UserProtein, word: str, alone: bool) -> str:
    """The split where a column `validation` (FLIP's) says which training proteins validate."""
    true = word.casefold() in _TRUE
    if not true and word.casefold() not in _FALSE and word not in MISSING:
        raise ProtlmError(
            f"{place}: {shortened(word)} is neither True nor False; rename the column"
        )
    if true and entry.split.casefold().startswith("test"):
        raise ProtlmError(f"{place}: {entry.id!r} validates, and its split is {entry.split!r}")
    return "valid" if true else "train" if alone else entry.split
