"""`protlm score` from file to file: every record answered, in order, with a reason where not."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from zoo import loaded

from protlm_jax import cli, huggingface
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.score import likelihoods
from protlm_jax.evaluation.score_files import score_file
from protlm_jax.evaluation.variants import Variant, effects, parse_substitutions
from protlm_jax.huggingface import export

WILDTYPE = "MKTAYIAKQRQISFVKSHFSRQ"


def write(folder: Path, text: str, name: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def effect(text: str, wildtype: str = WILDTYPE, family: str = "bert") -> float:
    return float(effects(loaded(family), [Variant(wildtype, parse_substitutions(text))])[0])


PROTEINS = (
    """\
>P1 first
MKTAYIAKQR
>P2
MKJA
>P1 the same name again
MKT U
>P3
>P4
XXX
>
MKT
>P5
"""
    + "MKTAYIAKQR\n" * 10
)


def test_every_protein_is_answered_in_order(tmp_path) -> None:
    path, output = write(tmp_path, PROTEINS, "x.fasta"), tmp_path / "new" / "scores.csv"
    outcome = score_file(loaded("bert"), path, output)
    rows = rows_of(output)
    assert [row["id"] for row in rows] == ["P1", "P2", "P1", "P3", "P4", "", "P5"]
    assert outcome.failed == 4
    errors = {i: row["error"] for i, row in enumerate(rows) if row["error"]}
    assert list(errors) == [1, 3, 4, 5]
    assert "position 3: 'J'" in errors[1] and "no sequence" in errors[3]
    assert "no standard amino acid" in errors[4] and "without a name" in errors[5]
    good = [row for row in rows if not row["error"]]
    expected = likelihoods(loaded("bert"), ["MKTAYIAKQR", "MKTX", "MKTAYIAKQR" * 10])
    for row, score in zip(good, expected, strict=True):
        assert int(row["length"]) == len(score.log_probabilities)
        assert int(row["scored"]) == score.scored
        assert float(row["log_likelihood"]) == pytest.approx(score.total, abs=1e-4)
        assert float(row["mean_log_likelihood"]) == pytest.approx(score.mean, abs=1e-5)
        assert float(row["perplexity"]) == pytest.approx(score.perplexity, rel=1e-5)
        assert (row["method"], row["softmax"]) == ("masked pseudo-likelihood", "residues")
    assert [row["window"] for row in good] == ["10", "4", "62"]
    assert [row["scored"] for row in good] == ["10", "3", "100"]
    for part in (
        "3 of 7 proteins scored, 113 residues",
        "1 longer than 62 residues",
        "P5 (100)",
        "4 not scored",
        "line 3, P2:",
        "softmax over the 20 amino acids",
    ):
        assert part in outcome.summary


def test_t5_says_what_its_numbers_are(tmp_path) -> None:
    path = write(tmp_path, ">P1\nMKTAYIAKQR\n", "x.fasta")
    outcome = score_file(loaded("t5"), path, tmp_path / "s.csv", softmax="vocabulary")
    assert "not comparable with pseudo-perplexity" in outcome.summary and outcome.failed == 0
    (row,) = rows_of(tmp_path / "s.csv")
    assert (row["method"], row["softmax"]) == ("denoising likelihood", "vocabulary")


def test_proteingym_files_work_as_they_are(tmp_path) -> None:
    mutants = {"K2R": 0.5, "A4W": -1.25, "T3S:A7L": 0.1, "Y5F": "", "Q22E": 2.0}
    lines = ["mutant,mutated_sequence,DMS_score,DMS_score_bin"]
    for mutant, measured in mutants.items():
        sequence = Variant(WILDTYPE, parse_substitutions(mutant)).sequence
        lines.append(f"{mutant},{sequence},{measured},1")
    lines.append(f"G4A,{WILDTYPE},0.3,0")  # A at position 4, as the other rows have it
    lines.append(f"A4G,{WILDTYPE},0.3,0")  # the sequence is not mutated
    path = tmp_path / "assay.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    outcome = score_file(loaded("bert"), path, tmp_path / "s.csv")
    rows = rows_of(tmp_path / "s.csv")
    assert list(rows[0]) == [*lines[0].split(","), "score", "method", "error"]
    scores = [effect(mutant) for mutant in mutants]
    assert [float(row["score"]) for row in rows[:5]] == pytest.approx(scores, abs=1e-5)
    assert outcome.failed == 2 and all(row["score"] == "" for row in rows[5:])
    assert "expected G at position 4 of the wild type, found A" in rows[5]["error"]
    assert "expected G at position 4 of the mutated sequence, found A" in rows[6]["error"]
    ranks = np.argsort(np.argsort(scores[:3] + scores[4:]))
    rho = np.corrcoef(ranks, [2, 0, 1, 3])[0, 1]
    assert f"Spearman with DMS_score: {rho:+.4f} (4 variants of MKTAYIAKQRQI" in outcome.summary
    assert "line 7: G4A" in outcome.summary


def test_two_assays_in_one_file_are_two_wild_types(tmp_path) -> None:
    other = WILDTYPE[::-1]
    pairs = [("K2R", WILDTYPE), ("A4W", WILDTYPE), ("Q1E", other)]
    lines = [f"{m},{Variant(w, parse_substitutions(m)).sequence}" for m, w in pairs]
    path = write(tmp_path, "mutant,mutated_sequence\n" + "\n".join(lines), "v.csv")
    outcome = score_file(loaded("bert"), path, tmp_path / "s.csv")
    assert outcome.failed == 0 and "3 variants of 2 wild type(s)" in outcome.summary
    scores = [float(row["score"]) for row in rows_of(tmp_path / "s.csv")]
    assert scores == pytest.approx([effect(m, w) for m, w in pairs], abs=1e-5)


def test_wild_types_from_a_column(tmp_path) -> None:
    text = (
        "name,mutant,sequence,comment\n"
        f'a,K2R,{WILDTYPE},"keeps, commas"\n'
        f"b,A1G,{WILDTYPE},\n"
        f"c,K2R:A4W,{WILDTYPE.lower()},\n"
        f"d,A42del,{WILDTYPE},\n"
        "e,K2R,MK*T,\n"
        "f,K2R\n"
    )
    path = write(tmp_path, text, "v.csv")
    outcome = score_file(loaded("bert"), path, tmp_path / "s.csv", strategy="wildtype-marginals")
    rows = rows_of(tmp_path / "s.csv")
    assert rows[0]["comment"] == "keeps, commas"
    assert [bool(row["error"]) for row in rows] == [False, True, False, True, True, True]
    assert "A1G: expected A at position 1 of the wild type, found M" in rows[1]["error"]
    assert "insertions" in rows[3]["error"] and "position 3" in rows[4]["error"]
    assert "2 fields, but the header has 4" in rows[5]["error"] and rows[5]["name"] == "f"
    assert {row["method"] for row in rows} == {"wildtype-marginals"} and outcome.failed == 4


def test_wild_types_from_a_fasta_file(tmp_path) -> None:
    one = write(tmp_path, f">WT\n{WILDTYPE}\n", "one.fasta")
    path = write(tmp_path, "mutant,mutated_sequence\nK2R,\nK2R,MRTAYIAKQRQISFVKSHFSRA\n", "v.csv")
    outcome = score_file(loaded("bert"), path, tmp_path / "s.csv", wildtype=one)
    rows = rows_of(tmp_path / "s.csv")
    assert outcome.failed == 2 and "no residues" in rows[0]["error"]
    assert "has A at position 22, where wild type and mutations give Q" in rows[1]["error"]
    two = write(tmp_path, f">a\n{WILDTYPE}\n>b\n{WILDTYPE[::-1]}\n", "two.fasta")
    path = write(tmp_path, "mutant,wildtype\nK2R,a\nQ1E,b\nQ1E,c\n", "w.csv")
    outcome = score_file(loaded("bert"), path, tmp_path / "s.csv", wildtype=two)
    rows = rows_of(tmp_path / "s.csv")
    assert float(rows[1]["score"]) == pytest.approx(effect("Q1E", WILDTYPE[::-1]), abs=1e-5)
    assert outcome.failed == 1 and "'c'" in rows[2]["error"]
    with pytest.raises(ProtlmError, match="needs a column 'wildtype'"):
        score_file(
            loaded("bert"), write(tmp_path, "mutant\nK2R\n", "n.csv"), tmp_path / "o", wildtype=two
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mutant\nK2R\n", "--wildtype wt.fasta"),
        ("mutation,sequence\nK2R,MK\n", "has a column 'mutant'; found 'mutation,sequence'"),
        ("mutant,sequence,sequence\nK2R,MK,MK\n", "names each column once"),
        ("MKTAYIAKQR\n", "first line '>name'"),
        ("mutant,sequence\n", "no variants"),
        ("mutant,sequence,score\nK2R,MK,1\n", "a column 'score' already"),
        ("\n\n", "no table"),
    ],
)
def test_files_that_are_no_table(text: str, message: str, tmp_path) -> None:
    path = write(tmp_path, text, "v.csv")
    with pytest.raises(ProtlmError) as error:
        score_file(loaded("bert"), path, tmp_path / "s.csv")
    assert message in str(error.value) and not (tmp_path / "s.csv").exists()


def test_places_that_take_no_file_are_refused_first(tmp_path) -> None:
    path = write(tmp_path, ">P1\nMKT\n", "x.fasta")
    for output in (tmp_path, path):
        with pytest.raises(ProtlmError, match="cannot write"):
            score_file(loaded("bert"), path, output)
    assert path.read_text() == ">P1\nMKT\n"
    with pytest.raises(ProtlmError, match="for variants"):
        score_file(loaded("bert"), path, tmp_path / "s.csv", strategy="masked-marginals")


@pytest.mark.parametrize(("text", "code"), [(">P1\nMKT\n", 0), (">P1\nMKT\n>P2\nM1\n", 3)])
def test_the_command_ends_with_what_was_done(text: str, code: int, tmp_path, capsys) -> None:
    folder = export(loaded("bert"), tmp_path / "hf")
    path, output = write(tmp_path, text, "x.fasta"), tmp_path / "s.csv"
    command = ["score", "--model", str(folder), "--input", str(path), "--output", str(output)]
    assert cli.main(command) == code
    assert f"wrote {output}" in capsys.readouterr().out
    assert len(rows_of(output)) == text.count(">")


def test_the_command_says_what_it_cannot_do(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(huggingface, "load_model", lambda path: loaded("t5"))
    path = write(tmp_path, f"mutant,sequence\nK2R,{WILDTYPE}\n", "v.csv")
    command = ["score", "--model", "m", "--input", str(path), "--output", str(tmp_path / "s.csv")]
    assert cli.main([*command, "--strategy", "wildtype-marginals"]) == 1
    error = capsys.readouterr().err
    assert "wildtype-marginals is not defined" in error and "masked-marginals" in error
