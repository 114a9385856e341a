"""Features of labelled proteins, all layers side by side, in batches of one shape.

A `Reader` gives features: the layers of a frozen model in one pass, or `controls.TableReader`. A
`Store` keeps the features of one split as far as its memory allows and computes the others anew
in every pass. A `FeatureSource` packs proteins into batches that depend only on lengths and the
epoch's seed: the numbers are the same whether features were kept or not.

Letters: N inputs (layers), T rows of a batch, D features, P protein slots of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.embedder import Embedder
from protlm_jax.evaluation.embedding.spec import Arrays, Dtype, EmbeddingSpec, Vectors
from protlm_jax.evaluation.engine import for_reading
from protlm_jax.evaluation.finite import not_finite
from protlm_jax.evaluation.probe_data import UNKNOWN, LabelledProtein, Target
from protlm_jax.evaluation.probes.controls import TableReader
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import normalise

ROWS = 4096  # residues of a batch
POOLED = 256  # proteins of a batch if each is one row: many small steps, as proteins are few
_SHARE = 0.25  # of the machine's memory
_BYTES = 4  # of a float32


@dataclass
class ModelReader:
    """Some layers of a model, in one pass; long proteins through windows."""

    embedder: Embedder

    def __post_init__(self) -> None:
        self.num_inputs = len(self.embedder.spec.layers)
        self.width = self.embedder.loaded.config.d_model
        self.vectors = self.embedder.spec.vectors

    def read(self, sequences: Sequence[str]) -> Iterator[tuple[int, Arrays]]:
        """(index, {"residues": [N, residues, D], "mean": [N, D]} float32), in any order."""
        policy = self.embedder.loaded.policy
        plain = [normalise(s, policy, record=f"{s[:20]}...") for s in sequences]
        for complete in self.embedder.embed(plain):
            for index, arrays in complete:
                if self.num_inputs == 1:  # the engine leaves the axis of a single layer out
                    arrays = {name: values[None] for name, values in arrays.items()}
                yield index, arrays


Reader = ModelReader | TableReader  # N inputs of D features


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


@dataclass(frozen=True)
class FeatureBatch:
    """Whole proteins, end to end.

    Attributes:
        features: [N, T, D] float32, not standardised; undefined where there is no protein.
        protein: [T] int32, the batch's protein of each row, ascending from 0; -1 in padding.
        labels: target -> classes (-1 unknown) or numbers (nan unknown): [T] if residues carry
            labels, [P] if proteins do.
        slots: P, more than any `protein`, the same for all batches; if pooled, P = T.
        members, starts: [proteins] their places in the split, and the first row of each.
    """

    features: np.ndarray
    protein: np.ndarray
    labels: Mapping[str, np.ndarray]
    slots: int
    members: np.ndarray
    starts: np.ndarray


@dataclass
class Store:
    """The features of one split.

    Attributes:
        keep: bytes that stay in memory between passes; means before residues.
        hold: bytes computed together of what does not stay; more means better sorted batches.
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
        each = self.reader.num_inputs * self.reader.width * _BYTES
        rows = {"mean": np.ones_like(self.lengths), "residues": self.lengths}
        kinds: tuple[Vectors, ...] = ("mean", "residues")
        self.bytes = {v: rows[v] * each for v in kinds if v in self.reader.vectors}

    @property
    def total_bytes(self) -> int:
        return int(sum(each.sum() for each in self.bytes.values()))

    @property
    def passes(self) -> float:
        """How often its proteins went through the reader, on average over residues."""
        return self.computed / max(1, int(self.lengths.sum()))

    def groups(
        self, batches: Sequence[np.ndarray], vectors: Vectors
    ) -> Iterator[tuple[Sequence[np.ndarray], dict[int, Arrays]]]:
        """Consecutive batches of members, and the features of all that are in them."""
        kept = self._keep()

        def missing(members: np.ndarray) -> list[int]:
            return [i for i in members.tolist() if vectors not in kept.get(i, {})]

        for part in self._parts(batches, missing):
            found = self._compute([i for members in part for i in missing(members)])
            yield part, kept | found

    def _parts(
        self, batches: Sequence[np.ndarray], missing: Callable[[np.ndarray], list[int]]
    ) -> Iterator[Sequence[np.ndarray]]:
        """Cuts a sequence of batches so that what is computed for a part fits into `hold`."""
        each = np.sum(list(self.bytes.values()), axis=0)
        first, held = 0, 0
        for last, members in enumerate(batches):
            more = int(np.sum(each[missing(members)]))
            if held and held + more > self.hold:
                yield batches[first:last]
                first, held = last, 0
            held += more
        yield batches[first:]

    def _keep(self) -> dict[int, Arrays]:
        """The features that stay in memory, computed when first needed."""
        if self._kept is None:
            room = self.keep
            fitting: dict[Vectors, int] = {}
            for vectors, each in self.bytes.items():
                fitting[vectors] = int(np.searchsorted(np.cumsum(each), room, side="right"))
                room -= int(each[: fitting[vectors]].sum())
            whole, partly = min(fitting.values()), max(fitting.values())
            self._kept = self._compute(list(range(whole)))
            rest = [np.array([i]) for i in range(whole, partly)]
            for part in self._parts(rest, np.ndarray.tolist) if rest else ():
                for i, arrays in self._compute(np.concatenate(part).tolist()).items():
                    self._kept[i] = {v: arrays[v] for v in fitting if i < fitting[v]}
        return self._kept

    def _compute(self, missing: Sequence[int]) -> dict[int, Arrays]:
        """The features of these proteins; NotFinite where the model gives NaN or infinity."""
        from protlm_jax.process.progress import Bar

        if not missing:
            return {}
        total = int(self.lengths[missing].sum())
        self.computed += total
        sequences = [self.proteins[i].sequence for i in missing]
        found: dict[int, Arrays] = {}
        with Bar(total=total, unit="aa", unit_scale=True, desc="embed", show=self.progress) as bar:
            for index, arrays in self.reader.read(sequences):
                if not all(np.isfinite(values).all() for values in arrays.values()):
                    protein, reader = self.proteins[missing[index]], self.reader
                    if not isinstance(reader, ModelReader):
                        raise ProtlmError(f"the features of {protein.id!r} are not finite")
                    loaded = reader.embedder.loaded
                    raise not_finite(loaded, protein.sequence, protein.id, "the embedding")
                found[missing[index]] = arrays
                bar.update(len(sequences[index]))
        return found


@dataclass
class FeatureSource:
    """Labelled features that can be read again and again, in batches of one shape.

    Attributes:
        level: what carries a label, "residue" or "protein".
        vectors: what a row is, a residue ("residues") or a whole protein ("mean").

    Raises:
        ProtlmError: a label is infinite.
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
        if self.vectors == "residues":  # the same for splits of like lengths: one program
            self.slots = 1 << (self.slots - 1).bit_length()
        for target in self.targets:
            for protein in self.store.proteins if target.kind == "number" else ():
                if np.isinf(protein.labels.get(target.name, 0.0)).any():
                    raise ProtlmError(
                        f"{protein.id!r}: the label {target.name!r} is infinite: give a number, or "
                        "none where it is not known"
                    )

    def batches(self, epoch_seed: int | None) -> Iterator[FeatureBatch]:
        """All proteins once, in an order of the seed; None: in the order of the split."""
        count = len(self.store.proteins)
        order = np.arange(count)
        if epoch_seed is not None:
            order = np.random.default_rng(epoch_seed).permutation(count)
        batches = list(packed(self.sizes, order, self.rows, self.slots))
        for together, features in self.store.groups(batches, self.vectors):
            for members in together:
                yield self._batch(members, features)

    def _batch(self, members: np.ndarray, features: dict[int, Arrays]) -> FeatureBatch:
        x = _aligned_zeros(self.num_inputs, self.rows, self.width)
        protein = np.full(self.rows, -1, np.int32)
        size = self.rows if self.level == "residue" else self.slots
        labels = {
            t.name: np.full(size, np.nan, np.float32)
            if t.kind == "number"
            else np.full(size, UNKNOWN, np.int32)
            for t in self.targets
        }
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
        return FeatureBatch(x, protein, labels, self.slots, members, starts)


def memory_budget() -> int:
    """Bytes of features that are kept by default: a quarter of the machine's memory."""
    return int(_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def shares(train: int, valid: int, budget: int) -> tuple[int, int, int]:
    """Bytes that stay of the training and validation features, and bytes computed at a time.

    Where not all fit, a quarter of the budget is for what is computed at a time, and validation,
    which every epoch reads as well, is kept before training.
    """
    if train + valid <= budget:
        return train, valid, 1 << 28
    hold = budget // 4
    kept = min(valid, budget - hold)
    return budget - hold - kept, kept, hold


def shape(lengths: np.ndarray, rows: int = ROWS) -> tuple[int, int]:
    """T and P of batches of proteins of these lengths, T at most `rows` if the longest fits."""
    total = int(lengths.sum())
    if lengths.max() == 1:  # pooled: batches of like size, the last one not a mere handful
        size = -(-total // -(-total // min(rows, POOLED)))
        return size, size
    size = max(min(rows, total), int(lengths.max()))
    return size, -(-3 * size * len(lengths) // (2 * total))


def packed(lengths: np.ndarray, order: np.ndarray, rows: int, slots: int) -> Iterator[np.ndarray]:
    """Members of each batch: proteins in the given order, as many as have rows and slots."""
    start, used = 0, 0
    for end, protein in enumerate(order):
        if end > start and (used + lengths[protein] > rows or end - start == slots):
            yield order[start:end]
            start, used = end, 0
        used += lengths[protein]
    if len(order):
        yield order[start:]


def _aligned_zeros(inputs: int, rows: int, width: int) -> np.ndarray:
    """[N, T, D] float32 at a multiple of 64 bytes, which JAX reads without a copy on CPUs."""
    count = inputs * rows * width
    memory = np.zeros(count + 16, np.float32)
    begin = -memory.ctypes.data % 64 // 4
    return memory[begin : begin + count].reshape(inputs, rows, width)
