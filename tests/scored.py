"""What tests of `protlm score` share: small files, and the effect of one variant."""

from __future__ import annotations

import csv
from pathlib import Path

from zoo import loaded

from protlm_jax.evaluation.scoring.mutations import Variant, mutate, parse_mutations
from protlm_jax.evaluation.scoring.score import effects

WILDTYPE = "MKTAYIAKQRQISFVKSHFSRQ"
GFP_LIKE = "MSKGEELFTGVVPILVELDGDVNGHKFSVSGEGEGDATYGKLTLKFICTTGKLPVPWPTL"


def write(folder: Path, text: str, name: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def variant(text: str, wildtype: str = WILDTYPE) -> Variant:
    return mutate(parse_mutations(text), wildtype)


def effect(text: str, wildtype: str = WILDTYPE, family: str = "bert") -> float:
    return float(effects(loaded(family), [variant(text, wildtype)])[0])
