"""What the command line evaluates, on which proteins by default.

Each function returns a plain dict for JSON, with the text for the terminal under "summary".
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

from protlm_jax.config.folders import recorded
from protlm_jax.data.config import DataConfig
from protlm_jax.data.fasta import read_fasta
from protlm_jax.data.splits import heldout_records, training_frequencies
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import detection, heldout, probe_data, summaries
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.files import text
from protlm_jax.evaluation.depth.results import combined
from protlm_jax.evaluation.embedding.embedder import LONGEST_ROW
from protlm_jax.evaluation.engine import max_residues
from protlm_jax.evaluation.probes import results as probe_results
from protlm_jax.evaluation.probes import run as run_probe
from protlm_jax.models.loaded import LoadedModel, parts_of
from protlm_jax.vocabularies import Rare, RareTally, ResiduePolicy

SEED = 0
PROBE_VIEWS = ("cb513", "ts115", "casp12")


def data_of(path: str | Path) -> DataConfig:
    """The data that a run was trained on; the bundled proteins for anything that is not a run.

    Raises:
        ProtlmError: its config.json cannot be read, or is of a newer version.
    """
    return recorded(path).data or DataConfig()


def rate_of(path: str | Path) -> float:
    """Fraction of residues that a run asked of its model, where it says so."""
    about = recorded(path)
    rate = about.section("objective").get("rate", heldout.RATE)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
        raise ProtlmError(f"{about.file}: objective.rate is {rate!r:.60}; it must be in (0, 1]")
    return float(rate)


def is_run(path: str | Path) -> bool:
    """Whether the path stands for a run of ours, which says what it was trained on."""
    return recorded(path).data is not None


def with_residues(loaded: LoadedModel, asked: Rare | None) -> LoadedModel:
    """The model with what is asked to become of U, Z, O and B, which it counts from now on.

    None leaves it to the model; see `LoadedModel.rare_residues`.
    """
    rare = loaded.rare_residues if asked is None else asked
    return dataclasses.replace(loaded, rare_residues=rare, tally=RareTally())


def say_rare(loaded: LoadedModel) -> None:
    """Prints what became of the rare residues that were read, where there were some."""
    if loaded.tally is None or not loaded.tally.sequences:
        return
    done = {
        "X": "read as X (--rare_residues keep reads them as they are)",
        "keep": "read as they are (--rare_residues x reads them as X)",
        "error": "refused",
    }[loaded.rare_residues]
    counts = ", ".join(f"{count:,} {letter}" for letter, count in loaded.tally.letters.items())
    print(f"rare residues: {counts} in {len(loaded.tally.sequences):,} sequences, {done}")


def row_of(loaded: LoadedModel, window: int | None = None) -> int:
    """Tokens in a row, special ones included: `window` residues, or what the model was made for.

    For a run that is a row of its training, after its memory. For other folders it is the least of
    what its tokenizer lets through (`model_max_length`), what its config.json says, and its
    position table; where none says anything, 4,096 tokens. Longer proteins are read in windows or
    pieces: relative positions would go further, and say less, for nothing beyond was ever trained.

    Raises:
        ProtlmError: the position table does not hold the window.
    """
    specials = loaded.vocabulary.num_specials
    if window is not None:
        max_residues(loaded, window)
        return window + specials
    return min(loaded.row or LONGEST_ROW, loaded.config.max_positions or LONGEST_ROW)


def window_of(loaded: LoadedModel, window: int | None = None) -> int:
    """The same in residues."""
    return row_of(loaded, window) - loaded.vocabulary.num_specials


def trained_length(loaded: LoadedModel, data: DataConfig) -> int:
    """Tokens in a row of the training that `data` describes, after the model's memory."""
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
    loaded: LoadedModel,
    data: DataConfig,
    fasta: Path | None = None,
    rate: float = heldout.RATE,
    *,
    length: int | None = None,
) -> dict[str, Any]:
    """Held-out score against the training frequencies and each protein's own composition.

    Of a model that detects replaced residues it is its generator's score, and under "detection"
    what it finds of the residues that the generator replaced, asked at `rate`.

    Args:
        loaded: the model.
        data: what it was trained on.
        fasta: proteins to score instead of those held out.
        rate: of detection.
        length: tokens in a row; None: those of `data`.
    """
    require_answers(loaded, data)
    read = read_fasta(fasta, policy=loaded.policy) if fasta else heldout_records(data)
    records = list(read)
    training = training_frequencies(data)
    sequences = {record.id: record.sequence for record in records}
    length = length or trained_length(loaded, data)
    if loaded.model.readouts[0].kind != "detection":
        result = heldout.evaluate(loaded, sequences, training, SEED, length=length, progress=True)
        return {**result, "model_name": loaded.name, "summary": summaries.heldout(result)}
    found = detection.evaluate(loaded, sequences, SEED, rate=rate, length=length, progress=True)
    generator = parts_of(loaded)["generator"]
    result = heldout.evaluate(generator, sequences, training, SEED, length=length, progress=True)
    summary = f"{summaries.detection(found)}\n\ngenerator: {summaries.heldout(result)}"
    return {**result, "model_name": loaded.name, "detection": found, "summary": summary}


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
    return {"dataset": probed.result, "summary": probe_results.summary(probed.result)}


def drawn(
    data: DataConfig,
    proteins: int,
    fasta: Path | None = None,
    policy: ResiduePolicy = ResiduePolicy(),
) -> dict[str, str]:
    """At most so many proteins, by id, drawn from a FASTA file read under `policy`, or from the
    held-out ones."""
    records = list(read_fasta(fasta, policy=policy)) if fasta else heldout_records(data)
    chosen = random.Random(SEED).sample(records, min(proteins, len(records)))
    return {record.id: record.sequence for record in chosen}


def depth(loaded: LoadedModel, data: DataConfig, proteins: int) -> dict[str, Any]:
    """Depth analysis on some held-out proteins: a dataset, and a summary."""
    require_answers(loaded, data)
    sequences = drawn(data, proteins)
    length = trained_length(loaded, data)
    found = analyse(loaded, sequences, length=length, seed=SEED, progress=True)
    summary = "\n\n".join(map(text, found.values()))
    return {"dataset": combined(found.values()), "summary": summary}
