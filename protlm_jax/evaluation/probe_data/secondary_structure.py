"""Secondary structure of each residue, in three and in eight states.

A label counts where the residue is resolved in the structure and its state is known. Three and
eight states are known of different residues, so each target has its own -1.

Three states follow from eight by one rule in all sets: G, H, I are helix, E and B strand, the rest
other. The published CASP13 and CASP14 call the pi helix I other; here it is helix, as elsewhere.
NetSurfP-2.0 publishes three states alone: they are kept, and the eight states, which another run of
DSSP gave, contradict the rule at 0.3 % of the training residues that have both.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from protlm_jax import bundled
from protlm_jax.evaluation.probe_data.base import (
    UNKNOWN,
    Benchmark,
    LabelledProtein,
    PaperRow,
    Target,
    View,
)
from protlm_jax.vocabularies import AS_WRITTEN, normalise

Q3 = "HEC"
Q8 = "GHIEBSTC"
Q3_OF_Q8 = np.array([Q3.index(state) for state in "HHHEECCC"], np.int8)
FAR = 25.0  # percent identity

_SPLITS = {name: name for name in ("train", "valid", "cb513", "ts115", "casp12", "casp13")}
_SPLITS |= {"casp14": "casp14", "new364": "test_new364"}

TARGETS = (
    Target("q3", "classes", ("helix", "strand", "other"), letters=Q3),
    Target(
        "q8",
        "classes",
        (
            "3-10 helix (G)",
            "alpha helix (H)",
            "pi helix (I)",
            "strand (E)",
            "bridge (B)",
            "bend (S)",
            "turn (T)",
            "other (C)",
        ),
        letters=Q8,
    ),
)
VIEWS = {
    "cb513": View(
        "cb513",
        "CB513",
        note="CB513's 511 domains stand here as whole chains, 432 different ones: residues of a "
        "chain with several domains count several times (140,486 instead of 103,622).",
    ),
    "cb513_own_mask": View(
        "cb513",
        "CB513, own mask",
        mark="own_mask",
        note="CB513 under the mask published with it: each domain once, 83,427 residues.",
    ),
    "cb513_far": View(
        "cb513",
        "CB513, < 25 % identity",
        mark="far",
        note="The chains of CB513 without a significant alignment of 25 % identity or more to any "
        "training or validation chain (MMseqs2, sensitivity 7.5, E < 0.001).",
    ),
    "ts115": View("ts115", "TS115"),
    "casp12": View(
        "casp12", "CASP12", note="CASP12 has 20 proteins: a difference of a point is noise."
    ),
    "casp13": View(
        "casp13", "CASP13", note="CASP13 has 12 proteins: a difference of a point is noise."
    ),
    "casp14": View(
        "casp14", "CASP14", note="CASP14 has 18 proteins: a difference of a point is noise."
    ),
    "new364": View("new364", "NEW364", note="Eight states are not published with NEW364."),
}
_NOTES = (
    "Residues that the structure does not resolve are not scored, nor those whose state is "
    "unknown: a quarter of the training proteins have no eight states.",
    "Three states of eight: G, H, I helix; E, B strand; the rest other, in all sets (CASP13 and "
    "CASP14 publish I as other, 20 residues).",
    "Of the 511 chains of CB513, 212 align significantly to a training or validation chain at 25 % "
    "identity or more, 111 at 30 %, 11 at 90 %; one stands in training exactly, one in validation, "
    "and one of TS115 in training. TS115 and CASP12 share 4 chains, CASP14 and NEW364 one.",
)

# Q3 of CASP12, TS115, CB513, then Q8 of the same, in percent as published.
_PUBLISHED = """
ProtT5-XL-U50    81 87 86  70 77 74
ProtT5-XL-BFD    77 85 84  66 74 71
ProtT5-XXL-U50   79 86 85  68 75 72
ProtT5-XXL-BFD   78 85 83  66 73 70
ProtBert-BFD     76 84 83  65 73 70
ProtBert         75 83 81  63 72 66
ProtAlbert       74 82 79  62 70 65
ProtXLNet        73 81 78  62 69 63
ProtElectra-Gen  73 78 76  60 66 61
ProtElectra-Dis  74 81 79  62 69 65
ProtTXL          71 76 74  59 64 59
ProtTXL-BFD      72 75 77  60 65 60
"""
_CITED = "Elnaggar et al. 2021, CNN head, rounded as in the authors' table"


def load() -> Benchmark:
    """The benchmark; nothing is read yet."""
    return Benchmark(
        name="secondary_structure",
        title="Secondary structure",
        level="residue",
        targets=TARGETS,
        splits={name: partial(_split, of_file) for name, of_file in _SPLITS.items()},
        views=VIEWS,
        licence="NetSurfP-2.0 and NEW364 as in FLIP: AFL-3.0, raw data CC BY 4.0; CB513 and TS115 "
        "as in PS4: CC0-1.0; CASP as in pbc: AFL-3.0, data CC BY 4.0; eight states of "
        "promod3-data: Apache-2.0; PDB: CC0-1.0",
        source="Klausen et al. 2019, doi:10.1002/prot.25674 (training and validation); Cuff and "
        "Barton 1999 (CB513); Yang et al. 2018 (TS115); CASP12, 13, 14; Elnaggar et al. 2021, "
        "doi:10.1109/TPAMI.2021.3095381 (NEW364)",
        notes=_NOTES,
        paper=tuple(_published()),
    )


def _published() -> list[PaperRow]:
    columns = [(test, q) for q in ("q3", "q8") for test in ("casp12", "ts115", "cb513")]
    rows = []
    for line in _PUBLISHED.strip().splitlines():
        model, *numbers = line.split()
        rows += [
            PaperRow(model, test, q, float(number), _CITED)
            for (test, q), number in zip(columns, numbers, strict=True)
        ]
    return rows


@cache
def _split(name: str) -> list[LabelledProtein]:
    return [_protein(chain) for chain in bundled.secondary_structure(name)]


def _protein(chain: bundled.LabelledChain) -> LabelledProtein:
    resolved = codes(chain.mask, "01") == 1
    q3 = codes(chain.q3, Q3)
    q8 = codes(chain.q8 or "-" * len(chain.seq), Q8)
    if chain.split in ("casp13", "casp14"):
        q3 = np.where(q8 == UNKNOWN, q3, Q3_OF_Q8[q8])
    labels = {name: np.where(resolved, q, np.int8(UNKNOWN)) for name, q in (("q3", q3), ("q8", q8))}
    marks = {}
    if chain.cb513_mask is not None:
        marks["own_mask"] = codes(chain.cb513_mask, "01") == 1
    if chain.identity is not None:
        marks["far"] = np.full(len(chain.seq), chain.identity < FAR)
    sequence = normalise(chain.seq, AS_WRITTEN, record=chain.id)
    return LabelledProtein(chain.id, sequence, labels, marks)


def codes(letters: str, alphabet: str) -> np.ndarray:
    """int8 index of each letter in an alphabet, -1 where it is not part of it."""
    table = np.full(256, UNKNOWN, np.int8)
    table[np.frombuffer(alphabet.encode("ascii"), np.uint8)] = np.arange(len(alphabet))
    return table[np.frombuffer(letters.encode("ascii"), np.uint8)]
