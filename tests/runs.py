"""Short runs of the specimens of the zoo, and what they left."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
from zoo import ZOO

from protlm_jax.training.checkpoints import restore_part, saved_steps
from protlm_jax.training.metrics import read_metrics
from protlm_jax.vocabularies import AMINO_ACIDS


def write_fasta(file: Path, seed: int = 0, letters: str = AMINO_ACIDS) -> Path:
    """60 random proteins of 8 to 40 residues."""
    rng = random.Random(seed)
    proteins = ["".join(rng.choices(letters, k=rng.randint(8, 40))) for _ in range(60)]
    file.write_text("".join(f">p{i}\n{p}\n" for i, p in enumerate(proteins)))
    return file


def tree(family: str = "bert", **sections: Any) -> dict[str, Any]:
    """A config of four steps as nested dicts; `sections` change fields, or what is no section."""
    specimen = ZOO[family]
    whole: dict[str, Any] = {
        "model": specimen.config.to_dict(),
        "objective": {"name": specimen.objective, **specimen.options},
        "data": {"length": 32, "task": specimen.task, "heldout_percent": 20.0},
        "optimizer": {"name": "adamw"},
        "schedule": {"name": "constant", "learning_rate": 1e-3},
        "train": {
            "steps": 4,
            "batch_size": 4,
            "log_every": 1,
            "checkpoint_every": 2,
            "evaluate_every": 4,
            "evaluate_batches": 2,
        },
        "mesh": {"data": 1},
    }
    for name, fields in sections.items():
        whole[name] = {**whole[name], **fields} if isinstance(fields, dict) else fields
    return whole


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """Lines without their timings."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: every logged number, the last parameters, and what a memory holds."""
    assert metrics(one) == metrics(other)
    last = [saved_steps(run / "checkpoints")[-1] for run in (one, other)]
    assert last[0] == last[1]
    for part in ("params", "carry"):
        found = [restore_part(run / "checkpoints" / str(last[0]), part) for run in (one, other)]
        jax.tree.map(np.testing.assert_array_equal, *found)
