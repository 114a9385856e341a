"""What the command line evaluates, on which proteins by default.

Each function returns a plain dict for JSON, with the text for the terminal under "summary".
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from protlm_jax.data.config import DataConfig
from protlm_jax.data.fasta import read_fasta
from protlm_jax.data.splits import heldout_records, training_frequencies
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import detection, heldout, probe_data, summaries
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.plain import plain
from protlm_jax.evaluation.depth.summary import POSITIONS, summary
from protlm_jax.evaluation.probes import run as run_probe
from protlm_jax.evaluation.probes import table
from protlm_jax.models.loaded import LoadedModel, parts_of
from protlm_jax.run_folders import newest_run

SEED = 0
PROBE_VIEWS = ("cb513", "ts115", "casp12")


def data_of(path: str | Path) -> DataConfig:
    """The data that a run was trained on; the bundled proteins for anything that is not a run."""
    fields = _recorded(path)
    return DataConfig(**fields["data"]) if "data" in fields else DataConfig()


def rate_of(path: str | Path) -> float:
    """Fraction of residues that a run asked of its model, where it says so."""
    return float(_recorded(path).get("objective", {}).get("rate", heldout.RATE))


def _recorded(path: str | Path) -> dict[str, Any]:
    """The config.json of the run that a path stands for; empty without one."""
    folder = newest_run(Path(path).resolve())
    if folder.parent.name == "checkpoints":
        folder = folder.parents[1]
    file = folder / "config.json"
    return json.loads(file.read_text()) if file.exists() else {}


def is_run(path: str | Path) -> bool:
    """Whether the path stands for a run of ours, which says what it was trained on."""
    return "data" in _recorded(path)


def trained_length(loaded: LoadedModel, data: DataConfig) -> int:
    """Tokens that the model knows how to take in: a row of its training, after its memory.

    As far as they are recorded. Longer proteins are read in windows or pieces. Relative positions
    would go further, and say less: nothing beyond was ever trained.
    """
    length = data.length + loaded.config.memory_length
    return min(length, loaded.config.max_positions or length)


def require_answers(loaded: LoadedModel, data: DataConfig) -> None:
    """Raises ProtlmError when a model cannot be asked for single residues as it was trained."""
    if data.task in ("span3", "ankh"):
        raise ProtlmError(
            f"{loaded.name} was trained on data.task={data.task!r}, to fill spans behind "
            f"sentinels, and is asked here in ProtT5's form, which it has never seen: the numbers "
            f"would say nothing. Its own held-out loss stands in metrics.jsonl, and "
            f"`protlm probe` needs no answer of it"
        )


def evaluate(
    loaded: LoadedModel, data: DataConfig, fasta: Path | None = None, rate: float = heldout.RATE
) -> dict[str, Any]:
    """Held-out score against the training frequencies and each protein's own composition.

    Of a model that detects replaced residues it is its generator's score, and under "detection"
    what it finds of the residues that the generator replaced, asked at `rate`.
    """
    require_answers(loaded, data)
    records = list(read_fasta(fasta)) if fasta else heldout_records(data)
    training = training_frequencies(data)
    sequences = {record.id: record.sequence for record in records}
    length = trained_length(loaded, data)
    if loaded.model.readouts[0].kind != "detection":
        result = heldout.evaluate(loaded, sequences, training, SEED, length=length, progress=True)
        return {**result, "model_name": loaded.name, "summary": summaries.heldout(result)}
    found = detection.evaluate(loaded, sequences, SEED, rate=rate, length=length, progress=True)
    generator = parts_of(loaded)["generator"]
    result = heldout.evaluate(generator, sequences, training, SEED, length=length, progress=True)
    summary = f"{summaries.detection(found)}\n\ngenerator: {summaries.heldout(result)}"
    return {**result, "model_name": loaded.name, "detection": found, "summary": summary}


def recorded_window(loaded: LoadedModel, path: str | Path) -> int | None:
    """Residues that fit a row of a run's training; None for anything that is not a run."""
    if not is_run(path):
        return None
    return trained_length(loaded, data_of(path)) - loaded.vocabulary.num_specials


def probe(loaded: LoadedModel, data: DataConfig, train_proteins: int) -> dict[str, Any]:
    """Secondary structure from the last layer of a run, one seed, on the paper's test sets."""
    probed = run_probe.run(
        loaded,
        probe_data.load("secondary_structure"),
        train_proteins=train_proteins,
        views=PROBE_VIEWS,
        seeds=1,
        window=trained_length(loaded, data) - loaded.vocabulary.num_specials,
        seed=SEED,
        progress=True,
    )
    return {**probed.result, "summary": table.summary(probed.result)}


def drawn(data: DataConfig, proteins: int, fasta: Path | None = None) -> dict[str, str]:
    """At most so many proteins, by id, drawn from a FASTA file, or from the held-out ones."""
    records = list(read_fasta(fasta)) if fasta else heldout_records(data)
    chosen = random.Random(SEED).sample(records, min(proteins, len(records)))
    return {record.id: record.sequence for record in chosen}


def depth(loaded: LoadedModel, data: DataConfig, proteins: int) -> dict[str, Any]:
    """Depth analysis on some held-out proteins."""
    require_answers(loaded, data)
    sequences = drawn(data, proteins)
    length = trained_length(loaded, data)
    found = analyse(loaded, sequences, length=length, seed=SEED, progress=True)
    asked = POSITIONS[loaded.model.readouts[0].kind]
    result = plain(found, asked)
    said = [text for stack in result["stacks"].values() for text in stack["reading"]]
    text = "\n".join([summaries.depth(summary(found, asked)), *said])
    return {**result, "summary": text}
