"""What heads read: the features of a split, in batches of one shape.

A `Store` holds the features of one split as far as they fit in its share of memory; the rest is
computed again whenever it is read, once in an epoch for all layers and seeds together. A `Source`
lays proteins into batches. What is in a batch depends on lengths and the epoch's seed alone, so the
numbers are the same whether features were kept or not.

Letters: N inputs (layers), T rows of a batch, D features, P proteins of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.spec import Arrays, Vectors
from protlm_jax.evaluation.finite import not_finite
from protlm_jax.evaluation.probe_data import UNKNOWN, LabelledProtein, Target
from protlm_jax.evaluation.probes.batches import Batch, no_features, packed, shape
from protlm_jax.evaluation.probes.readers import ModelReader, Reader

_SHARE = 0.25  # of the machine's memory
_BYTES = 4


def memory_budget() -> int:
    """Bytes of features that are kept unless someone says otherwise: a quarter of the memory."""
    return int(_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


@dataclass
class Store:
    """The features of one split.

    Attributes:
        reader: where they come from.
        proteins: of the split.
        keep: bytes that may stay in memory between passes; means come first.
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
        each = self.reader.num_inputs * self.reader.width * _BYTES
        rows = {"mean": np.ones_like(self.lengths), "residues": self.lengths}
        kinds: tuple[Vectors, ...] = ("mean", "residues")
        self.bytes = {v: rows[v] * each for v in kinds if v in self.reader.vectors}

    @property
    def total_bytes(self) -> int:
        """Of all its features."""
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
        """Cuts a sequence of batches where what must be computed for them is too much at once."""
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
        """What stays in memory, of as many proteins as fit; computed when first asked for."""
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
        """The features of these proteins.

        Raises:
            NotFinite: the model gives NaN or infinity for one of them.
        """
        from tqdm import tqdm

        if not missing:
            return {}
        total = int(self.lengths[missing].sum())
        self.computed += total
        sequences = [self.proteins[i].sequence for i in missing]
        found: dict[int, Arrays] = {}
        quiet = None if self.progress else True  # None draws on a terminal only
        with tqdm(total=total, unit="aa", unit_scale=True, desc="embed", disable=quiet) as bar:
            for index, arrays in self.reader.read(sequences):
                if not all(np.isfinite(values).all() for values in arrays.values()):
                    raise self._not_finite(self.proteins[missing[index]])
                found[missing[index]] = arrays
                bar.update(len(sequences[index]))
        return found

    def _not_finite(self, protein: LabelledProtein) -> ProtlmError:
        """What is wrong with features that are not finite."""
        if isinstance(self.reader, ModelReader):
            loaded = self.reader.embedder.loaded
            return not_finite(loaded, protein.sequence, protein.id, "the embedding")
        return ProtlmError(f"the features of {protein.id!r} are not finite")


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
        for together, features in self.store.groups(batches, self.vectors):
            for members in together:
                yield self._lay(members, features)

    def _lay(self, members: np.ndarray, features: dict[int, Arrays]) -> Laid:
        """Proteins end to end."""
        x = no_features(self.num_inputs, self.rows, self.width)
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
