"""Runs that read FASTA or token files: exact continuation, without TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from prepared_data import proteins, write_prepared

SETTINGS = {
    "model.d_model": 16,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.head_dim": 8,
    "model.d_ff": 32,
    "data.length": 32,
    "train.evaluate_every": 2,
    "train.evaluate_batches": 1,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "mesh.data": 1,
    "schedule.warmup_steps": 1,
}
WITHOUT_TENSORFLOW = """
import sys
for name in ("tensorflow", "seqio", "tensorflow_datasets", "apache_beam"):
    sys.modules[name] = None
from protlm_jax.cli import main
folder, *arguments = sys.argv[1:]
prepared = ["--config.data.prepared=" + folder + "/prepared"]
for workdir, steps, more in (
    ("whole", 4, []), ("parts", 2, []), ("parts", 4, []), ("tokens", 2, prepared)
):
    one = ["--workdir", f"{folder}/{workdir}", f"--config.train.steps={steps}"]
    assert main([*arguments, *one, *more]) == 0
"""


def test_training_goes_on_exactly_and_without_tensorflow(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "prepared", proteins(list(range(10, 80))))
    command = ["train", "--config", "configs/tiny.py:bert"]
    command += [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path), *command],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"residues, of {folder}" in done.stderr
    assert "residues, of the bundled proteins" in done.stderr
    assert "of the tokens of a row are not padding" in done.stderr
    runs = []
    for workdir in ("whole", "parts"):
        lines = (tmp_path / workdir / "metrics.jsonl").read_text().splitlines()
        runs.append([json.loads(line) for line in lines])
    for name in ("loss", "heldout/nll", "heldout/unigram_entropy"):
        whole, parts = ([line[name] for line in lines if name in line] for lines in runs)
        assert len(whole) > 1 and whole == parts, name
