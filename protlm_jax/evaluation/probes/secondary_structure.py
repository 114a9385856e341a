"""Secondary structure from frozen embeddings, with its controls beside it.

The same heads read four inputs: the model's embeddings, those of the same architecture with random
parameters, one-hot residues and BLOSUM62 rows. A model has learned what it scores above the random
control; heads that see neighbours (the CNN) have to beat one-hot and BLOSUM62 as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import datasets, statistics
from protlm_jax.evaluation.probes import cnn, linear
from protlm_jax.evaluation.probes.inputs import (
    CONTROLS,
    Proteins,
    Standardiser,
    features,
    random_control,
)
from protlm_jax.models.loaded import LoadedModel

HEADS = ("linear", "cnn")
TEST_SETS = ("cb513", "ts115", "casp12")
_PROTOCOL = (
    "Frozen embeddings; features standardised on training residues; linear: multinomial logistic "
    "regression on single residues; cnn: the ProtTrans head (two convolutions of width 7, Q3 and "
    "Q8 together), its epoch chosen on validation proteins; Q3 and Q8 per residue over all "
    "resolved residues of a test set (CB513's own stricter mask not applied; 57 of the 511 CB513 "
    "proteins have a relative at 30 % identity or more in the training set); standard errors and "
    "95 % intervals by bootstrap over proteins, differences paired."
)

Correct = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]  # test set -> "q3"/"q8" -> sums


def run(
    loaded: LoadedModel,
    *,
    test_sets: Sequence[str] = TEST_SETS,
    train_proteins: int | None = 2000,
    valid_proteins: int | None = 200,
    heads: Sequence[str] = HEADS,
    window: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Probes Q3 (and with the CNN Q8) on the bundled secondary structure.

    Args:
        loaded: the model.
        test_sets: of `datasets.TEST_SETS`; they are scored once, never chosen on.
        train_proteins: how many are drawn from the 9,712 training proteins; None takes all.
        valid_proteins: likewise from the 1,080 validation proteins.
        heads: of HEADS.
        window: residues read at once; see `embed_sequences`.
        seed: of the draws, the random control, the heads and the bootstrap.
        progress: draw progress bars on a terminal.

    Returns:
        A plain dict: "heads" -> head -> "scores" -> input -> test set -> "q3"/"q8" estimates, and
        "model_minus" -> control -> test set -> paired estimates; counts; "protocol"; "seconds".

    Raises:
        ProtlmError: for an unknown head or test set.
    """
    if unknown := [head for head in heads if head not in HEADS]:
        raise ProtlmError(f"no probe head {unknown[0]!r}; there is {', '.join(HEADS)}")
    began = time.perf_counter()
    tests = {name: Proteins(datasets.load(name)) for name in test_sets}
    train = Proteins(datasets.subset(datasets.load("train"), train_proteins, seed))
    valid = Proteins(datasets.subset(datasets.load("valid"), valid_proteins, seed))
    correct: dict[str, dict[str, Correct]] = {head: {} for head in heads}
    notes: dict[str, dict[str, Any]] = {head: {} for head in heads}
    for kind in ("model", *CONTROLS):
        # The control's seed is not the seed of any training run that a user is likely to make.
        reader = random_control(loaded, seed + 7919) if kind == "random" else loaded
        answers = _answer(reader, kind, train, valid, tests, heads, window, seed, progress)
        for head, (predictions, note) in answers.items():
            correct[head][kind] = {
                name: _sums(tests[name], *predictions[name]) for name in test_sets
            }
            notes[head][kind] = note
    return {
        "model": loaded.name,
        "train": _counts(train),
        "valid": _counts(valid),
        "test_sets": {name: _counts(proteins) for name, proteins in tests.items()},
        "heads": {
            head: {**_scored(correct[head], seed), "training": notes[head]} for head in heads
        },
        "protocol": _PROTOCOL,
        "seconds": time.perf_counter() - began,
    }


Predictions = dict[str, tuple[np.ndarray, np.ndarray | None]]


def _answer(
    reader: LoadedModel,
    kind: str,
    train: Proteins,
    valid: Proteins,
    tests: dict[str, Proteins],
    heads: Sequence[str],
    window: int | None,
    seed: int,
    progress: bool,
) -> dict[str, tuple[Predictions, dict[str, Any]]]:
    """Trains each head on one input: head -> (test set -> Q3 and Q8 classes, notes)."""

    def read(proteins: Proteins) -> np.ndarray:
        return features(kind, reader, proteins, window=window, progress=progress)

    training = read(train)
    standard = Standardiser.fit(training)
    training = standard.apply(training)
    inputs = {name: standard.apply(read(proteins)) for name, proteins in tests.items()}
    answers: dict[str, tuple[Predictions, dict[str, Any]]] = {}
    found: Predictions
    note: dict[str, Any]
    for head in heads:
        began = time.perf_counter()
        if head == "linear":
            line = linear.fit(training, train.q3, len(datasets.Q3))
            found = {name: (line.predict(inputs[name]), None) for name in tests}
            note = {}
        else:
            choosing = standard.apply(read(valid))
            net = cnn.fit(training, train, choosing, valid, seed=seed, progress=progress)
            found = {name: net.predict(inputs[name], tests[name]) for name in tests}
            note = {"epochs": net.epochs, "best_epoch": net.best_epoch, "valid_q3": net.valid_q3}
        answers[head] = found, {**note, "seconds": time.perf_counter() - began}
    return answers


def _sums(
    proteins: Proteins, q3: np.ndarray, q8: np.ndarray | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Right and asked residues of each protein."""
    sums = {}
    for name, answer, truth in (("q3", q3, proteins.q3), ("q8", q8, proteins.q8)):
        asked = truth >= 0
        if answer is not None and asked.any():
            right = proteins.per_protein((answer == truth) & asked)
            sums[name] = (right, proteins.per_protein(asked))
    return sums


def _scored(correct: dict[str, Correct], seed: int) -> dict[str, Any]:
    """Estimates of every input, and of the model minus every control."""
    scores = {
        kind: {
            test: {q: statistics.ratio(*sums, seed=seed).to_dict() for q, sums in by_q.items()}
            for test, by_q in by_test.items()
        }
        for kind, by_test in correct.items()
    }
    differences = {
        control: {
            test: {
                q: statistics.paired_difference(
                    right, correct[control][test][q][0], asked, seed=seed
                ).to_dict()
                for q, (right, asked) in by_q.items()
            }
            for test, by_q in correct["model"].items()
        }
        for control in correct
        if control != "model"
    }
    return {"scores": scores, "model_minus": differences}


def _counts(proteins: Proteins) -> dict[str, int]:
    return {
        "proteins": len(proteins.members),
        "residues": len(proteins.q3),
        "resolved_residues": int((proteins.q3 >= 0).sum()),
    }
