"""The verb: from the user's table to a folder that the other verb reads."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from probe_benchmarks import benchmark
from zoo import loaded

from protlm_jax import cli, huggingface
from protlm_jax.evaluation import maps, results


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The made-up proteins as a user's table, and a model for any path."""
    monkeypatch.setattr(huggingface, "load_model", lambda *_: loaded("bert"))
    file = tmp_path / "mine.csv"
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["id", "sequence", "split", "where", "kcat/Km"])
        for split in ("train", "valid", "test"):
            for p in benchmark("protein").splits[split]():
                where, share = (p.labels[name].item() for name in ("where", "share"))
                rows.writerow([p.id, p.sequence, split, "abc"[where], share])
    return file


def test_writes_all_that_it_says(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(maps, "draw", lambda *a, **k: drawn.append(a) or {})
    folder, fasta = tmp_path / "out", tmp_path / "new.fasta"
    arguments = ["--model", "m", "--input", str(table), "--heads", "linear", "--layers", "0,2"]
    assert cli.main(["probe", *arguments, "--seeds", "1", "--output", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "where, linear head, accuracy in percent" in text and "train: 60 proteins" in text
    assert text.startswith(
        "Columns: sequences from 'sequence', names from 'id', split from 'split'"
    )
    assert "and stay in memory" in text
    result = results.read(folder / "results.nc")
    assert result["layer"].values.tolist() == [0, 2] and result["head"].values == ["linear"]
    assert "model: linear head trained in" in text  # in a log, too
    assert (folder / "scores.csv").read_text().startswith("head,input,")
    assert "</html>" in (folder / "report.html").read_text()
    assert not drawn and not (folder / "maps").exists()
    fasta.write_text(">p\nMKKRRDD\n")
    more = ["--input", str(fasta), "--output", str(tmp_path / "new.csv")]
    assert cli.main(["predict", "--model", "m", "--probe", str(folder), *more]) == 0
    rows = (tmp_path / "new.csv").read_text().splitlines()
    where = "where,where probability,where: a,where: b,where: c"
    assert rows[0] == f"id,residues,{where},kcat/Km,error"
    assert 0 < float(rows[1].split(",")[-2]) < 1
    assert rows[1].startswith("p,7,")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "l.fasta"], "belong to a FASTA file"),
        (["--targets", "where"], "belong to a table"),
        (["--benchmark", "folding"], "no benchmark 'folding'"),
        (["--benchmark", "contacts", "--heads", "linear"], "leave out --heads"),
        (["--heads", "mlp"], "no head 'mlp'"),
        (["--maps"], "name it with --output"),
        (["--benchmark", "stability"], "stability"),
    ],
)
def test_what_cannot_be_is_one_line(
    table: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["probe", "--model", "m", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize("layers", ["first", "0;1"])
def test_layers_are_words_or_numbers(layers: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["probe", "--model", "m", "--layers", layers])
    assert stopped.value.code == 2
    assert "write last, all, or numbers" in capsys.readouterr().err
