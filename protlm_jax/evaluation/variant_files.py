"""Tables of variants: a wild type and a mutant, row by row.

CSV, TSV and semicolons (`data/tables`), with columns of these names, in any case, or of others that
are given:

- `mutant`: mutations in a notation that `mutations` reads, or the mutant's whole sequence, as in
  ProteinGym's files of insertions and deletions;
- `mutated_sequence`: the mutant's sequence. Alone it is compared with the wild type; beside
  mutations it must be what they give;
- `wildtype` or `sequence`: the wild type, see below.

The wild type is the first of:

- a FASTA file given beside the table: its only record, or the one that `wildtype` names;
- the sequence in the column `wildtype` or `sequence`;
- what `mutated_sequence` was before substitutions (ProteinGym's layout: `mutant`,
  `mutated_sequence`, `DMS_score`, `DMS_score_bin`).

What is wrong with a row is said in that row; the others are not touched by it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from protlm_jax.data.fasta import read_fasta
from protlm_jax.data.tables import MISSING, Table, find_column, plain, read_table, shortened
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.mutations import (
    WILD_TYPE,
    Edit,
    check,
    mutated,
    parse_mutations,
    restored,
)
from protlm_jax.evaluation.variants import Variant
from protlm_jax.vocabularies import RESIDUES, ResiduePolicy, normalise

ROLES = ("mutant", "mutated_sequence", "wildtype", "sequence", "DMS_score")
SEQUENCE_ROLES = ("wildtype", "sequence")

# What other files call a column; named in a message, never taken for it.
_LIKELY = {
    "mutant": (
        "mutation mutations mutants variant variants hgvs_pro hgvsp aa_change substitution "
        "substitutions mut aaMutations protein_variant"
    ),
    "mutated_sequence": "mutant_sequence mut_seq mutated_seq variant_sequence seq sequence",
}


@dataclass(frozen=True)
class VariantRow:
    """One row of a table: its line in the file, its cells, and the variant or what is wrong."""

    line: int
    cells: list[str]
    variant: Variant | None
    error: str = ""
    edits: tuple[Edit, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class VariantTable:
    """A file of variants.

    Attributes:
        table: as it stands in the file.
        roles: role -> the column that is read for it, of those in `ROLES`.
        rows: in the order of the file.
        names: wild-type sequence -> its name in the FASTA file, where there is one.
        hint: what to do where the mutations match the wild types at another offset; or "".
    """

    table: Table
    roles: dict[str, str]
    rows: list[VariantRow]
    names: dict[str, str]
    hint: str = ""

    def name(self, wildtype: str) -> str:
        """What to call a wild type: its name in the FASTA file, or how it begins."""
        start = wildtype if len(wildtype) <= 12 else wildtype[:12] + "..."
        return f"{self.names.get(wildtype, start)} ({len(wildtype)} residues)"


def read_variants(
    path: Path,
    wildtype: Path | None = None,
    policy: ResiduePolicy = ResiduePolicy(),
    *,
    columns: Mapping[str, str] | None = None,
    offset: int = 0,
) -> VariantTable:
    """Reads a table of variants.

    Args:
        path: the table, plain or compressed.
        wildtype: a FASTA file of wild types.
        policy: what happens to rare residues and lower case in sequences.
        columns: role -> the column that has it, where it is not called so.
        offset: added to the positions of mutations.

    Raises:
        ProtlmError: the file cannot be read, has no mutants, or nothing says what the wild types
            are.
    """
    table = read_table(path, keep_uneven=True)
    roles = _roles(table, columns or {})
    proteins = {r.id: r.sequence for r in read_fasta(wildtype, policy=policy)} if wildtype else {}
    _need_wildtypes(path, roles, wildtype, proteins)
    if len(proteins) == 1:  # the columns of wild types are not read
        roles = {role: column for role, column in roles.items() if role not in SEQUENCE_ROLES}
    elif "wildtype" in roles:
        roles.pop("sequence", None)
    reader = _Reader(roles, proteins, policy, offset)
    rows = []
    for i, (line, cells) in enumerate(zip(table.lines, table.cells, strict=True)):
        if fault := table.uneven(i):
            rows.append(VariantRow(line, cells, None, fault))
        else:
            rows.append(reader.row(line, cells, table.rows[i]))
    if not proteins and not set(SEQUENCE_ROLES) & set(roles):
        rows = _held_together(rows)
    names = {sequence: name for name, sequence in proteins.items()}
    hint = _offset_hint(reader.claims, offset) if reader.mismatches else ""
    return VariantTable(table, roles, rows, names, hint)


def parse_columns(text: str) -> dict[str, str]:
    """Reads `mutant=Variant,DMS_score=fitness`.

    Raises:
        ProtlmError: it is none such, or names an unknown role.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        role, equals, name = (piece.strip() for piece in part.partition("="))
        known = next((r for r in ROLES if plain(r) == plain(role)), None)
        if not equals or not name or known is None or known in found:
            raise ProtlmError(
                f"--columns {text!r}: write ROLE=COLUMN, joined by commas, each ROLE once, one of "
                f"{', '.join(ROLES)}"
            )
        found[known] = name
    return found


def _roles(table: Table, columns: Mapping[str, str]) -> dict[str, str]:
    """Role -> column. A column that was given for a role has no other by its name."""
    roles: dict[str, str] = {}
    for role, name in columns.items():
        column = find_column(table, (name,))
        if column is None:
            raise ProtlmError(
                f"{table.file} has no column {name!r} for {role}; it has "
                f"{', '.join(map(repr, table.columns))}"
            )
        roles[role] = column
    for role in ROLES:
        column = find_column(table, (role,))
        if role not in roles and column is not None and column not in roles.values():
            roles[role] = column
    if not {"mutant", "mutated_sequence"} & set(roles):
        likely = [
            f"{role}={column}"
            for role, names in _LIKELY.items()
            if (column := find_column(table, names.split())) is not None
        ]
        example = f"as in --columns {likely[0]}" if likely else "as in --columns mutant=NAME"
        raise ProtlmError(
            f"{table.file}, line 1: expected a FASTA file (first line '>name') or a table with a "
            "column 'mutant' or 'mutated_sequence'; the columns are "
            f"{', '.join(map(shortened, table.columns[:20]))}; say which one it is, {example}"
        )
    return roles


def _need_wildtypes(
    path: Path, roles: Mapping[str, str], wildtype: Path | None, proteins: dict[str, str]
) -> None:
    """Refuses a table that does not say what was mutated."""
    if len(proteins) > 1 and "wildtype" not in roles:
        raise ProtlmError(
            f"{wildtype} has {len(proteins)} proteins: {path} needs a column 'wildtype' that names "
            "the one of each row"
        )
    known = proteins or {*SEQUENCE_ROLES} & set(roles)
    if not known and not {"mutant", "mutated_sequence"} <= set(roles):
        raise ProtlmError(
            f"{path} does not say what the wild type is: give it with --wildtype wt.fasta, or as "
            "a sequence in a column 'wildtype' (or 'sequence'); or give mutations in a column "
            "'mutant' and each mutant's sequence in a column 'mutated_sequence'"
        )


class _Reader:
    """Turns rows into variants, and remembers what they say about their wild types.

    claims holds (wild type, its named positions and letters) of each row with mutations.
    """

    def __init__(
        self, roles: dict[str, str], proteins: dict[str, str], policy: ResiduePolicy, offset: int
    ) -> None:
        self.roles, self.proteins, self.policy, self.offset = roles, proteins, policy, offset
        self.claims: list[tuple[str, tuple[tuple[int, str], ...]]] = []
        self.mismatches = 0

    def row(self, line: int, cells: list[str], row: dict[str, str]) -> VariantRow:
        try:
            edits, variant = self._variant({r: row[column] for r, column in self.roles.items()})
            return VariantRow(line, cells, variant, edits=edits)
        except ProtlmError as error:
            return VariantRow(line, cells, None, str(error))

    def _variant(self, row: dict[str, str]) -> tuple[tuple[Edit, ...], Variant]:
        text, sequence = row.get("mutant", ""), _known(row.get("mutated_sequence", ""))
        wildtype = self._wildtype(row)
        if text and (text == sequence or _is_sequence(text, wildtype or "")):
            text, sequence = "", self._agreed(text, sequence)
        mutant = normalise(sequence, self.policy, record="mutated_sequence") if sequence else None
        if not text and mutant is None and "mutated_sequence" in row:
            raise ProtlmError("neither mutations nor a mutated sequence")
        edits = parse_mutations(text, self.offset)
        if wildtype is None:
            return edits, self._from_mutant(text, edits, mutant)
        if not text and mutant is not None:  # the mutant as a whole
            return (), Variant(wildtype, mutant)
        self.claims.append((wildtype, tuple(claim for e in edits for claim in e.named)))
        try:
            check(edits, wildtype)
        except ProtlmError:
            self.mismatches += 1
            raise
        expected = mutated(edits, wildtype)
        if not expected:
            raise ProtlmError(f"{text}: nothing is left of the wild type")
        if mutant is not None and mutant != expected:
            raise ProtlmError(_difference(expected, mutant))
        return edits, Variant(wildtype, expected, not all(e.substitutes for e in edits))

    def _agreed(self, text: str, sequence: str) -> str:
        """The mutant's sequence, which a row may give twice."""
        if sequence and normalise(sequence, self.policy, record="mutated_sequence") != normalise(
            text, self.policy, record="mutant"
        ):
            raise ProtlmError("the sequences in mutant and mutated_sequence differ")
        return text

    def _wildtype(self, row: dict[str, str]) -> str | None:
        """The wild type of a row; None where only its mutant tells."""
        if len(self.proteins) == 1:
            return next(iter(self.proteins.values()))
        if self.proteins:
            if row["wildtype"] not in self.proteins:
                raise ProtlmError(f"no wild type is called {row['wildtype']!r} in the FASTA file")
            return self.proteins[row["wildtype"]]
        named = next((_known(row[role]) for role in SEQUENCE_ROLES if role in row), None)
        return None if named is None else normalise(named, self.policy, record="wild type")

    def _from_mutant(self, text: str, edits: Sequence[Edit], mutant: str | None) -> Variant:
        if mutant is None:
            raise ProtlmError("no mutated sequence to tell the wild type from; give --wildtype")
        if not text or not all(edit.substitutes for edit in edits):
            raise ProtlmError(
                "the wild type cannot be told from a mutated sequence without its substitutions; "
                "give it with --wildtype"
            )
        check(edits, mutant, mutated=True)
        return Variant(restored(edits, mutant), mutant)


def _known(cell: str) -> str:
    """A sequence, "" where it is missing: pandas' NA and NAN would be residues."""
    return "" if cell in MISSING else cell


def _is_sequence(text: str, wildtype: str) -> bool:
    """Whether a cell of the column `mutant` is a whole sequence, and no word as MISSENSE."""
    alike = len(wildtype) <= 2 * len(text) <= 4 * len(wildtype) and text.lower() not in WILD_TYPE
    return alike and text.isalpha() and set(text) <= set(RESIDUES)


def _difference(expected: str, found: str) -> str:
    """Where a mutated sequence departs from the mutations said to make it."""
    if len(expected) != len(found):
        return (
            f"mutated_sequence has {len(found)} residues, but wild type and mutations give "
            f"{len(expected)}"
        )
    at = next(i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b)
    return (
        f"mutated_sequence has {found[at]} at position {at + 1}, where wild type and mutations "
        f"give {expected[at]}"
    )


def _offset_hint(claims: list[tuple[str, tuple[tuple[int, str], ...]]], offset: int) -> str:
    """Says at which one offset all mutations match their wild types; "" where there is none.

    Args:
        claims: the wild type, and positions, counted from 0, and letters that mutations name.
        offset: that these positions have in them already.
    """
    found: set[int] | None = None
    for wildtype, named in claims:
        for at, letter in named:
            if found is None:
                found = {i - at for i, own in enumerate(wildtype) if own == letter}
            found = {o for o in found if 0 <= at + o < len(wildtype) and wildtype[at + o] == letter}
            if not found:
                return ""
    if not found or len(found) > 1:
        return ""
    right = offset + found.pop()
    many = f"all {len(claims):,} variants match" if len(claims) > 1 else "the variant matches"
    return (
        f"{many} the wild type at offset {right} and at no other: if positions are those of a "
        f"longer protein, pass --offset {right}"
    )


def _held_together(rows: list[VariantRow]) -> list[VariantRow]:
    """Finds wrong wild-type letters where each row gave its own wild type.

    A row whose wild type departs from one that more rows share, at its own mutated positions and
    nowhere else, names a wrong residue. One that departs elsewhere is another protein.
    """
    support = Counter(row.variant.wildtype for row in rows if row.variant)
    common: dict[int, list[str]] = defaultdict(list)  # by length
    for sequence, _ in support.most_common():
        common[len(sequence)].append(sequence)

    def held(row: VariantRow) -> VariantRow:
        if row.variant is None:
            return row
        own = row.variant.wildtype
        for other in common[len(own)]:
            if support[other] <= support[own]:
                return row
            if restored(row.edits, other) == own:
                try:
                    check(row.edits, other)
                except ProtlmError as error:
                    wrong = f"{error} (other rows agree on it)"
                    return replace(row, variant=None, error=wrong)
        return row

    return [held(row) for row in rows]
