"""Tables of variants: a wild type and a mutant in each row.

Columns have these names, in any case, or others that are given for them:

- `mutant`: mutations in a notation that `mutations` reads, or the mutant's whole sequence, as in
  ProteinGym's files of insertions and deletions;
- `mutated_sequence`: the mutant's sequence. Alone it is compared with the wild type; beside
  mutations it must be what they give;
- `wildtype` or `sequence`: the wild type.

The wild type is the first of: the only record of a FASTA file, or the record that `wildtype` names;
the sequence in `wildtype` or `sequence`; `mutated_sequence` with its substitutions undone
(ProteinGym's layout).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protlm_jax.data.fasta import read_fasta
from protlm_jax.data.tables import MISSING, TextTable, find_column, plain, read_table, shortened
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.scoring.mutations import (
    WILD_TYPE,
    Edit,
    Variant,
    check,
    mutate,
    parse_mutations,
    restored,
)
from protlm_jax.vocabularies import RESIDUES, ResiduePolicy, normalise

ROLES = ("mutant", "mutated_sequence", "wildtype", "sequence", "DMS_score")
SEQUENCE_ROLES = ("wildtype", "sequence")

# What other files call a column; suggested in a message, never read without being named.
_LIKELY = {
    "mutant": (
        "mutation mutations mutants variant variants hgvs_pro hgvsp aa_change substitution "
        "substitutions mut aaMutations protein_variant"
    ),
    "mutated_sequence": "mutant_sequence mut_seq mutated_seq variant_sequence seq sequence",
}


@dataclass
class VariantRow:
    """A row of a table: its line in the file, its cells, and a variant or an error.

    `wildtype` is None where only the mutant was given; `edits` are the mutations that it names.
    """

    line: int
    cells: list[str]
    variant: Variant | None = None
    error: str = ""
    wildtype: str | None = None
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True)
class VariantTable:
    """A file of variants.

    roles: role -> the column that is read for it, of those in `ROLES`; names: wild-type sequence ->
    its name in the FASTA file; hint: what to do where the mutations match the wild types at another
    offset, or "".
    """

    table: TextTable
    roles: dict[str, str]
    rows: list[VariantRow]
    names: dict[str, str]
    hint: str = ""

    def name(self, wildtype: str) -> str:
        """The name of a wild type in the FASTA file, or its first residues; and its length."""
        start = wildtype if len(wildtype) <= 12 else wildtype[:12] + "..."
        return f"{self.names.get(wildtype, start)} ({len(wildtype)} residues)"


def read_variants(
    path: Path,
    wildtype: Path | Mapping[str, str] | None = None,
    policy: ResiduePolicy = ResiduePolicy(),
    *,
    columns: Mapping[str, str] | None = None,
    offset: int = 0,
) -> VariantTable:
    """Reads a table of variants; an error in one row leaves the others as they are.

    Args:
        path: the table, plain or compressed.
        wildtype: a FASTA file of wild types, or id -> sequence.
        policy: how sequences are read.
        columns: role -> its column, where that has another name.
        offset: added to the positions of mutations.

    Raises:
        ProtlmError: the file cannot be read, has no mutants, or no wild types.
    """
    table = read_table(path, keep_uneven=True)
    roles = _roles(table, columns or {})
    proteins = dict(wildtype) if isinstance(wildtype, Mapping) else {}
    if isinstance(wildtype, Path):
        proteins = {r.id: r.sequence for r in read_fasta(wildtype, policy=policy)}
    _require_wildtypes(path, roles, wildtype, proteins)
    if len(proteins) == 1:
        roles = {role: column for role, column in roles.items() if role not in SEQUENCE_ROLES}
    elif "wildtype" in roles:
        roles.pop("sequence", None)
    rows = []
    for i, (line, cells) in enumerate(zip(table.lines, table.cells, strict=True)):
        row = VariantRow(line, cells, error=table.uneven(i))
        rows.append(row)
        if not row.error:
            try:
                values = {role: table.rows[i][column] for role, column in roles.items()}
                row.variant = _variant(row, values, proteins, policy, offset)
            except ProtlmError as error:
                row.error = str(error)
    if not proteins and not set(SEQUENCE_ROLES) & set(roles):
        _compare_wildtypes(rows)
    names = {sequence: name for name, sequence in proteins.items()}
    return VariantTable(table, roles, rows, names, _offset_hint(rows, offset))


def parse_columns(text: str) -> dict[str, str]:
    """Reads `mutant=Variant,DMS_score=fitness`.

    Raises:
        ProtlmError: it is written otherwise, or names an unknown role.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        role, _, name = (piece.strip() for piece in part.partition("="))
        known = next((r for r in ROLES if plain(r) == plain(role)), None)
        if not name or known is None or known in found:
            raise ProtlmError(
                f"--columns {text!r}: write ROLE=COLUMN, joined by commas, each ROLE once, one of "
                f"{', '.join(ROLES)}"
            )
        found[known] = name
    return found


def _roles(table: TextTable, columns: Mapping[str, str]) -> dict[str, str]:
    """Role -> column: the one given, or the one of that name which has no other role."""
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
        raise ProtlmError(
            f"{table.file}, line 1: expected a FASTA file (first line '>name') or a table with a "
            "column 'mutant' or 'mutated_sequence'; the columns are "
            f"{', '.join(map(shortened, table.columns[:20]))}; name the right one, as in --columns "
            f"{likely[0] if likely else 'mutant=NAME'}"
        )
    return roles


def _require_wildtypes(
    path: Path, roles: Mapping[str, str], wildtype: object, proteins: dict[str, str]
) -> None:
    if len(proteins) > 1 and "wildtype" not in roles:
        raise ProtlmError(
            f"{wildtype} has {len(proteins)} proteins: {path} needs a column 'wildtype' that names "
            "the one of each row"
        )
    known = proteins or {*SEQUENCE_ROLES} & set(roles)
    if not known and not {"mutant", "mutated_sequence"} <= set(roles):
        raise ProtlmError(
            f"{path} does not give the wild type: give it with --wildtype wt.fasta, or as "
            "a sequence in a column 'wildtype' (or 'sequence'); or give mutations in a column "
            "'mutant' and each mutant's sequence in a column 'mutated_sequence'"
        )


def _variant(
    row: VariantRow,
    values: dict[str, str],
    proteins: dict[str, str],
    policy: ResiduePolicy,
    offset: int,
) -> Variant:
    """The variant of a row with these values by role; sets the row's wild type and edits."""
    text, sequence = values.get("mutant", ""), _known(values.get("mutated_sequence", ""))
    wildtype = _wildtype(values, proteins, policy)
    mutant = normalise(sequence, policy, record="mutated_sequence") if sequence else None
    if text and (text == sequence or _is_sequence(text, wildtype or "")):
        given = normalise(text, policy, record="mutant")
        if mutant not in (None, given):
            raise ProtlmError("the sequences in mutant and mutated_sequence differ")
        text, mutant = "", given
    if not text and mutant is None and "mutated_sequence" in values:
        raise ProtlmError("neither mutations nor a mutated sequence")
    row.edits = edits = parse_mutations(text, offset)
    if wildtype is None:
        return _from_mutant(text, edits, mutant)
    if not text and mutant is not None:
        return Variant(wildtype, mutant)
    row.wildtype = wildtype
    check(edits, wildtype)
    variant = mutate(edits, wildtype)
    if not variant.sequence:
        raise ProtlmError(f"{text}: all residues of the wild type are deleted")
    if mutant is not None and mutant != variant.sequence:
        raise ProtlmError(_difference(variant.sequence, mutant))
    return variant


def _wildtype(
    values: dict[str, str], proteins: dict[str, str], policy: ResiduePolicy
) -> str | None:
    if len(proteins) == 1:
        return next(iter(proteins.values()))
    if proteins:
        if values["wildtype"] not in proteins:
            raise ProtlmError(f"the FASTA file has no wild type {values['wildtype']!r}")
        return proteins[values["wildtype"]]
    named = next((_known(values[role]) for role in SEQUENCE_ROLES if role in values), None)
    return None if named is None else normalise(named, policy, record="wild type")


def _from_mutant(text: str, edits: Sequence[Edit], mutant: str | None) -> Variant:
    if mutant is None:
        raise ProtlmError("no mutated sequence to find the wild type from; give --wildtype")
    if not text or not all(edit.substitutes for edit in edits):
        raise ProtlmError(
            "a mutated sequence gives the wild type only together with its substitutions; give it "
            "with --wildtype"
        )
    check(edits, mutant, mutated=True)
    return Variant(restored(edits, mutant), mutant)


def _known(cell: str) -> str:
    """A sequence, "" where it is missing: pandas' NA and NAN would be residues."""
    return "" if cell in MISSING else cell


def _is_sequence(text: str, wildtype: str) -> bool:
    """Whether a cell of `mutant` is a whole sequence, and not a word such as MISSENSE."""
    alike = len(wildtype) <= 2 * len(text) <= 4 * len(wildtype) and text.lower() not in WILD_TYPE
    return alike and text.isalpha() and set(text) <= set(RESIDUES)


def _difference(expected: str, found: str) -> str:
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


def _offset_hint(rows: Sequence[VariantRow], offset: int) -> str:
    """The one other offset at which all mutations match their wild types; "" without one."""
    named = [row for row in rows if row.wildtype is not None]
    if not any(row.error for row in named):
        return ""
    found: set[int] | None = None  # to add to `offset`
    for row in named:
        own = row.wildtype or ""
        for at, letter in (claim for edit in row.edits for claim in edit.named):
            if found is None:
                found = {i - at for i, residue in enumerate(own) if residue == letter}
            found = {o for o in found if 0 <= at + o < len(own) and own[at + o] == letter}
            if not found:
                return ""
    if not found or len(found) > 1 or 0 in found:
        return ""
    right = offset + found.pop()
    many = f"all {len(named):,} variants match" if len(named) > 1 else "the variant matches"
    return (
        f"{many} the wild type at offset {right} and at no other: if positions are those of a "
        f"longer protein, pass --offset {right}"
    )


def _compare_wildtypes(rows: Sequence[VariantRow]) -> None:
    """Finds wrong wild-type letters where each row's wild type comes from its own mutant.

    A row whose wild type differs from one that more rows have at its own mutated positions and
    nowhere else names a wrong residue. One that differs elsewhere is another protein.
    """
    support = Counter(row.variant.wildtype for row in rows if row.variant)
    common: dict[int, list[str]] = defaultdict(list)  # by length
    for sequence, _ in support.most_common():
        common[len(sequence)].append(sequence)
    for row in rows:
        own = row.variant.wildtype if row.variant else ""
        for other in common[len(own)]:
            if support[other] <= support[own]:
                break
            if restored(row.edits, other) == own:
                try:
                    check(row.edits, other)
                except ProtlmError as error:
                    row.variant, row.error = None, f"{error} (other rows agree on it)"
                    break
