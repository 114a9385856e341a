"""Command-line arguments that several verbs share, and the lock on a verb's output."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from protlm_jax.storage.owner import owned

# Verbs that fill the folder --output; elsewhere --output appears when it is complete.
_FILLING = ("depth", "probe", "prune")
_OWNING = ("prepare", "quickstart", "train")  # verbs that lock their own place


def positive(text: str) -> int:
    """A whole number above 0, or ArgumentTypeError."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def output_owned(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Locks what a verb writes to, if anything; raises `Occupied` where another process writes."""
    place: Path | None = getattr(arguments, "output", None)
    if place is None or arguments.verb in _OWNING:
        return contextlib.nullcontext()
    return owned(place, inside=arguments.verb in _FILLING)


def rare(text: str) -> str:
    """A value of `ResiduePolicy.rare`, or ArgumentTypeError."""
    choices = {"x": "X", "keep": "keep", "error": "error"}
    if text.lower() not in choices:
        raise argparse.ArgumentTypeError(f"{text!r}: choose x, keep or error")
    return choices[text.lower()]


def add_rare_residues(verb: argparse.ArgumentParser) -> None:
    """Adds --rare_residues to a verb that reads proteins or writes a tokenizer."""
    verb.add_argument(
        "--rare_residues", type=rare, metavar="x|keep|error",
        help="U, Z, O and B: read as X, as they are, or refused with their position; default: as "
        "the model's own tokenizer reads them, for a run as in its training, for ProtTrans x",
    )  # fmt: skip


def add_mesh(verb: argparse.ArgumentParser) -> None:
    """Adds --mesh to a verb that reads a model."""
    verb.add_argument(
        "--mesh", default="auto", metavar="AXES",
        help="devices that share the model, as sizes of the axes data (rows of a batch), fsdp and "
        "tensor (parameters): fsdp=8, or data=2,fsdp=4; default: auto, one device if it holds the "
        "parameters, else divided over as few as hold them",
    )  # fmt: skip


def add_window(verb: argparse.ArgumentParser) -> None:
    """Adds --window to a verb that reads proteins."""
    verb.add_argument(
        "--window", type=positive, metavar="N",
        help="residues that the model reads at once; default: a row of a run's training; for other "
        "folders the length in tokenizer and config.json (ESM-2: 1022), at most the position "
        "table, or, where neither has one, 4096 tokens",
    )  # fmt: skip
