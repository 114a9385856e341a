"""Where in the cell a protein is, and whether it sits in a membrane.

Trained on DeepLoc 2.0, tested on DeepLoc 1.0: the training file of the latter, which the ProtTrans
paper used, is not to be had. So the numbers are close to the paper's in kind, not in protocol.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from protlm_jax import bundled
from protlm_jax.data.tables import read_table
from protlm_jax.evaluation.probe_data.base import (
    UNKNOWN,
    Benchmark,
    LabelledProtein,
    PaperRow,
    Target,
    View,
)
from protlm_jax.vocabularies import AS_WRITTEN, normalise

LOCATIONS = (
    "Nucleus",
    "Cytoplasm",
    "Extracellular",
    "Mitochondrion",
    "Cell membrane",
    "Endoplasmic reticulum",
    "Plastid",
    "Golgi apparatus",
    "Lysosome/Vacuole",
    "Peroxisome",
)
TARGETS = (
    Target("location", "classes", LOCATIONS),
    Target("membrane", "classes", ("soluble", "membrane-bound")),
)
_SPLITS = {
    "train": ("0", "1", "2", "3"),
    "valid": ("4",),  # one of DeepLoc 2.0's five homology partitions
    "deeploc1_test": ("test",),
    "deeploc1_hard": ("hard",),
}
FAR = 30.0  # percent identity
VIEWS = {
    "deeploc1_test": View("deeploc1_test", "DeepLoc 1.0 test"),
    "deeploc1_far": View(
        "deeploc1_test",
        "DeepLoc 1.0 test, < 30 % identity",
        mark="far",
        note="The test proteins without a significant local alignment of 30 % identity or more, "
        "however short, to any training or validation protein (MMseqs2, sensitivity 5, E < 0.001).",
    ),
    "deeploc1_hard": View(
        "deeploc1_hard",
        "DeepLoc 1.0 hard",
        note="The harder test set of Light Attention; membrane is not published with it.",
    ),
}
_NOTES = (
    "Trained on DeepLoc 2.0, tested on DeepLoc 1.0; the ProtTrans paper trained on DeepLoc 1.0. "
    "Training proteins have one location, and those near the test sets were left out; still 105 of "
    "the 2,768 test proteins align at 30 % identity or more over half their length or their "
    "partner's, and 713 over any length (hard: 1 and 19 of 490). Models are chosen on one of "
    "DeepLoc 2.0's homology partitions, never on a file of DeepLoc 1.0, whose validation proteins "
    "mostly stand in this training set.",
    "Membrane: DeepLoc 1.0 leaves it open for 1,022 of the 2,768 test proteins (U), which are not "
    "scored; DeepLoc 2.0 calls such proteins soluble, so the training labels do too.",
    "1,464 of the 2,768 test proteins and 152 of the 490 hard ones stand in the Swiss-Prot entries "
    "of 2014 that the bundled pretraining proteins were drawn from, 180 and 13 in the bundled "
    "sample itself: a model trained on those has seen them, without labels.",
)


def load() -> Benchmark:
    """The benchmark; nothing is read yet."""
    return Benchmark(
        name="localization",
        title="Subcellular localization",
        level="protein",
        targets=TARGETS,
        splits={name: partial(_split, sets) for name, sets in _SPLITS.items()},
        views=VIEWS,
        licence="DeepLoc 1.0 and 2.0: CC BY 4.0; test sets as in the Light Attention repository: "
        "MIT",
        source="Thumuluri et al. 2022, doi:10.1093/nar/gkac278 (DeepLoc 2.0); Almagro Armenteros "
        "et al. 2017, doi:10.1093/bioinformatics/btx431 (DeepLoc 1.0); Staerk et al. 2021, "
        "doi:10.1093/bioadv/vbab035 (hard test set)",
        notes=_NOTES,
        paper=(
            PaperRow(
                "ProtTrans",
                "deeploc1_test",
                "location",
                float("nan"),
                "Elnaggar et al. 2021 trained on DeepLoc 1.0's own training file, ours is another "
                "and larger one: their 81 % (ProtT5-XL-U50) does not belong beside these numbers.",
            ),
        ),
    )


@cache
def _rows() -> list[dict[str, str]]:
    return read_table(bundled.path("localization")).rows


@cache
def _split(sets: tuple[str, ...]) -> list[LabelledProtein]:
    return [_protein(row) for row in _rows() if row["set"] in sets]


def _protein(row: dict[str, str]) -> LabelledProtein:
    membrane = int(row["membrane"] or UNKNOWN)
    labels = {
        "location": np.array(LOCATIONS.index(row["location"]), np.int8),
        "membrane": np.array(membrane, np.int8),
    }
    notes = {"kingdom": row["kingdom"]} if row["kingdom"] else {}
    sequence = normalise(row["sequence"], AS_WRITTEN, record=row["accession"])
    marks = {"far": np.array(float(row["identity"]) < FAR)} if row["identity"] else {}
    return LabelledProtein(row["accession"], sequence, labels, marks, notes)
