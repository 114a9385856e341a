"""Chains of known structure and which of their residues touch."""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from protlm_jax import bundled
from protlm_jax.evaluation.probe_data.base import Benchmark, LabelledProtein, Target, View

NEAREST = 6
"""Pairs closer than this along the chain are not asked."""


def load() -> Benchmark:
    """The benchmark; nothing is read yet."""
    return Benchmark(
        name="contacts",
        title="Contacts",
        level="pair",
        targets=(Target("contact", "classes", ("apart", "touching")),),
        splits={split: partial(_split, split) for split in ("train", "valid", "test")},
        views={"test": View("test", "PDB chains")},
        licence="promod3-data: Apache-2.0; PDB: CC0-1.0",
        source="400 unbroken chains of 60 to 300 residues from the structure database of ProMod3 "
        "(Studer et al. 2021, doi:10.1371/journal.pcbi.1008667)",
        notes=(
            "Two residues touch where their C-beta atoms are less than 8 A apart; pairs fewer than "
            "6 residues apart are not asked. No two of the chains align significantly at 25 % "
            "identity or more (MMseqs2, sensitivity 7.5, E < 0.001).",
        ),
    )


@cache
def _chains() -> list[dict[str, object]]:
    return list(bundled.json_lines("contacts"))


@cache
def _split(split: str) -> list[LabelledProtein]:
    return [
        LabelledProtein(str(c["id"]), str(c["seq"]), {"contact": _pairs(c["contacts"])})
        for c in _chains()
        if c["split"] == split
    ]


def _pairs(separations: object) -> np.ndarray:
    """[pairs, 2] int32 from how far along the chain lie those that each residue touches."""
    assert isinstance(separations, list)
    pairs = [(i, i + further) for i, row in enumerate(separations) for further in row]
    return np.array(pairs, np.int32).reshape(-1, 2)
