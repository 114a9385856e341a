"""Which columns of a table hold what: sequences, names, splits, labels; and why the others do not.

The names are those of UniProt's exports, FLIP, TAPE and ProteinBERT, ProteinGym, and DeepLoc.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from protlm_jax.data.tables import MISSING, Table, find_column, is_number, shortened
from protlm_jax.errors import ProtlmError

SEQUENCES = (
    "mutated_sequence", "mutant_sequence", "sequence", "seq", "protein_sequence", "aa_sequence",
    "aa_seq", "amino_acid_sequence", "primary",
)  # fmt: skip
SPLITS = ("split", "data_split", "set", "subset", "partition")
_FOLDS = ("fold", "cv_fold", "stage")  # these may be labels: folds of structures, stages of life
KINDS = ("classes", "number")
FEW = 10  # values that are classes, however often each occurs

_IDS = (
    "id", "entry", "accession", "acc", "uniprot_accession", "uniprot_id", "uniprot", "protein_id",
    "sequence_id", "seq_id", "sid", "identifier", "entry_name", "protein_name", "name", "protein",
    "mutant", "mutation", "mutations", "variant",
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
_DIVIDE = ("cluster", "clusters", "clusterid", "clusterids", "uniref50", "uniref90", "uniref100")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T].*)?|\d{1,2}[./]\d{1,2}[./]\d{4}", re.ASCII)
_MANY = 50  # columns that nobody means as labels all at once


@dataclass(frozen=True)
class LabelColumn:
    """A column of labels, what to call them, and "classes", "number" or "" where nobody says."""

    column: str
    name: str
    kind: str = ""
    asked: bool = False  # named by the user


@dataclass(frozen=True)
class Roles:
    """What the columns of a table hold; `notes` says it in sentences."""

    sequence: str
    id: str | None
    split: str | None
    validation: str | None
    labels: tuple[LabelColumn, ...]
    notes: tuple[str, ...]


def roles(
    table: Table, targets: Sequence[str] = (), split: str | None = None, divided: bool = True
) -> Roles:
    """Finds out what each column holds.

    Args:
        table: of proteins.
        targets: the columns of labels, as "stability" or "stability:number"; () takes those that
            neither identify, nor divide, nor describe the proteins.
        split: the column that divides them; None takes one of SPLITS.
        divided: whether the table's own split is used.

    Raises:
        ProtlmError: there are no sequences or no labels, a named column is not there, or it is not
            clear which columns hold labels.
    """
    named = [label_column(table.columns, text, f"{table.file}") for text in targets]
    taken = {label.column for label in named}
    sequence = find_column(table, SEQUENCES)
    if sequence is None:
        raise ProtlmError(
            f"{table.file}, line 1: no column 'sequence' among {_listed(table.columns)}; the first "
            "line of a table names the columns: sequence, optionally id and split, and the labels "
            "(a FASTA file begins with '>')"
        )
    dividing = _dividing(table, taken)
    if split is not None:
        split = exact(table.columns, split, f"{table.file}")
    elif dividing and divided:
        split = dividing[0]
    validation = find_column(table, ["validation"]) if divided else None
    validation = None if validation in {*taken, split} else validation
    name = _naming(table, taken)
    used = {sequence, name, split, validation}
    why = {
        column: _reason(table, column, sequence, dividing)
        for column in table.columns
        if column not in used
    }
    labels = named or _labels(table, why)
    where = [f"sequences from {sequence!r}", f"names from {name!r}" if name else "names by line"]
    if split or validation:
        where.append("split from " + " and ".join(repr(c) for c in (split, validation) if c))
    where.append(f"labels from {_listed([label.column for label in labels])}")
    notes = ["Columns: " + ", ".join(where) + "."]
    learned = {label.column for label in labels}
    left = [f"{column!r} {why[column][0] or 'is not named'}" for column in why
            if column not in learned]  # fmt: skip
    if left:
        notes.append(
            f"Not learned: {'; '.join(left)}. --targets NAME learns a column nevertheless."
        )
    return Roles(sequence, name, split, validation, tuple(labels), tuple(notes))


def label_column(columns: Sequence[str], text: str, place: str) -> LabelColumn:
    """The column that NAME or NAME:KIND means.

    Raises:
        ProtlmError: there is none.
    """
    name, colon, kind = text.rpartition(":")
    if text not in columns and colon and kind in KINDS:
        return LabelColumn(exact(columns, name, place), name, kind, asked=True)
    column = exact(columns, text, place)
    head, colon, kind = column.rpartition(":")
    if colon and kind in KINDS:
        return LabelColumn(column, head, kind, asked=True)
    return LabelColumn(column, column, asked=True)


def exact(columns: Sequence[str], name: str, place: str) -> str:
    """The column of this name, in the same case or the only one in another.

    Raises:
        ProtlmError: there is none.
    """
    if name in columns:
        return name
    found = [column for column in columns if _plain(column) == _plain(name)]
    if len(found) != 1:
        what = f"the columns {_listed(found)} may all be" if found else "no column is called"
        raise ProtlmError(f"{place}: {what} {name!r}; there is {_listed(columns)}")
    return found[0]


def _labels(table: Table, why: dict[str, tuple[str, bool]]) -> list[LabelColumn]:
    """The columns that are left when all others are explained."""
    found = [label_column([c], c, "") for c, (reason, _) in why.items() if not reason]
    found = [LabelColumn(label.column, label.name, label.kind) for label in found]
    stated = all(label.kind for label in found)
    described = any(described for _, described in why.values())
    if not found:
        reasons = [f"{column!r} {reason}" for column, (reason, _) in why.items()]
        raise ProtlmError(
            f"{table.file}: no column holds labels; "
            + (
                f"{'; '.join(reasons)}: name those to learn nevertheless with --targets NAME"
                if reasons
                else f"add one beside {_listed(table.columns)}"
            )
        )
    if len(found) > _MANY or (len(found) > 1 and described and not stated):
        raise ProtlmError(
            f"{table.file}: which columns hold the labels? Name them with --targets NAME [NAME "
            f"...]; these may: {_listed([label.column for label in found])}"
        )
    return found


def _dividing(table: Table, taken: set[str]) -> list[str]:
    """The columns that divide proteins into training, validation and test, or into folds."""
    found = []
    for name in (*SPLITS, *_FOLDS):
        column = find_column(table, [name])
        if column is None or column in taken:
            continue
        values = {cell.casefold() for cell in table.column(column)} - {
            m.casefold() for m in MISSING
        }
        words = any(re.match(r"(train|valid|val|dev|test)", value) for value in values)
        folds = len(values) <= 20 and all(re.fullmatch(r"\d+(\.0+)?", value) for value in values)
        if words or folds or name in SPLITS:
            found.append(column)
    return found


def _naming(table: Table, taken: set[str]) -> str | None:
    """The first column of names whose cells are all filled and different; "id" in any case."""
    for name in _IDS:
        column = find_column(table, [name])
        if column is not None and column not in taken:
            cells = table.column(column)
            if name == "id" or (len(set(cells)) == len(cells) and "" not in cells):
                return column
    return None


def _reason(table: Table, column: str, sequence: str, dividing: Sequence[str]) -> tuple[str, bool]:
    """Why a column is none of labels, "" where it may be one; and whether it describes proteins."""
    if label_column([column], column, "").kind:
        return "", False
    name = _plain(column)
    if re.fullmatch(r"Unnamed: \d+", column):
        return "has no name", False
    if name in map(_plain, SEQUENCES):
        return "holds other sequences", False
    if column in dividing or name in _DIVIDE or name == "validation":
        return "divides the proteins", False
    if name in map(_plain, _IDS):
        return "identifies the proteins", False
    if name in _DESCRIBE:
        return "describes the proteins", True
    return _reason_of_values(table, column, sequence)


def _reason_of_values(table: Table, column: str, sequence: str) -> tuple[str, bool]:
    cells = table.column(column)
    values = [cell for cell in cells if cell not in MISSING]
    different = set(values)
    decimal = table.decimal(column)
    if not values:
        return "has no values", False
    if len(different) == 1:
        return f"has the value {shortened(values[0])} everywhere", False
    if all(_DATE.fullmatch(value) for value in different):
        return "holds dates", True
    if values == cells and len(cells) > FEW:
        start = int(cells[0]) if cells[0] in ("0", "1") else None
        if start is not None and cells == [str(start + i) for i in range(len(cells))]:
            return "counts the rows", False
        if cells == [str(len(row[sequence])) for row in table.rows]:
            return "holds the length of the sequences", True
    if names(values, decimal):
        what = f"{len(different):,} different values in {len(values):,} cells"
        return f"looks like names or numbers, not classes ({what})", True
    return "", False


def names(values: Sequence[str], decimal: str) -> bool:
    """Whether most of the values, none of them missing, occur once, and are no numbers."""
    different = set(values)
    if mostly_numbers(different, decimal):
        return False
    if len(different) <= FEW:
        return len(different) == len(values) > 3
    single = sum(count == 1 for count in Counter(values).values())
    return single > len(different) / 2 or len(different) > len(values) / 2


def mostly_numbers(different: set[str], decimal: str) -> bool:
    """Whether values are numbers, a few wrong ones apart where there are many."""
    numbers = sum(
        is_number(value, decimal) or re.fullmatch(r"[+-]?inf(inity)?", value.casefold()) is not None
        for value in different
    )
    return numbers == len(different) or (len(different) > FEW and numbers > len(different) / 2)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 30:,} more" if len(names) > 30 else ""
    return ", ".join(map(shortened, names[:30])) + more
