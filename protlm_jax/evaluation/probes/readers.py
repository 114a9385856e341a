"""Where features come from: the layers of a frozen model in one pass, or a table of residues.

Letters: N inputs (layers), D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from protlm_jax.evaluation.embedding.embedder import Embedder
from protlm_jax.evaluation.embedding.spec import Arrays, Dtype, EmbeddingSpec, Vectors
from protlm_jax.evaluation.engine import for_reading
from protlm_jax.evaluation.probes.controls import TABLES, rows_of
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import normalise


class Reader(Protocol):
    """Turns sequences into features: N inputs of width D, of residues, means or both."""

    num_inputs: int
    width: int
    vectors: tuple[Vectors, ...]

    def read(self, sequences: Sequence[str]) -> Iterator[tuple[int, Arrays]]:
        """(index, {"residues": [N, residues, D], "mean": [N, D]} float32), in any order."""
        ...


@dataclass
class ModelReader:
    """Some layers of a model, in one pass; long proteins through windows."""

    embedder: Embedder

    def __post_init__(self) -> None:
        self.num_inputs = len(self.embedder.spec.layers)
        self.width = self.embedder.loaded.config.d_model
        self.vectors = self.embedder.spec.vectors

    def read(self, sequences: Sequence[str]) -> Iterator[tuple[int, Arrays]]:
        policy = self.embedder.loaded.policy
        plain = [normalise(s, policy, record=f"{s[:20]}...") for s in sequences]
        for complete in self.embedder.embed(plain):
            for index, arrays in complete:
                if self.num_inputs == 1:  # the engine leaves the axis of a single layer out
                    arrays = {name: values[None] for name, values in arrays.items()}
                yield index, arrays


def model_reader(
    loaded: LoadedModel,
    layers: tuple[int, ...],
    vectors: tuple[Vectors, ...],
    residues: Sequence[int],
    window: int | None,
    compute: Dtype = "float32",
) -> ModelReader:
    """A reader whose batches suit proteins of so many residues; ProtlmError for a wrong window."""
    lengths, spec = np.asarray(residues, np.int64), EmbeddingSpec(layers, vectors)
    return ModelReader(Embedder(for_reading(loaded, compute), spec, lengths, window))


@dataclass
class TableReader:
    """A table's row of each residue, whatever its neighbours; `kind` is of `controls.TABLES`."""

    kind: str
    vectors: tuple[Vectors, ...]
    num_inputs: int = 1
    width: int = 21

    def read(self, sequences: Sequence[str]) -> Iterator[tuple[int, Arrays]]:
        for index, sequence in enumerate(sequences):
            rows = rows_of(sequence, TABLES[self.kind])
            found = {"residues": rows[None], "mean": rows.mean(axis=0)[None]}
            yield index, {name: found[name] for name in self.vectors}
