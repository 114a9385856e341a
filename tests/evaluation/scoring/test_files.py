"""`protlm score` from file to file: every record answered, in order, with a reason where not."""

from __future__ import annotations

import dataclasses
import gzip
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from scored import GFP_LIKE, WILDTYPE, effect, rows_of, variant, write
from zoo import loaded

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import parts
from protlm_jax.evaluation.scoring import files
from protlm_jax.evaluation.scoring.files import score_file
from protlm_jax.evaluation.scoring.score import likelihoods

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
        sequence = variant(mutant).sequence
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


def test_missing_measurements_take_no_part_in_the_correlation(tmp_path) -> None:
    cells = {"S2G": "0.5", "K3R": "", "S2G:K3R": "NaN", "L60P": "-1.0", "G4A": "NA", "E5D": "0.2",
             "E6K": "inf"}  # fmt: skip
    lines = [f"{m},{variant(m, GFP_LIKE).sequence},{cell}" for m, cell in cells.items()]
    path = write(tmp_path, "mutant,mutated_sequence,DMS_score\n" + "\n".join(lines), "nan.csv")
    outcome = score_file(loaded("bert"), path, tmp_path / "s.csv")
    rows = rows_of(tmp_path / "s.csv")
    assert outcome.failed == 0 and all(row["score"] for row in rows)
    assert [row["DMS_score"] for row in rows] == list(cells.values())
    assert "(3 variants of MSKGEELF" in outcome.summary


def test_wild_types_from_a_column(tmp_path) -> None:
    text = (
        "name,mutant,sequence,comment\n"
        f'a,K2R,{WILDTYPE},"keeps, commas"\n'
        f"b,A1G,{WILDTYPE},\n"
        f"c,K2R:A4W,{WILDTYPE.lower()},\n"
        f"d,A42fs,{WILDTYPE},\n"
        "e,K2R,MK*T,\n"
        "f,K2R\n"
    )
    path = write(tmp_path, text, "v.csv")
    outcome = score_file(loaded("bert"), path, tmp_path / "s.csv", strategy="wildtype-marginals")
    rows = rows_of(tmp_path / "s.csv")
    assert rows[0]["comment"] == "keeps, commas"
    assert [bool(row["error"]) for row in rows] == [False, True, False, True, True, True]
    assert "A1G: expected A at position 1 of the wild type, found M" in rows[1]["error"]
    assert "frameshifts" in rows[3]["error"] and "position 3" in rows[4]["error"]
    assert "2 cells under 4 columns" in rows[5]["error"] and rows[5]["name"] == "f"
    assert {row["method"] for row in rows} == {"wildtype-marginals"} and outcome.failed == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mutant\nK2R\n", "--wildtype wt.fasta"),
        ("mutation,sequence\nK2R,MK\n", "--columns mutant=mutation"),
        ("mutant,sequence,sequence\nK2R,MK,MK\n", "two columns are called 'sequence'"),
        ("MKTAYIAKQR\n", "no rows"),
        ("MKTAYIAKQR\nMKT\n", "first line '>name'"),
        ("mutant,sequence\n", "no rows"),
        ("mutant,sequence,score,protlm_score\nK2R,MK,1,2\n", "a column 'protlm_score'"),
        ("\n\n", "no table"),
    ],
)
def test_files_that_are_no_table(text: str, message: str, tmp_path) -> None:
    path = write(tmp_path, text, "v.csv")
    with pytest.raises(ProtlmError) as error:
        score_file(loaded("bert"), path, tmp_path / "s.csv")
    assert message in str(error.value) and not (tmp_path / "s.csv").exists()


def test_substitutions_and_indels_in_one_file_are_told_apart(tmp_path) -> None:
    one = write(tmp_path, f">WT\n{WILDTYPE}\n", "one.fasta")
    mutants = {"K2R": 1, "A4G": 3, "T3S": 2, "A4del": 0.5, "K2dup": 0.1, "WT": 1.5}
    text = "mutant,DMS_score\n" + "".join(f"{m},{v}\n" for m, v in mutants.items())
    path = write(tmp_path, text, "v.csv")
    outcome = score_file(loaded("bert"), path, tmp_path / "s.csv", wildtype=one)
    rows = rows_of(tmp_path / "s.csv")
    kinds = ["masked-marginals"] * 3 + ["likelihood-ratio"] * 2 + ["wild type"]
    assert [row["method"] for row in rows] == kinds and outcome.failed == 0
    scores = [effect(mutant) for mutant in mutants]
    assert [float(row["score"]) for row in rows] == pytest.approx(scores, abs=1e-4)
    for part in (
        "scored: masked-marginals and likelihood-ratio",
        "1 without a change",
        "2 with insertions or deletions are on the scale of likelihood-ratio",
        "(4 substitutions of WT (22 residues))",
        "(3 insertions and deletions of WT (22 residues))",
        "likelihood-ratio: masked pseudo-likelihood, summed over residues, softmax over the 20",
    ):
        assert part in outcome.summary
    alike = score_file(
        loaded("bert"), path, tmp_path / "s.csv", wildtype=one, strategy="likelihood-ratio"
    )
    assert "scored: likelihood-ratio" in alike.summary and "(6 variants of" in alike.summary
    assert "do not rank" not in alike.summary


def test_a_table_that_has_a_score_keeps_it(tmp_path) -> None:
    one = write(tmp_path, f">WT\n{WILDTYPE}\n", "one.fasta")
    text = "hgvs_pro,score\np.Lys2Arg,0.5\n_wt,1\n_sy,1\n"  # as MaveDB has them
    columns = {"mutant": "hgvs_pro", "DMS_score": "score"}
    path, output = write(tmp_path, text, "v.csv"), tmp_path / "s.csv"
    outcome = score_file(loaded("bert"), path, output, wildtype=one, columns=columns)
    rows = rows_of(output)
    assert [row["score"] for row in rows] == ["0.5", "1", "1"]
    expected = [effect("K2R"), 0, 0]
    assert [float(row["protlm_score"]) for row in rows] == pytest.approx(expected, abs=1e-5)
    assert "results are in protlm_score, protlm_method, protlm_error" in outcome.summary
    assert "Spearman with score" in outcome.summary and outcome.failed == 0


def test_distant_mutations_are_scored_and_said(tmp_path) -> None:
    one = write(tmp_path, f">WT\n{WILDTYPE * 4}\n", "one.fasta")
    path = write(tmp_path, "mutant\nK2R\nQ88E\nK2R:Q88E\nK2R:A4G\n", "v.csv")
    outcome = score_file(loaded("bert"), path, tmp_path / "s.csv", wildtype=one, length=22)
    rows = rows_of(tmp_path / "s.csv")
    scores = [float(row["score"]) for row in rows]
    assert scores[2] == pytest.approx(scores[0] + scores[1], abs=1e-5) and outcome.failed == 0
    assert rows[2]["method"] == "masked-marginals in 2 windows"
    assert {rows[i]["method"] for i in (0, 1, 3)} == {"masked-marginals"}
    assert "1 with mutations too far apart for one window" in outcome.summary


def test_causal_models_score_what_fits_them(tmp_path) -> None:
    text = f"mutant,sequence\nK2R,{WILDTYPE}\nK2R,{WILDTYPE * 4}\nA4del,{WILDTYPE}\n"
    outcome = score_file(loaded("gpt2"), write(tmp_path, text, "v.csv"), tmp_path / "s.csv")
    rows = rows_of(tmp_path / "s.csv")
    assert outcome.failed == 1 and "88 residues is longer than" in rows[1]["error"]
    assert float(rows[0]["score"]) == pytest.approx(effect("K2R", family="gpt2"), abs=1e-4)
    assert rows[0]["method"] == rows[2]["method"] == "likelihood-ratio"


@pytest.mark.parametrize("text", [">P1\nMKT\n>P2\nMKXA\n", f"mutant,sequence\nK2R,{WILDTYPE}\n"])
def test_broken_weights_give_no_score(text: str, tmp_path) -> None:
    model = loaded("bert")
    flat = flatten_dict(model.params, sep="/")
    name = next(n for n in flat if n.startswith("encoder/") and n.endswith("kernel"))
    flat[name] = np.array(flat[name])
    flat[name][(1,) + (0,) * (flat[name].ndim - 1)] = np.nan
    broken = dataclasses.replace(model, params=unflatten_dict(flat, sep="/"))
    outcome = score_file(broken, write(tmp_path, text, "x"), tmp_path / "s.csv")
    rows = rows_of(tmp_path / "s.csv")
    assert outcome.failed == len(rows) and "0 of " in outcome.summary
    for row in rows:
        assert f"not finite: the parameter {name} holds 1 number" in row["error"]
        assert "(block 1)" in row["error"] and "nan" not in row.values()


def test_places_that_take_no_file_are_refused_first(tmp_path) -> None:
    path = write(tmp_path, ">P1\nMKT\n", "x.fasta")
    for output in (tmp_path, path, path / "s.csv"):
        with pytest.raises(ProtlmError, match="cannot write"):
            score_file(loaded("bert"), path, output)
    table = write(tmp_path, "mutant\nK2R\n", "v.csv")
    with pytest.raises(ProtlmError, match="cannot write"):
        score_file(loaded("bert"), table, path, wildtype=path)
    assert path.read_text() == ">P1\nMKT\n"
    with pytest.raises(ProtlmError, match=r"cannot read .*missing.fasta: No such file"):
        score_file(loaded("bert"), tmp_path / "missing.fasta", table)
    for options in ({"strategy": "masked-marginals"}, {"offset": 1}, {"columns": {"mutant": "x"}}):
        with pytest.raises(ProtlmError, match="for variants"):
            score_file(loaded("bert"), path, tmp_path / "s.csv", **options)


@pytest.mark.parametrize("what", ["proteins", "variants"])
def test_a_kill_costs_no_more_than_what_was_under_way(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {}
    if what == "proteins":
        path = write(tmp_path, PROTEINS, "x.fasta")
    else:
        path = write(tmp_path, "mutant\nM1A\nK2Q\nbad\nT3V\nA4G\nY5A\n", "x.csv")
        more["wildtype"] = write(tmp_path, f">wt\n{WILDTYPE}\n", "wt.fasta")
    score_file(loaded("bert"), path, tmp_path / "whole.csv", **more)
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    monkeypatch.setattr(files, "_TOGETHER", defaultdict(lambda: 2))
    computed: list[int] = []
    add = parts.Parts.add

    def killed(self: parts.Parts, record: int, *rest: Any) -> None:
        computed.append(record)
        if len(computed) == 3:
            raise KeyboardInterrupt
        add(self, record, *rest)

    output = tmp_path / "again.csv"
    with monkeypatch.context() as held, pytest.raises(KeyboardInterrupt):
        held.setattr(parts.Parts, "add", killed)
        score_file(loaded("bert"), path, output, **more)
    assert not output.exists() and (tmp_path / "again.csv.work" / "part-000000.json").exists()
    with pytest.raises(ProtlmError, match="unfinished work with other settings: softmax was"):
        score_file(loaded("bert"), path, output, softmax="vocabulary", **more)
    before = computed[:2]
    computed.clear()
    monkeypatch.setattr(
        parts.Parts, "add", lambda self, *what: computed.append(what[0]) or add(self, *what)
    )
    score_file(loaded("bert"), path, output, **more)
    assert computed and not set(before) & set(computed)
    for row, whole in zip(rows_of(output), rows_of(tmp_path / "whole.csv"), strict=True):
        for name in whole.keys() & {"score", "log_likelihood", "perplexity"}:
            a, b = (float(r.pop(name) or 0) for r in (row, whole))
            assert a == pytest.approx(b, rel=1e-4)  # other batches
        row.pop("mean_log_likelihood", None), whole.pop("mean_log_likelihood", None)
        assert row == whole
    assert not (tmp_path / "again.csv.work").exists()
