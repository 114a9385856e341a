"""What the verbs of the command line read from a run, and their measurements on default proteins.

Measurements return a plain dict with the text for the terminal under "summary".
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
from protlm_jax.evaluation import detection, heldout
from protlm_jax.evaluation.embedding.embedder import LONGEST_ROW
from protlm_jax.evaluation.engine import max_residues
from protlm_jax.models.loaded import LoadedModel, parts_of
from protlm_jax.vocabularies import Rare, RareTally, ResiduePolicy

SEED = 0


def data_of(path: str | Path) -> DataConfig:
    """The data that a run was trained on; the bundled proteins for anything that is not a run.

    Raises:
        ProtlmError: its config.json cannot be read, or is of a newer version.
    """
    return recorded(path).data or DataConfig()


def rate_of(path: str | Path) -> float:
    """The fraction of residues that a run's objective masks, or the default where it has none."""
    about = recorded(path)
    rate = about.section("objective").get("rate", heldout.RATE)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
        raise ProtlmError(f"{about.file}: objective.rate is {rate!r:.60}; it must be in (0, 1]")
    return float(rate)


def with_residues(loaded: LoadedModel, rare: Rare | None) -> LoadedModel:
    """The model with another way to read U, Z, O and B (None: its own), and a new tally of them."""
    rare = loaded.rare_residues if rare is None else rare
    return dataclasses.replace(loaded, rare_residues=rare, tally=RareTally())


def say_rare(loaded: LoadedModel) -> None:
    """Prints how the rare residues that occurred were read."""
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
    """Tokens in a row, special ones included: `window` residues, or the model's own row.

    Of a run that is a row of its training, with its memory. Of other folders it is the least of the
    tokenizer's `model_max_length`, the limit in config.json, the position table, and 4,096 tokens:
    no relative position beyond was ever trained.

    Raises:
        ProtlmError: the position table does not hold the window.
    """
    if window is not None:
        max_residues(loaded, window)
        return window + loaded.vocabulary.num_specials
    return min(loaded.row or LONGEST_ROW, loaded.config.max_positions or LONGEST_ROW)


def window_of(loaded: LoadedModel, window: int | None = None) -> int:
    """`row_of` in residues."""
    return row_of(loaded, window) - loaded.vocabulary.num_specials


def trained_length(loaded: LoadedModel, data: DataConfig) -> int:
    """Tokens in a row of the training that `data` describes, with the model's memory."""
    length = data.length + loaded.config.memory_length
    return min(length, loaded.config.max_positions or length)


def require_answers(loaded: LoadedModel, data: DataConfig) -> None:
    """Raises ProtlmError where a model was not trained to predict single residues."""
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

    For a model that detects replaced residues it is its generator's score, with the discriminator's
    under "detection".

    Args:
        loaded: the model.
        data: what it was trained on.
        fasta: proteins to score instead of those held out.
        rate: of detection.
        length: tokens in a row; None: those of `data`.
    """
    require_answers(loaded, data)
    records = read_fasta(fasta, policy=loaded.policy) if fasta else heldout_records(data)
    sequences = {record.id: record.sequence for record in records}
    training = training_frequencies(data)
    length = length or trained_length(loaded, data)
    generator, summary, found = loaded, "", {}
    if loaded.model.readouts[0].kind == "detection":
        detected = detection.evaluate(
            loaded, sequences, SEED, rate=rate, length=length, progress=True
        )
        generator, found = parts_of(loaded)["generator"], {"detection": detected}
        summary = f"{detection.summary(detected)}\n\ngenerator: "
    result = heldout.evaluate(generator, sequences, training, SEED, length=length, progress=True)
    summary += heldout.summary(result)
    return {**result, "model_name": loaded.name, **found, "summary": summary}


def drawn(
    data: DataConfig,
    proteins: int,
    fasta: Path | None = None,
    policy: ResiduePolicy = ResiduePolicy(),
) -> dict[str, str]:
    """id -> sequence of at most so many random proteins of a FASTA file, or of those held out."""
    records = list(read_fasta(fasta, policy=policy)) if fasta else heldout_records(data)
    chosen = random.Random(SEED).sample(records, min(proteins, len(records)))
    return {record.id: record.sequence for record in chosen}
