"""A user's table of labelled proteins: which column holds what, and why others are not learned.

The header names the columns: `sequence`, optionally `id` and `split`, and one for each target,
"stability" or, with its kind, "stability:number" or "stability:classes". The names of UniProt's
exports, FLIP, TAPE, ProteinBERT, ProteinGym and DeepLoc are known. An empty cell or NA is an
unknown label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from protlm_jax.data.tables import MISSING, TextTable, find_column, read_table, shortened
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.labels import FEW, LabelColumn, look_like_names
from protlm_jax.evaluation.probe_data.residues import few_letters
from protlm_jax.evaluation.probe_data.splits import SplitRequest, UserProtein
from protlm_jax.vocabularies import AS_WRITTEN, normalise

SEQUENCES = (
    "mutated_sequence", "mutant_sequence", "sequence", "seq", "protein_sequence", "aa_sequence",
    "aa_seq", "amino_acid_sequence", "primary",
)  # fmt: skip
_SPLITS = ("split", "data_split", "set", "subset", "partition")
_FOLDS = ("fold", "cv_fold", "stage")  # these may be labels: folds of structures, stages of life
_IDS = (
    "id", "entry", "accession", "acc", "uniprot_accession", "uniprot_id", "uniprot", "protein_id",
    "sequence_id", "seq_id", "sid", "identifier", "entry_name", "protein_name", "name", "protein",
    "mutant", "mutation", "mutations", "variant",
)  # fmt: skip
_DIVIDE = (
    "validation", "cluster", "clusters", "clusterid", "clusterids", "uniref50", "uniref90",
    "uniref100",
)  # fmt: skip
_DESCRIBE = (
    "length", "sequencelength", "proteinlength", "seqlength", "seqlen", "len", "mass", "massda",
    "molecularweight", "organism", "organismid", "organismname", "species", "speciesid",
    "taxonomicid", "taxonid", "taxid", "ncbitaxid", "ncbitaxonid", "taxonomy", "taxonomiclineage",
    "taxonomiclineageids", "lineage", "taxon", "kingdom", "superkingdom", "phylum", "genus",
    "strain", "proteinnames", "genenames", "genename", "gene", "genes", "genenamesprimary",
    "reviewed", "status", "entrystatus", "proteinexistence", "date", "year", "created", "modified",
    "dateofcreation", "dateoflastmodification", "dateoflastsequencemodification", "entryversion",
    "sequenceversion", "version", "comment", "comments", "note", "notes", "description",
    "reference", "references", "pubmedid", "pmid", "doi", "url", "link", "source", "database",
    "fragment", "wildtype", "wildtypesequence", "wtsequence", "wt", "targetseq",
)  # fmt: skip
_KINDS = ("classes", "number")
_MOST = 50  # more columns than this are not all labels
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T].*)?|\d{1,2}[./]\d{1,2}[./]\d{4}", re.ASCII)
_VALIDATES = {
    **dict.fromkeys(("true", "1", "1.0", "yes"), True),
    **dict.fromkeys(("false", "0", "0.0", "no"), False),
}


class Reason(NamedTuple):
    """Why a column is not learned ("" where it may be), and whether it describes proteins."""

    text: str = ""
    describes: bool = False


class NamedTarget(NamedTuple):
    """A column of labels, the name of its target, and its kind, "" where that is not stated."""

    column: str
    name: str
    kind: str


def read(
    path: Path, targets: Sequence[str], multilabel: Sequence[str], request: SplitRequest
) -> tuple[list[UserProtein], list[LabelColumn], str, list[str]]:
    """The proteins of a table, its labels, its column of splits, and which columns have which use.

    Raises:
        ProtlmError: there are no sequences or no labels, a named column is not there, it is not
            clear which columns hold labels, or a sequence or an id is missing or wrong.
    """
    table = read_table(path)
    several = {named(table.columns, text, str(path)).column for text in multilabel}
    if targets:
        targets = [*targets, *(text for text in multilabel if text not in targets)]
    chosen = [named(table.columns, text, f"{table.file}") for text in targets or multilabel]
    taken = {label.column for label in chosen}
    sequence = find_column(table, SEQUENCES)
    if sequence is None:
        raise ProtlmError(
            f"{table.file}, line 1: no column 'sequence' among {_listed(table.columns)}; the first "
            "line of a table names the columns: sequence, optionally id and split, and the labels "
            "(a FASTA file begins with '>')"
        )
    dividing, split, validation = _dividing(table, taken), None, None
    if request.column is not None:
        split = exact(table.columns, request.column, f"{table.file}")
    elif dividing and not request.random:
        split = dividing[0]
    if not request.random:
        validation = find_column(table, ["validation"])
        validation = None if validation in {*taken, split} else validation
    name = _naming(table, taken)
    rest = [c for c in table.columns if c not in {sequence, name, split, validation}]
    why = {column: _reason(table, column, sequence, dividing) for column in rest}
    labels = chosen or _labels(table, why)
    columns = [
        LabelColumn(
            label.name,
            label.kind,
            table.column(label.column),
            [table.place(row, label.column) for row in range(len(table.cells))],
            str(path),
            table.decimal(label.column),
            label.column in several,
        )
        for label in labels
    ]
    proteins = _proteins(table, sequence, name, split, validation)
    notes = _notes(sequence, name, [c for c in (split, validation) if c], labels, why)
    return proteins, columns, split or "validation", notes


def named(columns: Sequence[str], text: str, place: str) -> NamedTarget:
    """The column that NAME or NAME:KIND means; ProtlmError if there is none."""
    name, colon, kind = text.rpartition(":")
    if text not in columns and colon and kind in _KINDS:
        return NamedTarget(exact(columns, name, place), name, kind)
    column = exact(columns, text, place)
    head, colon, kind = column.rpartition(":")
    return (
        NamedTarget(column, head, kind)
        if colon and kind in _KINDS
        else NamedTarget(column, column, "")
    )


def exact(columns: Sequence[str], name: str, place: str) -> str:
    """The column of this name, in the same case or the only one in another."""
    if name in columns:
        return name
    found = [column for column in columns if _plain(column) == _plain(name)]
    if len(found) != 1:
        what = f"the columns {_listed(found)} may all be" if found else "no column is called"
        raise ProtlmError(f"{place}: {what} {name!r}; there is {_listed(columns)}")
    return found[0]


def _dividing(table: TextTable, taken: set[str]) -> list[str]:
    """The columns that divide proteins into training, validation and test, or into folds."""
    found = []
    for name in (*_SPLITS, *_FOLDS):
        column = find_column(table, [name])
        if column is None or column in taken:
            continue
        missing = {word.casefold() for word in MISSING}
        values = {cell.casefold() for cell in table.column(column)} - missing
        words = any(re.match(r"(train|valid|val|dev|test)", value) for value in values)
        folds = len(values) <= 20 and all(re.fullmatch(r"\d+(\.0+)?", value) for value in values)
        if words or folds or name in _SPLITS:
            found.append(column)
    return found


def _naming(table: TextTable, taken: set[str]) -> str | None:
    """The first column of names whose cells are all filled and different; "id" in any case."""
    for name in _IDS:
        column = find_column(table, [name])
        if column is not None and column not in taken:
            cells = table.column(column)
            if name == "id" or (len(set(cells)) == len(cells) and "" not in cells):
                return column
    return None


def _labels(table: TextTable, why: dict[str, Reason]) -> list[NamedTarget]:
    """The columns that are left when all others are explained."""
    found = [named([column], column, "") for column, reason in why.items() if not reason.text]
    if not found:
        reasons = "; ".join(f"{column!r} {reason.text}" for column, reason in why.items())
        raise ProtlmError(
            f"{table.file}: no column holds labels; "
            + (
                f"{reasons}: --targets NAME learns a column nevertheless"
                if reasons
                else f"add one beside {_listed(table.columns)}"
            )
        )
    clear = all(label.kind for label in found) or not any(r.describes for r in why.values())
    if len(found) > _MOST or (len(found) > 1 and not clear):
        raise ProtlmError(
            f"{table.file}: which columns hold the labels? Name them with --targets NAME [NAME "
            f"...]; these may: {_listed([label.column for label in found])}"
        )
    return found


def _reason(table: TextTable, column: str, sequence: str, dividing: Sequence[str]) -> Reason:
    """By the name of a column, then by its values."""
    name = _plain(column)
    if named([column], column, "").kind:
        return Reason()
    if re.fullmatch(r"Unnamed: \d+", column):
        return Reason("has no name")
    if name in map(_plain, SEQUENCES):
        return Reason("holds other sequences")
    if column in dividing or name in _DIVIDE:
        return Reason("divides the proteins")
    if name in map(_plain, _IDS):
        return Reason("identifies the proteins")
    if name in _DESCRIBE:
        return Reason("describes the proteins", True)
    cells = table.column(column)
    values = [cell for cell in cells if cell not in MISSING]
    different = set(values)
    if not values:
        return Reason("has no values")
    if len(different) == 1:
        return Reason(f"has the value {shortened(values[0])} everywhere")
    if all(_DATE.fullmatch(value) for value in different):
        return Reason("holds dates", True)
    lengths = [len("".join(text.split())) for text in table.column(sequence)]
    if few_letters(cells, lengths):
        return Reason()
    if values == cells and len(cells) > FEW:
        if any(cells == [str(start + i) for i in range(len(cells))] for start in (0, 1)):
            return Reason("counts the rows")
        if cells == [str(len(row[sequence])) for row in table.rows]:
            return Reason("holds the length of the sequences", True)
    if look_like_names(values, table.decimal(column)):
        what = f"{len(different):,} different values in {len(values):,} cells"
        return Reason(f"looks like names or numbers, not classes ({what})", True)
    return Reason()


def _notes(
    sequence: str,
    name: str | None,
    splits: list[str],
    labels: list[NamedTarget],
    why: dict[str, Reason],
) -> list[str]:
    """Which columns are used, and which are not and why."""
    used = [f"sequences from {sequence!r}", f"names from {name!r}" if name else "names by line"]
    if splits:
        used.append(f"split from {' and '.join(map(repr, splits))}")
    used.append(f"labels from {_listed([label.column for label in labels])}")
    notes = [f"Columns: {', '.join(used)}."]
    learned = {label.column for label in labels}
    left = [f"{c!r} {reason.text or 'is not named'}" for c, reason in why.items()
            if c not in learned]  # fmt: skip
    if left:
        notes.append(
            f"Not learned: {'; '.join(left)}. --targets NAME learns a column nevertheless."
        )
    return notes


def _proteins(
    table: TextTable, sequences: str, names: str | None, splits: str | None, validation: str | None
) -> list[UserProtein]:
    """The rows as proteins, in their order."""
    found: dict[str, UserProtein] = {}
    for number, (line, row) in enumerate(zip(table.lines, table.rows, strict=True)):
        name = row[names] if names else f"row{line}"
        if not name:
            raise ProtlmError(f"{table.place(number, names)}: empty; name the protein")
        place, text = table.place(number, sequences), row[sequences]
        if text in MISSING:
            what = f"{text!r} means a missing value" if text else "empty"
            raise ProtlmError(
                f"{place}: {name!r} has no sequence ({what}); add it or remove the row"
            )
        try:
            sequence = normalise(text, AS_WRITTEN, record=name)
        except ProtlmError as error:
            raise ProtlmError(f"{place}: {error}") from None
        split = row[splits] if splits else ""
        split = "" if split in MISSING else split
        if validation:
            place, word = table.place(number, validation), row[validation]
            validates = False if word in MISSING else _VALIDATES.get(word.casefold())
            if validates is None:
                raise ProtlmError(
                    f"{place}: {shortened(word)} is neither True nor False; rename the column"
                )
            if validates and split.casefold().startswith("test"):
                raise ProtlmError(f"{place}: {name!r} validates, and its split is {split!r}")
            split = "valid" if validates else split if splits else "train"
        if name in found:
            raise ProtlmError(
                f"{table.file}, line {line}: the id {name!r} was used in line {found[name].line}; "
                "give every protein its own id, or remove the duplicate"
            )
        found[name] = UserProtein(line, name, sequence, split)
    return list(found.values())


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 30:,} more" if len(names) > 30 else ""
    return ", ".join(map(shortened, names[:30])) + more
