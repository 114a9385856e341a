"""The command: what it asks for, what it says, and how it ends."""

from __future__ import annotations

from typing import get_args

import pytest

from protlm_jax import cli
from protlm_jax.data.prepare import plan, verb
from protlm_jax.data.prepared import Prepared

from .conftest import proteins, to_fasta


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "mine.fasta"
    path.write_bytes(to_fasta(proteins(3)))
    return path


def command(fasta, output, *more: str) -> list[str]:
    asked = ["prepare", "--dataset", "fasta", "--input", str(fasta), "--output", str(output)]
    return [*asked, "--tokens", "--workers", "1", *more]


def test_the_datasets_are_those_of_the_plan():
    assert get_args(plan.Dataset) == verb.DATASETS


def test_it_prepares_and_says_what(fasta, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(command(fasta, out, "--max_length", "50", "--heldout_percent", "10")) == 0
    prepared = Prepared.open(out)
    text = capsys.readouterr().out
    assert f"{prepared.splits['train'].proteins:,} proteins to train on" in text
    assert "left out, too_long: " in text and prepared.splits["train"].longest == 50
    assert prepared.manifest["rules"]["split"]["percent"] == 10.0
    assert cli.main(command(fasta, out, "--max_length", "50", "--heldout_percent", "10")) == 0
    assert cli.main(command(fasta, out)) == 1
    assert "was begun with another rules" in capsys.readouterr().err


def test_dropped_records_are_said_and_end_with_code_3(fasta, tmp_path, capsys):
    fasta.write_bytes(fasta.read_bytes() + b">odd one\nMK*V\n")
    assert cli.main(command(fasta, tmp_path / "a")) == 1
    assert "'odd', position 3: '*' is not an amino acid" in capsys.readouterr().err
    assert cli.main(command(fasta, tmp_path / "b", "--bad_records", "drop")) == 3
    assert "left out, bad_record: 1 (odd)" in capsys.readouterr().out


def test_a_dry_run_tells_what_comes_and_makes_nothing(fasta, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(command(fasta, out, "--dry_run", "--keep_duplicates")) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert not out.exists()
    assert cli.main(command(fasta, out, "--keep_duplicates")) == 0
    prepared = Prepared.open(out)  # the sample was the whole file, so the numbers are exact
    train, heldout = prepared.splits["train"], prepared.splits["heldout"]
    expected = f"about {train.proteins:,} to train on, about {heldout.proteins:,} held out"
    assert lines["proteins"] == expected
    size = sum(shard.bytes for split in (train, heldout) for shard in split.tokens)
    assert lines["output"].endswith(f"tokens {size / 1000:.3g} kB")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--workers", "0"], "workers is 0"),
        (["--input", "/no/such.fasta"], "/no/such.fasta"),
        (["--dataset", "uniref50"], "which release of uniref50"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_code_1(fasta, tmp_path, capsys, change, message):
    assert cli.main([*command(fasta, tmp_path / "out"), *change]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
