"""What heads read: the layers of a frozen model, or a table of residues, in batches of one shape.

A `Reader` turns sequences into features, all layers in one pass of the model. A `Store` holds the
features of one split as far as they fit in its share of memory; the rest is computed again whenever
it is read, once in an epoch for all layers and seeds together. A `Source` lays proteins into
batches. What is in a batch depends on lengths and the epoch's seed alone, so the numbers are the
same whether features were kept or not.

Letters: N inputs (layers), T rows of a batch, D features, P proteins of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from protlm_jax.evaluation.embedding.engine import Arrays, Engine, for_reading
from protlm_jax.evaluation.embedding.sequences import make_engine
from protlm_jax.evaluation.embedding.wanted import Dtype, Vectors, Wanted
from protlm_jax.evaluation.probe_data import UNKNOWN, LabelledProtein, Target
from protlm_jax.evaluation.probes.batches import Batch, packed, shape
from protlm_jax.evaluation.probes.controls import TABLES, rows_of
from protlm_jax.models.loaded import LoadedModel

_SHARE = 0.25  # of the machine's memory
_BYTES = 4


def memory_budget() -> int:
    """Bytes of features that are kept unless someone says otherwise: a quarter of the memory."""
    return int(_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


class Reader(Protocol):
    """Turns sequences into features.

    Attributes:
        num_inputs: N.
        width: D.
        vectors: which arrays it gives of a protein, "residues" or "mean" or both.
    """

    num_inputs: int
    width: int
    vectors: tuple[Vectors, ...]

    def read(self, sequences: Sequence[str]) -> Iterator[tuple[int, Arrays]]:
        """(index, {"residues": [N, residues, D], "mean": [N, D]} float32), in any order."""
        ...


@dataclass
class ModelReader:
    """All asked layers of a model, in one pass; long proteins through windows."""

    engine: Engine

    def __post_init__(self) -> None:
        self.num_inputs = len(self.engine.wanted.layers)
        self.width = self.engine.loaded.config.d_model
        self.vectors = self.engine.wanted.vectors

    def read(self, sequences: Sequence[str]) -> Iterator[tuple[int, Arrays]]:
        for complete in self.engine.embed(sequences):
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
    """A reader whose batches have shapes that suit proteins of these lengths.

    Raises:
        ProtlmError: for a window that does not fit the model.
    """
    wanted = Wanted(layers, vectors)
    lengths = np.asarray(residues, np.int64)
    return ModelReader(
        make_engine(for_reading(loaded, compute), wanted, lengths, window, None, None)
    )


@dataclass
class TableReader:
    """Rows of a table of residues, which know nothing of their neighbours."""

    kind: str
    vectors: tuple[Vectors, ...]

    def __post_init__(self) -> None:
        self.num_inputs = 1
        self.width = TABLES[self.kind].shape[1]

    def read(self, sequences: Sequence[str]) -> Iterator[tuple[int, Arrays]]:
        for index, sequence in enumerate(sequences):
            rows = rows_of(sequence, TABLES[self.kind])
            found = {"residues": rows[None], "mean": rows.mean(axis=0)[None]}
            yield index, {name: found[name] for name in self.vectors}


@dataclass
class Store:
    """The features of one split.

    Attributes:
        reader: where they come from.
        proteins: of the split.
        keep: bytes that may stay in memory between passes.
        hold: bytes computed together of what does not stay; the more, the better it is sorted.
        progress: draw a bar on a terminal while it computes.
        computed: residues that went through the reader so far.
    """

    reader: Reader
    proteins: Sequence[LabelledProtein]
    keep: int
    hold: int = 1 << 28
    progress: bool = False
    computed: int = field(default=0, init=False)
    _kept: dict[int, Arrays] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.lengths = np.array([len(p.sequence) for p in self.proteins], np.int64)
        rows = self.lengths * ("residues" in self.reader.vectors) + ("mean" in self.reader.vectors)
        self.bytes = rows * self.reader.num_inputs * self.reader.width * _BYTES

    @property
    def total_bytes(self) -> int:
        """Of all its features."""
        return int(self.bytes.sum())

    @property
    def passes(self) -> float:
        """How often its proteins went through the reader, on average over residues."""
        return self.computed / max(1, int(self.lengths.sum()))

    def groups(
        self, batches: Sequence[np.ndarray]
    ) -> Iterator[tuple[Sequence[np.ndarray], dict[int, Arrays]]]:
        """Consecutive batches of members, and the features of all that are in them."""
        kept = self._keep()
        first, held = 0, 0
        for last, members in enumerate(batches):
            more = sum(int(self.bytes[i]) for i in members.tolist() if i not in kept)
            if held and held + more > self.hold:
                yield batches[first:last], kept | self._compute(batches[first:last], kept)
                first, held = last, 0
            held += more
        if first < len(batches):
            yield batches[first:], kept | self._compute(batches[first:], kept)

    def _keep(self) -> dict[int, Arrays]:
        """What stays in memory: the first proteins, as many as fit; computed when first asked."""
        if self._kept is None:
            fitting = int(np.searchsorted(np.cumsum(self.bytes), self.keep, side="right"))
            self._kept = self._compute([np.arange(fitting)], {})
        return self._kept

    def _compute(self, batches: Sequence[np.ndarray], kept: dict[int, Arrays]) -> dict[int, Arrays]:
        """The features of the members that are not kept."""
        from tqdm import tqdm

        missing = [i for members in batches for i in members.tolist() if i not in kept]
        total = int(self.lengths[missing].sum())
        if not missing:
            return {}
        self.computed += total
        sequences = [self.proteins[i].sequence for i in missing]
        found: dict[int, Arrays] = {}
        quiet = None if self.progress else True  # None draws on a terminal only
        with tqdm(total=total, unit="aa", unit_scale=True, desc="embed", disable=quiet) as bar:
            for index, arrays in self.reader.read(sequences):
                found[missing[index]] = arrays
                bar.update(len(sequences[index]))
        return found


@dataclass(frozen=True)
class Laid:
    """A batch, and whose rows it has.

    Attributes:
        members: [members] proteins of the split, in the order of the batch's own numbers.
        starts: [members] the first row of each.
        batch: features, proteins and labels.
    """

    members: np.ndarray
    starts: np.ndarray
    batch: Batch


@dataclass
class Source:
    """Batches of one shape, for heads.

    Attributes:
        store: the features.
        targets: whose labels are in a batch.
        level: what carries a label, "residue" or "protein".
        vectors: what a row is, a residue of a protein ("residues") or a whole one ("mean").
    """

    store: Store
    targets: Sequence[Target]
    level: str
    vectors: Vectors

    def __post_init__(self) -> None:
        self.num_inputs = self.store.reader.num_inputs
        self.width = self.store.reader.width
        lengths = self.store.lengths
        self.sizes = np.ones_like(lengths) if self.vectors == "mean" else lengths
        self.rows, self.slots = shape(self.sizes)

    def batches(self, epoch_seed: int | None) -> Iterator[Batch]:
        """One epoch, proteins in an order of the seed; None: in the order of the split."""
        for laid in self.laid(epoch_seed):
            yield laid.batch

    def laid(self, epoch_seed: int | None) -> Iterator[Laid]:
        """The same, with the proteins' places in the split."""
        count = len(self.store.proteins)
        order = np.arange(count)
        if epoch_seed is not None:
            order = np.random.default_rng(epoch_seed).permutation(count)
        batches = list(packed(self.sizes, order, self.rows, self.slots))
        for together, features in self.store.groups(batches):
            for members in together:
                yield self._lay(members, features)

    def _lay(self, members: np.ndarray, features: dict[int, Arrays]) -> Laid:
        """Proteins end to end."""
        x = np.zeros((self.num_inputs, self.rows, self.width), np.float32)
        protein = np.full(self.rows, -1, np.int32)
        labels = {t.name: self._no_labels(t) for t in self.targets}
        ends = np.cumsum(self.sizes[members])
        starts = ends - self.sizes[members]
        for slot, (member, start, stop) in enumerate(zip(members, starts, ends, strict=True)):
            values = features[member][self.vectors]
            x[:, start:stop] = values if self.vectors == "residues" else values[:, None]
            protein[start:stop] = slot
            place = slice(start, stop) if self.level == "residue" else slot
            for target in self.targets:
                known = self.store.proteins[member].labels.get(target.name)
                if known is not None:
                    labels[target.name][place] = known
        return Laid(members, starts, Batch(x, protein, labels, self.slots))

    def _no_labels(self, target: Target) -> np.ndarray:
        size = self.rows if self.level == "residue" else self.slots
        if target.kind == "number":
            return np.full(size, np.nan, np.float32)
        return np.full(size, UNKNOWN, np.int32)


def shares(train: int, valid: int, budget: int) -> tuple[int, int, int]:
    """Bytes that stay of the training and validation features, and bytes computed at a time.

    Where all fit in the budget, all stay. Otherwise a quarter of it is for what is computed at a
    time, and validation, which every epoch reads as well, is kept before training.
    """
    if train + valid <= budget:
        return train, valid, 1 << 28
    hold = budget // 4
    kept = min(valid, budget - hold)
    return budget - hold - kept, kept, hold


def compiled_shapes(readers: Sequence[Reader]) -> int:
    """How many shapes of batches were compiled for these readers, equal ones counted once."""
    used = [r.engine.used for r in readers if isinstance(r, ModelReader)]
    return len(set().union(*used))
