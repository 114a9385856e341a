"""Every family learns something of proteins, beyond how frequent each residue is.

A few minutes of training a very small model on the bundled proteins, through the commands that a
user types; what is asked is what the model could not see, on proteins that it was not trained on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from protlm_jax import cli

SMALL = [
    "--config.model.d_model=64",
    "--config.model.head_dim=32",
    "--config.model.d_ff=256",
    "--config.model.num_layers=2",
    "--config.data.length=256",
    "--config.schedule.learning_rate=3e-3",
    "--config.train.steps=600",
    "--config.train.evaluate_every=0",
    "--config.train.checkpoint_every=600",
    "--config.mesh.data=1",
]
IN_CI = ("bert", "txl")  # a minute each; the others are alike
VARIANTS: dict[str, list[str]] = {
    "bert": [],
    "t5": ["--config.model.num_decoder_layers=2"],
    "albert": [],
    "esm2": [],
    "esmc": [],
    "dplm": [],
    "gpt2": [],
    "progen2": [],
    "rita": [],
    "roberta": [],
    "saprot": [],
    "xlnet": [],
    "txl": ["--config.data.length=128", "--config.model.memory_length=128"],
}


def trained(variant: str, overrides: list[str], tmp_path: Path) -> Any:
    """Trains, evaluates on held-out proteins, and returns the result."""
    run, output = str(tmp_path / "run"), tmp_path / "evaluation.json"
    config = ["--config", f"configs/tiny.py:{variant}", *SMALL, *overrides]
    assert cli.main(["train", "--workdir", run, *config]) == 0
    assert cli.main(["evaluate", "--model", run, "--output", str(output)]) == 0
    return json.loads(output.read_text())


@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=pytest.mark.slow if v in IN_CI else pytest.mark.long) for v in VARIANTS],
)
def test_a_model_beats_the_frequencies_of_its_training_data(variant: str, tmp_path: Path) -> None:
    result = trained(variant, VARIANTS[variant], tmp_path)
    difference = result["model_minus"]["training_frequencies"]
    assert difference["value"] < -0.01
    assert difference["value"] < -3 * difference["standard_error"]


@pytest.mark.slow
def test_a_discriminator_finds_what_the_residue_alone_does_not_tell(tmp_path: Path) -> None:
    """Its generator draws likely residues, so that what is replaced shows by the rest alone."""
    overrides = [
        "--config.model.initializer_range=0.125",
        "--config.schedule.learning_rate=1e-3",
        "--config.optimizer.clip_norm=0",
        "--config.train.steps=900",
        "--config.train.checkpoint_every=900",
    ]
    detection = trained("electra", overrides, tmp_path)["detection"]
    difference = detection["model_minus"]["label_entropy_given_residue"]
    assert difference["value"] < 0
    assert difference["value"] < -3 * difference["standard_error"]
    auroc = detection["model"]["auroc"]
    assert auroc["value"] > 0.5 + 2 * auroc["standard_error"]
