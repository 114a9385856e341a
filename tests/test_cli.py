"""The command: what it imports, what it refuses, and how it ends."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import types

import pytest

from protlm_jax import cli, huggingface
from protlm_jax.errors import ProtlmError

HEAVY = ("jax", "flax", "tensorflow", "seqio", "torch", "transformers", "numpy", "ml_collections")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["depth", "--nonsense"]]
)
def test_help_and_refusals_import_nothing_heavy(arguments: list[str]) -> None:
    done = python(
        "import sys, protlm_jax.cli\n"
        f"try: protlm_jax.cli.main({arguments!r})\n"
        "except SystemExit: pass\n"
        f"print('heavy', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy []"


def test_help_names_every_verb(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n    {verb}" in text for verb in cli._verbs())


def test_help_says_that_a_config_file_is_run(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "the file is Python code that is executed" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: verb"),
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--config", "configs/tiny.py"], "required: --workdir"),
        (["train", "--config", "c.py", "--workdir", "w", "--steps=5"], "arguments: --steps=5"),
        (["train", "--config", "c.py", "--workdir", "w", "extra"], "arguments: extra"),
        (["depth", "--model", "m", "--config.train.steps=5"], "arguments: --config.train.steps=5"),
        (["depth", "--model", "m", "--proteins", "few"], "'few' is not a positive number"),
        (["depth", "--model", "m", "--proteins=-1"], "'-1' is not a positive number"),
        (["probe", "--model", "m", "--train_proteins", "0"], "'0' is not a positive number"),
        (["quickstart", "gpt"], "invalid choice: 'gpt'"),
    ],
)
def test_unknown_arguments_end_with_code_2(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/none.py"], "config file configs/none.py does not exist"),
        (["--config", "configs/tiny.py:big"], "has the variants bert, "),
        (["--config", "configs/tiny.py:bert", "--config.train.step=5"], "did you mean train.steps"),
        (["--config", "configs/tiny.py:bert", "--config.train.steps=x"], "must be of type int"),
        (
            ["--config", "configs/tiny.py:bert", "--config.data.fasta=/no/such.fasta"],
            "/no/such.fasta",
        ),
    ],
)
def test_an_error_of_the_user_is_one_line_and_code_1(
    arguments: list[str], message: str, tmp_path, capfd
) -> None:
    assert cli.main(["train", "--workdir", str(tmp_path / "run"), *arguments]) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last


@pytest.mark.parametrize("verb", ["evaluate", "probe", "depth", "export", "import"])
def test_a_model_that_is_not_there_is_one_line_and_code_1(verb: str, tmp_path, capsys) -> None:
    output = ["--output", str(tmp_path / "out")] if verb in ("export", "import") else []
    assert cli.main([verb, "--model", str(tmp_path / "none"), *output]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "none" in error
    assert "Traceback" not in error and not (tmp_path / "out").exists()


def test_the_process_ends_with_the_code_and_no_traceback(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "protlm_jax.cli", "train"]
        + ["--config", "configs/none.py", "--workdir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: config file") and "Traceback" not in done.stderr


def test_json_in_place_of_a_summary_is_all_that_is_printed(tmp_path, capsys) -> None:
    given = argparse.Namespace(json=True, output=tmp_path / "out.json")
    cli._finish({"summary": "good", "loss": 2.5}, given)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads(given.output.read_text()) == {"loss": 2.5}
    assert printed.err.startswith("wrote ")


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys, tmp_path) -> None:
    def interrupted(path: str) -> types.NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface, "load_model", interrupted)
    assert cli.main(["export", "--model", "m", "--output", str(tmp_path / "o")]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_faults_of_the_program_are_not_hidden(monkeypatch, tmp_path) -> None:
    """Errors that the user cannot fix keep their traceback."""

    def broken(path: str) -> types.NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr(huggingface, "load_model", broken)
    assert not issubclass(RuntimeError, ProtlmError)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["export", "--model", "m", "--output", str(tmp_path / "o")])
