"""Tables of variants: which substitutions in which wild type, row by row.

A CSV file with a header and a column `mutant` (`A42G`, `A42G:L50P`). The wild type is the first of:

- a FASTA file given beside it: its only record, or the one that the column `wildtype` names;
- the sequence in the column `wildtype` or `sequence`;
- what the column `mutated_sequence` was before the substitutions (ProteinGym's layout: `mutant`,
  `mutated_sequence`, `DMS_score`, `DMS_score_bin`).

A `mutated_sequence` is always held against the substitutions. What is wrong with a row is said in
that row; the others are not touched by it.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from protlm_jax.data.fasta import read_fasta, text_lines
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.variants import Substitution, Variant, check, parse_substitutions
from protlm_jax.vocabularies import ResiduePolicy, normalise

SEQUENCE_COLUMNS = ("wildtype", "sequence")


@dataclass(frozen=True)
class VariantRow:
    """One row of a table: its line in the file, its fields, and the variant or what is wrong."""

    line: int
    fields: list[str]
    variant: Variant | None
    error: str = ""


@dataclass(frozen=True)
class VariantTable:
    """A file of variants.

    Attributes:
        columns: the header.
        rows: in the order of the file.
        names: wild-type sequence -> its name in the FASTA file, where there is one.
    """

    columns: list[str]
    rows: list[VariantRow]
    names: dict[str, str]

    def column(self, name: str) -> list[str]:
        """The fields of one column ("" where a row is too short)."""
        at = self.columns.index(name)
        return [row.fields[at] if at < len(row.fields) else "" for row in self.rows]

    def name(self, wildtype: str) -> str:
        """What to call a wild type: its name in the FASTA file, or how it begins."""
        start = wildtype if len(wildtype) <= 12 else wildtype[:12] + "..."
        return f"{self.names.get(wildtype, start)} ({len(wildtype)} residues)"


def read_variants(
    path: Path, wildtype: Path | None = None, policy: ResiduePolicy = ResiduePolicy()
) -> VariantTable:
    """Reads a table of variants.

    Args:
        path: the CSV file, plain or compressed.
        wildtype: a FASTA file of wild types.
        policy: what happens to rare residues and lower case in sequences.

    Raises:
        ProtlmError: the file cannot be read, has no column `mutant`, or nothing says what the wild
            types are.
    """
    lines = ((number, line) for number, line in text_lines(str(path)) if line)
    header = next(lines, None)
    if header is None:
        raise ProtlmError(f"{path} holds no table; is it the right file?")
    columns = [name.strip() for name in _fields(header[1])]
    if "mutant" not in columns or len(set(columns)) < len(columns):
        raise ProtlmError(
            f"{path}, line {header[0]}: expected a FASTA file (first line '>name') or a CSV table "
            f"whose header names each column once and has a column 'mutant'; found {header[1]!r}"
        )
    proteins = {r.id: r.sequence for r in read_fasta(wildtype, policy=policy)} if wildtype else {}
    _need_wildtypes(path, columns, wildtype, proteins)
    rows = [_row(number, _fields(line), columns, proteins, policy) for number, line in lines]
    if not rows:
        raise ProtlmError(f"{path} has a header but no variants")
    if not proteins and not set(SEQUENCE_COLUMNS) & set(columns):
        rows = _held_together(rows)
    return VariantTable(columns, rows, {sequence: name for name, sequence in proteins.items()})


def _need_wildtypes(
    path: Path, columns: list[str], wildtype: Path | None, proteins: dict[str, str]
) -> None:
    """Refuses a table that does not say what was mutated."""
    if len(proteins) > 1 and "wildtype" not in columns:
        raise ProtlmError(
            f"{wildtype} has {len(proteins)} proteins: {path} needs a column 'wildtype' that names "
            "the one of each row"
        )
    if not proteins and not {*SEQUENCE_COLUMNS, "mutated_sequence"} & set(columns):
        raise ProtlmError(
            f"{path} does not say what the wild type is: give it with --wildtype wt.fasta, or as "
            "a sequence in a column 'wildtype' (or 'sequence'), or each mutant's in a column "
            "'mutated_sequence'"
        )


def _row(
    number: int,
    fields: list[str],
    columns: list[str],
    proteins: dict[str, str],
    policy: ResiduePolicy,
) -> VariantRow:
    try:
        if len(fields) != len(columns):
            raise ProtlmError(f"{len(fields)} fields, but the header has {len(columns)}")
        return VariantRow(number, fields, _variant(fields, columns, proteins, policy))
    except ProtlmError as error:
        return VariantRow(number, fields, None, str(error))


def _variant(
    fields: list[str], columns: list[str], proteins: dict[str, str], policy: ResiduePolicy
) -> Variant:
    row = dict(zip(columns, fields, strict=True))
    substitutions = parse_substitutions(row["mutant"])
    mutated = None
    if "mutated_sequence" in row:
        mutated = normalise(row["mutated_sequence"], policy, record="mutated_sequence")
        check(substitutions, mutated, mutated=True)
    named = next((row[name] for name in SEQUENCE_COLUMNS if name in row), None)
    if len(proteins) == 1:
        wildtype = next(iter(proteins.values()))
    elif proteins:
        if row["wildtype"] not in proteins:
            raise ProtlmError(f"no wild type is called {row['wildtype']!r} in the FASTA file")
        wildtype = proteins[row["wildtype"]]
    elif named is not None:
        wildtype = normalise(named, policy, record="wild type")
    else:
        assert mutated is not None
        return Variant(_restored(mutated, substitutions), substitutions)
    check(substitutions, wildtype)
    variant = Variant(wildtype, substitutions)
    if mutated is not None and mutated != variant.sequence:
        raise ProtlmError(_difference(variant.sequence, mutated))
    return variant


def _restored(mutated: str, substitutions: Sequence[Substitution]) -> str:
    letters = list(mutated)
    for s in substitutions:
        letters[s.position - 1] = s.wildtype
    return "".join(letters)


def _difference(expected: str, found: str) -> str:
    """Where a mutated sequence departs from the mutations said to make it."""
    if len(expected) != len(found):
        return (
            f"mutated_sequence has {len(found)} residues and the wild type {len(expected)}; only "
            "substitutions are scored"
        )
    at = next(i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b)
    return (
        f"mutated_sequence has {found[at]} at position {at + 1}, where wild type and mutations "
        f"give {expected[at]}"
    )


def _held_together(rows: list[VariantRow]) -> list[VariantRow]:
    """Finds wrong wild-type letters where each row gave its own wild type.

    A row whose wild type departs from one that more rows share, at its own mutated positions and
    nowhere else, names a wrong residue. One that departs elsewhere is another protein.
    """
    support = Counter(row.variant.wildtype for row in rows if row.variant)
    common = [sequence for sequence, _ in support.most_common()]

    def held(row: VariantRow) -> VariantRow:
        if row.variant is None:
            return row
        own = row.variant.wildtype
        for other in common:
            if support[other] <= support[own]:
                return row
            if len(other) == len(own) and _restored(other, row.variant.substitutions) == own:
                try:
                    check(row.variant.substitutions, other)
                except ProtlmError as error:
                    return replace(row, variant=None, error=f"{error} (other rows agree on it)")
        return row

    return [held(row) for row in rows]


def _fields(line: str) -> list[str]:
    return next(csv.reader([line]))
