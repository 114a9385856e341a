"""Controls, with which a model's embeddings are compared: inputs that have learned nothing.

random       the same architecture with fresh parameters, through the same heads
one_hot      each residue's letter, through the same heads (read by residue)
composition  a protein's amino-acid frequencies, the mean of its one-hot rows (read pooled)
blosum62     each residue's row of BLOSUM62, or their mean, through the same heads
majority     the most frequent class of the training labels, whatever the protein
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from protlm_jax.evaluation.embedding.spec import Arrays, Vectors
from protlm_jax.evaluation.probe_data import UNKNOWN, LabelledProtein
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS
from protlm_jax.vocabularies.structure import without_structure

BY_RESIDUE = ("random", "one_hot", "blosum62", "majority")
BY_PROTEIN = ("random", "composition", "blosum62", "majority")

# Rows and columns in the order of AMINO_ACIDS, and X last (Henikoff and Henikoff 1992, with the
# row of X that BLAST uses).
_BLOSUM62 = """
 4  0 -2 -1 -2  0 -2 -1 -1 -1 -1 -2 -1 -1 -1  1  0  0 -3 -2
 0  9 -3 -4 -2 -3 -3 -1 -3 -1 -1 -3 -3 -3 -3 -1 -1 -1 -2 -2
-2 -3  6  2 -3 -1 -1 -3 -1 -4 -3  1 -1  0 -2  0 -1 -3 -4 -3
-1 -4  2  5 -3 -2  0 -3  1 -3 -2  0 -1  2  0  0 -1 -2 -3 -2
-2 -2 -3 -3  6 -3 -1  0 -3  0  0 -3 -4 -3 -3 -2 -2 -1  1  3
 0 -3 -1 -2 -3  6 -2 -4 -2 -4 -3  0 -2 -2 -2  0 -2 -3 -2 -3
-2 -3 -1  0 -1 -2  8 -3 -1 -3 -2  1 -2  0  0 -1 -2 -3 -2  2
-1 -1 -3 -3  0 -4 -3  4 -3  2  1 -3 -3 -3 -3 -2 -1  3 -3 -1
-1 -3 -1  1 -3 -2 -1 -3  5 -2 -1  0 -1  1  2  0 -1 -2 -3 -2
-1 -1 -4 -3  0 -4 -3  2 -2  4  2 -3 -3 -2 -2 -2 -1  1 -2 -1
-1 -1 -3 -2  0 -3 -2  1 -1  2  5 -2 -2  0 -1 -1 -1  1 -1 -1
-2 -3  1  0 -3  0  1 -3  0 -3 -2  6 -2  0  0  1  0 -3 -4 -2
-1 -3 -1 -1 -4 -2 -2 -3 -1 -3 -2 -2  7 -1 -2 -1 -1 -2 -4 -3
-1 -3  0  2 -3 -2  0 -3  1 -2  0  0 -1  5  1  0 -1 -2 -2 -1
-1 -3 -2  0 -3 -2  0 -3  2 -2 -1  0 -2  1  5 -1 -1 -3 -3 -2
 1 -1  0  0 -2  0 -1 -2  0 -2 -1  1 -1  0 -1  4  1 -2 -3 -2
 0 -1 -1 -1 -2 -2 -2 -1 -1 -1 -1  0 -1 -1 -1  1  5  0 -2 -2
 0 -1 -3 -2 -1 -3 -3  3 -2  1  1 -3 -2 -2 -3 -2  0  4 -3 -1
-3 -2 -4 -3  1 -2 -2 -3 -3 -2 -1 -4 -4 -2 -3 -3 -2 -3 11  2
-2 -2 -3 -2  3 -3  2 -1 -2 -1 -1 -2 -3 -1 -2 -2 -2 -1  2  7
 0 -2 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1 -2 -1 -1  0  0 -1 -2 -1
"""
BLOSUM62 = np.array(_BLOSUM62.split(), np.float32).reshape(21, 20)
"""[21, 20] float32: a residue's scores against the 20 amino acids; row 20 is X."""

# Of equal width, so that heads of both are one program; heads ignore what never varies.
TABLES = {
    "one_hot": np.eye(21, dtype=np.float32),
    "blosum62": np.pad(BLOSUM62, ((0, 0), (0, 1))),
}
TABLES["composition"] = TABLES["one_hot"]

_ROWS = np.full(256, 20, np.int8)
_ROWS[np.frombuffer(AMINO_ACIDS.encode("ascii"), np.uint8)] = np.arange(20)


def rows_of(sequence: str, table: np.ndarray) -> np.ndarray:
    """[residues, columns]: the table's row of each residue of a normalised sequence."""
    letters = without_structure(sequence).encode("ascii")
    return table[_ROWS[np.frombuffer(letters, np.uint8)]]


@dataclass
class TableReader:
    """A table's row of each residue, whatever its neighbours; `kind` is of TABLES."""

    kind: str
    vectors: tuple[Vectors, ...]
    num_inputs: int = 1
    width: int = 21

    def read(self, sequences: Sequence[str]) -> Iterator[tuple[int, Arrays]]:
        for index, sequence in enumerate(sequences):
            rows = rows_of(sequence, TABLES[self.kind])
            found = {"residues": rows[None], "mean": rows.mean(axis=0)[None]}
            yield index, {name: found[name] for name in self.vectors}


def random_control(loaded: LoadedModel, seed: int) -> LoadedModel:
    """`LoadedModel.reinitialised` under the name that tables show."""
    return loaded.reinitialised(seed, f"{loaded.name} (random initialisation)")


def majority(proteins: Sequence[LabelledProtein], target: str) -> int:
    """The most frequent class among all labels of the training proteins; the first of equals."""
    labels = np.concatenate([np.ravel(p.labels[target]) for p in proteins]).astype(np.int64)
    return int(np.argmax(np.bincount(labels[labels != UNKNOWN])))
