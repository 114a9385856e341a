"""Secondary structure of the bundled proteins as arrays of classes.

Counted here (proteins, resolved residues):

    train   9,712  2,319,963   NetSurfP-2.0 as FLIP splits it; Q8 for 7,277 proteins
    valid   1,080    262,853   for choosing; Q8 for 822 proteins
    new364    364     75,402   Q3 only
    cb513     511    140,486   57 proteins hit train at >= 30 % identity, 7 at >= 90 %
    ts115     115     27,501
    casp12     20      6,004   20 proteins: a difference of a point is noise

Scores count every resolved residue. CB513's own stricter mask, which keeps 83,427 residues, is not
applied; results say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protlm_jax import bundled
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import normalise

Q3 = "HEC"
Q8 = "GHIEBSTC"
UNKNOWN = -1
TEST_SETS = ("cb513", "ts115", "casp12", "new364")
_SPLITS = {"new364": "test_new364"}


@dataclass(frozen=True)
class StructuredProtein:
    """A protein whose secondary structure is known.

    Attributes:
        id: name of the chain.
        sequence: normalised residues (rare ones as X).
        q3: [residues] int8 class in `Q3`; -1 where the residue is not resolved.
        q8: [residues] int8 class in `Q8`; -1 where unresolved or unknown.
    """

    id: str
    sequence: str
    q3: np.ndarray
    q8: np.ndarray


def load(name: str) -> list[StructuredProtein]:
    """The proteins of "train", "valid" or one of `TEST_SETS`, in the order of the file.

    Raises:
        ProtlmError: there is no such set.
    """
    if name not in ("train", "valid", *TEST_SETS):
        known = ", ".join(("train", "valid", *TEST_SETS))
        raise ProtlmError(f"no secondary-structure set {name!r}; there is {known}")
    return [_protein(chain) for chain in bundled.secondary_structure(_SPLITS.get(name, name))]


def subset(
    proteins: Sequence[StructuredProtein], count: int | None, seed: int
) -> list[StructuredProtein]:
    """`count` proteins drawn without replacement, in their old order; all if None or too many.

    The first n of a draw of m > n are not the draw of n: compare runs of one count only.
    """
    if count is None or count >= len(proteins):
        return list(proteins)
    chosen = np.random.default_rng(seed).choice(len(proteins), size=count, replace=False)
    return [proteins[i] for i in np.sort(chosen)]


def _protein(chain: bundled.LabelledChain) -> StructuredProtein:
    sequence = normalise(chain.seq, record=chain.id)
    resolved = _codes(chain.mask, "01") == 1
    return StructuredProtein(
        id=chain.id,
        sequence=sequence,
        q3=np.where(resolved, _codes(chain.q3, Q3), np.int8(UNKNOWN)),
        q8=np.where(resolved, _codes(chain.q8 or "-" * len(sequence), Q8), np.int8(UNKNOWN)),
    )


def _codes(letters: str, alphabet: str) -> np.ndarray:
    """int8 index of each letter in an alphabet, -1 where it is not part of it."""
    table = np.full(256, UNKNOWN, np.int8)
    table[np.frombuffer(alphabet.encode("ascii"), np.uint8)] = np.arange(len(alphabet))
    return table[np.frombuffer(letters.encode("ascii"), np.uint8)]
