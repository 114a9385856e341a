"""`protlm score` as a command, on what people of the field have, and on trained weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scored import GFP_LIKE, WILDTYPE, effect, rows_of, write
from zoo import loaded

from protlm_jax import cli, huggingface
from protlm_jax.evaluation import verbs
from protlm_jax.evaluation.scoring.files import score_file
from protlm_jax.huggingface import export


@pytest.mark.parametrize(("text", "code"), [(">P1\nMKT\n", 0), (">P1\nMKT\n>P2\nM1\n", 3)])
def test_the_command_ends_with_what_was_done(text: str, code: int, tmp_path, capsys) -> None:
    folder = export(loaded("bert"), tmp_path / "hf")
    path, output = write(tmp_path, text, "x.fasta"), tmp_path / "s.csv"
    command = ["score", "--model", str(folder), "--input", str(path), "--output", str(output)]
    assert cli.main(command) == code
    assert f"wrote {output}" in capsys.readouterr().out
    assert len(rows_of(output)) == text.count(">")


LONG = Path(__file__).parents[2] / "data" / "files" / "long.fasta"
WEIGHTS = Path(os.environ.get("PROTLM_WEIGHTS", "")) / "esm2_t6_8M"
needs_weights = pytest.mark.skipif(
    not (os.environ.get("PROTLM_WEIGHTS") and WEIGHTS.is_dir()),
    reason="set PROTLM_WEIGHTS to a folder with trained weights in esm2_t6_8M/",
)


def test_a_numbering_of_the_whole_protein_needs_its_offset(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(huggingface, "load_model", lambda *_: loaded("bert"))
    table, output = write(tmp_path, "mutant\nK240R\nA242G\n", "v.csv"), tmp_path / "s.csv"
    wildtype = write(tmp_path, f">construct\n{WILDTYPE}\n", "wt.fa")
    command = ["score", "--model", "m", "--input", str(table), "--wildtype", str(wildtype)]
    assert cli.main([*command, "--output", str(output)]) == 3
    assert "pass --offset -238" in capsys.readouterr().out
    assert cli.main([*command, "--output", str(output), "--offset", "-238"]) == 0
    scores = [float(row["score"]) for row in rows_of(output)]
    assert scores == pytest.approx([effect("K2R"), effect("A4G")], abs=1e-5)


@needs_weights
def test_trained_weights_give_the_values_of_the_field(tmp_path) -> None:
    """Computed with transformers and torch on the same weights."""
    model = huggingface.load_model(str(WEIGHTS))
    wildtype = write(tmp_path, f">gfp_like\n{GFP_LIKE}\n", "wt.fa")
    table, output = write(tmp_path, "mutant\nS2G:K3R\nS2G\nK3R\n", "v.csv"), tmp_path / "s.csv"
    expected = {"masked-marginals": -0.617341, "masked-marginals-additive": -0.123531}
    for strategy, value in expected.items():
        score_file(model, table, output, wildtype=wildtype, strategy=strategy)
        scores = [float(row["score"]) for row in rows_of(output)]
        assert scores == pytest.approx([value, 0.295674, -0.419205], abs=1e-4)
    insertion, deletion = ("MSKGEELFTGGGVV" + GFP_LIKE[12:], GFP_LIKE[:20] + GFP_LIKE[23:])
    table = write(tmp_path, f"mutated_sequence\n{insertion}\n{deletion}\n{GFP_LIKE}\n", "i.csv")
    score_file(model, table, output, wildtype=wildtype)
    scores = [float(row["score"]) for row in rows_of(output)]
    assert scores == pytest.approx([-4.363616, 6.305777, 0.0], abs=1e-3)
    table = write(tmp_path, "mutant\nF1A\nD701A\nN1500A\nF1A:N1500A\n", "long.csv")
    score_file(model, table, output, wildtype=LONG, length=verbs.row_of(model))  # 1,022 residues
    scores = [float(row["score"]) for row in rows_of(output)]
    assert scores[:3] == pytest.approx([1.02807, 0.64098, 0.06134], abs=1e-4)
    assert scores[3] == pytest.approx(1.02807 + 0.06134, abs=1e-4)  # two windows


@needs_weights
@pytest.mark.slow
def test_a_long_protein_is_read_as_a_whole_where_asked(tmp_path) -> None:
    """1,500 residues in one window, as transformers reads them; ESM-2 was trained on 1,022."""
    table, output = write(tmp_path, "mutant\nF1A\nD701A\nN1500A\n", "v.csv"), tmp_path / "s.csv"
    command = ["score", "--model", str(WEIGHTS), "--input", str(table), "--wildtype", str(LONG)]
    assert cli.main([*command, "--window", "1502", "--output", str(output)]) == 0
    scores = [float(row["score"]) for row in rows_of(output)]
    assert scores == pytest.approx([0.49790, 0.90736, -0.22858], abs=1e-4)


def test_the_command_says_what_it_cannot_do(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(huggingface, "load_model", lambda *_: loaded("t5"))
    path = write(tmp_path, f"mutant,sequence\nK2R,{WILDTYPE}\n", "v.csv")
    command = ["score", "--model", "m", "--input", str(path), "--output", str(tmp_path / "s.csv")]
    assert cli.main([*command, "--strategy", "wildtype-marginals"]) == 1
    error = capsys.readouterr().err
    assert "wildtype-marginals is not defined" in error and "masked-marginals" in error
    assert cli.main([*command, "--columns", "mutation"]) == 1
    assert "ROLE=COLUMN" in capsys.readouterr().err
