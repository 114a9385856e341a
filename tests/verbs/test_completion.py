"""What bash completes after `protlm completion`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from protlm_jax.cli import main


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("pr", "prepare probe predict prune"),
        ("train --wor", "--workdir"),
        ("train --config prot_t5_xl_b", "prot_t5_xl_bfd"),
        ("embed --input pro", "proteins.fasta"),
    ],
)
def test_bash_completes(
    words: str, completed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    (tmp_path / "proteins.fasta").touch()
    assert main(["completion"]) == 0
    count = len(words.split())
    asked = (
        f"{capsys.readouterr().out}\nCOMP_WORDS=(protlm {words}); COMP_CWORD={count}; _protlm; "
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run([bash, "-c", asked], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == completed.split() and not done.stderr
