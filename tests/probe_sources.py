"""Features and labels that tests make, as heads read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from protlm_jax.evaluation.probe_data.base import LabelledProtein, Level, Target
from protlm_jax.evaluation.probes.features import ROWS, FeatureBatch, FeatureSource, Store, shape


@dataclass(frozen=True)
class ArraySource:
    """A `FeatureSource` of arrays.

    Attributes:
        features: [N, rows, D] float32.
        offsets: [proteins + 1]: protein i has the rows offsets[i] to offsets[i + 1]; if all have
            one row, they are pooled.
        labels: target -> [rows] if `level` is "residue", [proteins] if it is "protein".
        level: what carries a label.
        rows: of a batch.
    """

    features: np.ndarray
    offsets: np.ndarray
    labels: Mapping[str, np.ndarray]
    level: Level
    rows: int = ROWS

    @property
    def num_inputs(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        return self.features.shape[2]

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("mean",) if (np.diff(self.offsets) == 1).all() else ("residues",)

    def read(self, sequences: Sequence[str]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """As a `Reader`: the number of a protein stands at the beginning of its sequence."""
        (way,) = self.vectors
        for index, sequence in enumerate(sequences):
            rows = self.features[:, slice(*self.offsets[int(sequence.rstrip("A")) :][:2])]
            yield index, {way: rows if way == "residues" else rows[:, 0]}

    def batches(self, epoch_seed: int | None) -> Iterator[FeatureBatch]:
        targets = [
            Target(
                name, "number" if np.issubdtype(values.dtype, np.floating) else "classes", ("a",)
            )
            for name, values in self.labels.items()
        ]
        proteins = []
        for i, (start, stop) in enumerate(zip(self.offsets, self.offsets[1:], strict=False)):
            place = slice(start, stop) if self.level == "residue" else i
            labels = {name: values[place] for name, values in self.labels.items()}
            proteins.append(LabelledProtein(f"p{i}", str(i).ljust(stop - start, "A"), labels))
        store = Store(self, proteins, keep=1 << 30)  # type: ignore[arg-type]
        source = FeatureSource(store, targets, self.level, self.vectors[0])  # type: ignore[arg-type]
        source.rows, source.slots = shape(source.sizes, self.rows)
        return source.batches(epoch_seed)
