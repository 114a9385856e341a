"""Tables of variants as people hold them: each row a variant, or a reason in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.scoring.table import VariantTable, parse_columns, read_variants

WILDTYPE = "MSKGEELFTGVVPILVELDG"


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "wt.fa"
    path.write_text(f">gfp_like\n{WILDTYPE}\n")
    return path


def read(folder: Path, text: str, wildtype: Path | None = None, **options) -> VariantTable:
    path = folder / "v.csv"
    path.write_text(text)
    return read_variants(path, wildtype, **options)


def mutants(table: VariantTable) -> list[str | None]:
    return [row.variant.sequence if row.variant else None for row in table.rows]


S2G = "MG" + WILDTYPE[2:]
K3R = "MSR" + WILDTYPE[3:]
INSERTED = WILDTYPE[:10] + "G" + WILDTYPE[10:]


@pytest.mark.parametrize(
    "text",
    [
        "mutant,DMS_score\nS2G,0.5\nK3R,0.9\n",
        "mutant\tDMS_score\nS2G\t0.5\nK3R\t0.9\n",
        "\ufeffmutant;DMS_score\r\nS2G;0,5\r\nK3R;0,9\r\n",
        "Mutant,Mutated_Sequence\nS2G,\nK3R,\n",
        f"mutated_sequence,DMS_score\n{S2G},0.3\n{K3R},-0.4\n",
        f"mutant,mutated_sequence\n{S2G},{S2G}\n{K3R},{K3R}\n",
        f"mutant,mutated_sequence\n,{S2G}\nK3R,{K3R}\n",
    ],
)
def test_layouts_of_one_content(text: str, tmp_path, fasta) -> None:
    table = read(tmp_path, text, fasta)
    assert mutants(table) == [S2G, K3R] and not table.hint
    assert [row.variant.positions for row in table.rows if row.variant] == [(1,), (2,)]


def test_insertions_and_deletions_by_sequence_or_by_name(tmp_path, fasta) -> None:
    sequences = [INSERTED, WILDTYPE[:8] + WILDTYPE[9:], WILDTYPE]
    rows = "\n".join(f"{s},{s},1" for s in sequences)  # as ProteinGym writes them
    table = read(tmp_path, f"mutant,mutated_sequence,DMS_score\n{rows}\n", fasta)
    assert mutants(table) == sequences
    assert [row.variant.is_indel for row in table.rows if row.variant] == [True, True, False]
    assert mutants(read(tmp_path, "mutated_sequence\n" + "\n".join(sequences), fasta)) == sequences
    table = read(tmp_path, "mutant\nG10dup\nT9del\nWT\nT9del:G10_V11insA\n", fasta)
    assert mutants(table)[:3] == sequences
    assert table.rows[3].variant and table.rows[3].variant.is_indel  # of one length, but moved


def test_mutations_and_sequences_that_disagree(tmp_path, fasta) -> None:
    text = (
        f"mutant,mutated_sequence\nS2G,{K3R}\nS2G,{INSERTED}\nS2G,{S2G[:-1]}E\n{INSERTED},{S2G}\n"
    )
    table = read(tmp_path, text + f"WT,{S2G}\nS2G,{S2G}\n", fasta)
    assert mutants(table) == [None] * 5 + [S2G]
    for row, message in zip(
        table.rows,
        (
            "has S at position 2, where wild type and mutations give G",
            "has 21 residues, but wild type and mutations give 20",
            "has E at position 20, where wild type and mutations give G",
            "mutant and mutated_sequence differ",
            "has G at position 2, where wild type and mutations give S",
        ),
        strict=False,
    ):
        assert message in row.error


def test_other_names_of_columns_are_asked_for(tmp_path, fasta) -> None:
    text = "mutation,fitness\nS2G,0.5\nK3R,0.9\n"
    with pytest.raises(ProtlmError) as error:
        read(tmp_path, text, fasta)
    for part in ("'mutation', 'fitness'", "--columns mutant=mutation", "'mutated_sequence'"):
        assert part in str(error.value)
    columns = parse_columns("mutant=Mutation, dms_score = fitness")
    table = read(tmp_path, text, fasta, columns=columns)
    assert table.roles == {"mutant": "mutation", "DMS_score": "fitness"}
    assert mutants(table) == [S2G, K3R]
    table = read(tmp_path, f"sequence\n{S2G}\n", fasta, columns={"mutated_sequence": "sequence"})
    assert mutants(table) == [S2G] and table.roles == {"mutated_sequence": "sequence"}
    with pytest.raises(ProtlmError, match="no column 'x' for mutant; it has 'mutation', 'fitness'"):
        read(tmp_path, text, fasta, columns={"mutant": "x"})
    for wrong in ("mutant", "mutant=", "name=x", "mutant=a,mutant=b"):
        with pytest.raises(ProtlmError, match="ROLE=COLUMN"):
            parse_columns(wrong)


def test_a_bad_row_is_one_row(tmp_path, fasta) -> None:
    digits, long = "A" + "1" * 5000 + "G", "K" * 140_000
    text = f"mutant,note\n{digits},a\nS2G,{long}\n{long},b\nS2G\nS2G,1,2\nK3R,c\n"
    table = read(tmp_path, text, fasta)
    assert mutants(table) == [None, S2G, None, None, None, K3R]
    errors = {row.line: row.error for row in table.rows if row.error}
    assert list(errors) == [2, 4, 5, 6] and max(map(len, errors.values())) < 300
    assert "5,000 digits" in errors[2] and "no mutation" in errors[4]
    assert "1 cells under 2 columns" in errors[5] and "3 cells under 2 columns" in errors[6]


def test_missing_cells_are_no_residues(tmp_path, fasta) -> None:
    table = read(tmp_path, "mutant,mutated_sequence\nS2G,NA\n,NaN\nNA,\n", fasta)
    assert mutants(table) == [S2G, None, None]
    assert "neither mutations nor a mutated sequence" in table.rows[1].error
    assert "'NA' is no mutation" in table.rows[2].error
    table = read(tmp_path, f"mutant,sequence\nS2G,NAN\n,{WILDTYPE}\n")
    assert "no residues" in table.rows[0].error and mutants(table)[1] == WILDTYPE


def test_an_offset_is_found_and_never_applied(tmp_path, fasta) -> None:
    text = "mutant\nS240G\nK241R\nS240G:K241R\nWT\n"
    table = read(tmp_path, text, fasta)
    assert mutants(table) == [None, None, None, WILDTYPE]
    assert "all 4 variants match the wild type at offset -238" in table.hint
    assert "pass --offset -238" in table.hint and "position 240 is outside" in table.rows[0].error
    table = read(tmp_path, text, fasta, offset=-238)
    assert mutants(table)[:2] == [S2G, K3R] and not table.hint
    assert "--offset -238" in read(tmp_path, text, fasta, offset=-10).hint
    for several in ("mutant\nG240A\n", "mutant\nS240G\nK242R\n", "mutant\nS2G\nW3R\n"):
        assert not read(tmp_path, several, fasta).hint
    away = read(tmp_path, "mutant\nS-2G\nK-1R\n", fasta)
    assert "pass --offset 4" in away.hint and "position -2 is outside" in away.rows[0].error


def test_columns_of_wild_types_are_read_or_not_named(tmp_path, fasta) -> None:
    text = f"mutant,wildtype,sequence\nS2G,b,{WILDTYPE}\nS2G,c,\n"
    assert read(tmp_path, text, fasta).roles == {"mutant": "mutant"}
    two = tmp_path / "two.fa"
    two.write_text(f">a\n{WILDTYPE[::-1]}\n>b\n{WILDTYPE}\n")
    table = read(tmp_path, text, two)
    assert table.roles == {"mutant": "mutant", "wildtype": "wildtype"}
    assert mutants(table) == [S2G, None] and "no wild type 'c'" in table.rows[1].error
    with pytest.raises(ProtlmError, match="needs a column 'wildtype'"):
        read(tmp_path, "mutant\nS2G\n", two)


def test_two_assays_in_one_file_are_two_wild_types(tmp_path) -> None:
    """One row of the larger one names a residue that its other rows do not have there."""
    other, wrong = WILDTYPE[::-1], WILDTYPE[:3] + "A" + WILDTYPE[4:]
    lines = [f"S2G,{S2G}", f"K3R,{K3R}", f"G1M,M{other[1:]}", f"W4A,{wrong}"]
    table = read(tmp_path, "mutant,mutated_sequence\n" + "\n".join(lines))
    found = [row.variant.wildtype if row.variant else None for row in table.rows]
    assert found == [WILDTYPE, WILDTYPE, other, None]
    assert "expected W at position 4 of the wild type, found G" in table.rows[3].error


def test_what_the_wild_type_is_must_be_said(tmp_path) -> None:
    for text in ("mutant\nS2G\n", f"mutated_sequence\n{S2G}\n"):
        with pytest.raises(ProtlmError, match="--wildtype wt.fasta"):
            read(tmp_path, text)
    table = read(tmp_path, f"mutant,mutated_sequence\nS2G,{S2G}\nS2del,{S2G}\n,{S2G}\nS2G,\n")
    assert mutants(table) == [S2G, None, None, None]
    assert table.rows[0].variant and table.rows[0].variant.wildtype == WILDTYPE
    assert all("--wildtype" in row.error for row in table.rows[1:3])
