"""Command-line arguments that several verbs share, and the place that a verb writes to."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from protlm_jax.storage.owner import owned

# Verbs whose --output is a folder that is filled; elsewhere it appears when it is complete.
_FILLING = ("depth", "probe", "prune")
_OWNING = ("prepare", "quickstart", "train")  # verbs that look after their own place


def positive(text: str) -> int:
    """A whole number above 0.

    Raises:
        ArgumentTypeError: it is something else.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def output_owned(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Keeps what a verb writes to, if anything, to this process while the block runs.

    Raises:
        Occupied: another process is writing to it.
        ProtlmError: it cannot be written to.
    """
    place: Path | None = getattr(arguments, "output", None)
    if place is None or arguments.verb in _OWNING:
        return contextlib.nullcontext()
    return owned(place, inside=arguments.verb in _FILLING)


def rare(text: str) -> str:
    """A way to read rare residues, as `ResiduePolicy.rare` names it.

    Raises:
        ArgumentTypeError: it is something else.
    """
    choices = {"x": "X", "keep": "keep", "error": "error"}
    if text.lower() not in choices:
        raise argparse.ArgumentTypeError(f"{text!r}: choose x, keep or error")
    return choices[text.lower()]


def add_rare_residues(verb: argparse.ArgumentParser) -> None:
    """Gives a verb that reads proteins, or writes a tokenizer, the argument --rare_residues."""
    verb.add_argument(
        "--rare_residues", type=rare, metavar="x|keep|error",
        help="U, Z, O and B: read as X, as they are, or refused with their position; default: as "
        "the model's own tokenizer has it, for a run as in its training, for models of ProtTrans x",
    )  # fmt: skip


def add_window(verb: argparse.ArgumentParser) -> None:
    """Gives a verb that reads proteins the argument --window."""
    verb.add_argument(
        "--window", type=positive, metavar="N",
        help="residues that go through the model at once; default: a row of a run's training; of "
        "other folders what tokenizer and config.json say (ESM-2: 1022), at most the position "
        "table, or, where nothing is said, 4096 tokens",
    )  # fmt: skip
