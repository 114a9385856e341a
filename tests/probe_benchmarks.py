"""Small made-up benchmarks whose answers are known."""

from __future__ import annotations

import numpy as np

from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein, PaperRow, Target, View
from protlm_jax.vocabularies import AMINO_ACIDS

CHARGE = {**dict.fromkeys("DE", 0), **dict.fromkeys("KR", 2)}
WHERE = Target("where", "classes", ("acid", "neutral", "basic"), letters="-0+")
SHARE = Target("share", "number")


def benchmark(level: str, *, shuffled: bool = False) -> Benchmark:
    """Residues: the charge of each. Proteins: which of two letters is common, and how common."""
    generator = np.random.default_rng(0)

    def split(name: str, count: int) -> list[LabelledProtein]:
        made = [_protein(f"{name}{i}", level, generator) for i in range(count)]
        if shuffled:
            made = _shuffled(made, generator)
        return made

    splits = {name: split(name, count) for name, count in
              {"train": 60, "valid": 20, "test": 40, "other": 10}.items()}  # fmt: skip
    target = WHERE.name
    return Benchmark(
        name="made",
        title="Made up",
        level=level,  # type: ignore[arg-type]
        targets=(WHERE,) if level == "residue" else (WHERE, SHARE),
        splits={name: (lambda part=part: part) for name, part in splits.items()},  # type: ignore[misc]
        views={
            "test": View("test", "Test"),
            "marked": View("test", "Test, marked", mark="some", note="Half of it."),
            "other": View("other", "Other"),
        },
        licence="none",
        source="made here",
        notes=("Made up.",),
        paper=(
            PaperRow("A model", "test", target, 50.0, "A paper"),
            PaperRow("A model", "other", target, float("nan"), "Not the same proteins."),
        ),
    )


def _protein(name: str, level: str, generator: np.random.Generator) -> LabelledProtein:
    size = int(generator.integers(20, 40))
    kind = int(generator.integers(3))
    weights = np.ones(20)
    if level == "protein":
        weights[[AMINO_ACIDS.index(a) for a in ("DE", "AG", "KR")[kind]]] = 8
    sequence = "".join(generator.choice(list(AMINO_ACIDS), size, p=weights / weights.sum()))
    some = {"some": np.array(generator.random() < 0.5)}
    if level == "residue":
        labels = np.array([CHARGE.get(a, 1) for a in sequence], np.int8)
        labels[generator.random(size) < 0.1] = -1
        return LabelledProtein(name, sequence, {WHERE.name: labels}, some)
    share = np.float32(sum(a in "KR" for a in sequence) / size)
    return LabelledProtein(
        name, sequence, {WHERE.name: np.array(kind), SHARE.name: np.array(share)}, some
    )


def _shuffled(
    proteins: list[LabelledProtein], generator: np.random.Generator
) -> list[LabelledProtein]:
    """Every label at the place of another, of any protein."""
    places = [p.labels[WHERE.name] for p in proteins]
    mixed = generator.permutation(np.concatenate(places))
    ends = np.cumsum([len(labels) for labels in places])
    return [
        LabelledProtein(p.id, p.sequence, {WHERE.name: mixed[end - len(labels) : end]}, p.marks)
        for p, labels, end in zip(proteins, places, ends, strict=True)
    ]
