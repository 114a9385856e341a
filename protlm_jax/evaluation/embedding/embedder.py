"""Embeddings of proteins of known lengths by a frozen model, protein by protein.

Where attention skips the keys of other proteins (`packs`), rows of one length hold several.
Elsewhere each protein has a row, of as many lengths as pay for their compilations. A CPU runs as
many batches at once as it has cores: within one batch they wait for each other half of the time.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.data.rows import (
    RowBatch,
    Shape,
    Window,
    bucket,
    one_a_row,
    packed,
    packed_length,
    window_counts,
    windows,
)
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding import memory
from protlm_jax.evaluation.embedding.spec import Arrays, EmbeddingSpec
from protlm_jax.evaluation.engine import Engine, default_tokens_per_batch, features, max_residues
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import Vocabulary

LONGEST_ROW = 4096  # tokens, without a window of the user
_MOST_SHAPES = 8


class Embedder:
    """An engine, and the shapes of batches that suit proteins of known lengths.

    Attributes:
        loaded: the model.
        spec: what is computed.
        limit: residues that go through the model at once.
        engine: the model on its devices.
        shapes: of the batches, shortest first.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        spec: EmbeddingSpec,
        residues: np.ndarray,
        window: int | None = None,
        tokens_per_batch: int | None = None,
        devices: int | None = None,
    ) -> None:
        """Chooses the shapes for proteins of so many residues; see `embed_sequences`."""
        place = _cls_place(loaded.vocabulary)
        if "cls" in spec.vectors and place is None:
            raise ProtlmError(
                f"the vocabulary {loaded.vocabulary.name} puts no classification token around a "
                "protein: take the mean or the maximum over its residues"
            )
        self.loaded, self.spec, self._cls = loaded, spec, place or 0
        self.engine = Engine(loaded, devices=devices)
        self.limit = resolve_window(loaded, window, len(spec.layers))
        self._budget = tokens_per_batch or default_tokens_per_batch()
        self._room = memory.activation_budget(loaded)
        whole = np.minimum(residues, self.limit)
        tokens = np.repeat(whole, window_counts(residues, self.limit))
        tokens = tokens + loaded.vocabulary.num_specials
        rows = self.engine.replicas
        if not len(tokens):
            self.shapes = [Shape(rows, 1)]
        elif self.packs:
            fitting = memory.longest_row(loaded.config, self._room, len(spec.layers))
            self.shapes = [Shape(rows, packed_length(tokens, min(self._budget, fitting), rows))]
        else:
            self.shapes = self._choose_shapes(tokens)

    @property
    def packs(self) -> bool:
        """Whether several proteins share a row: the `chunked` backend skips the keys of others.

        Attention by relative distance (XLNet, Transformer-XL) scores all pairs of a row first.
        """
        config = self.loaded.config
        return config.attention_backend == "chunked" and config.positions != "relative_xl"

    @property
    def at_once(self) -> int:
        """How many batches are computed at the same time: one for each core that a device has."""
        if jax.default_backend() != "cpu":
            return 1
        cores = (os.cpu_count() or 1) // self.engine.mesh.size
        return max(1, min(cores, self._room // self.largest[0]))

    @property
    def largest(self) -> tuple[int, Shape]:
        """Bytes on each device, and shape, of the batch that takes most memory."""
        config, layers = self.loaded.config, len(self.spec.layers)

        def bytes_of(shape: Shape) -> int:
            each = memory.row_bytes(config, shape.length, layers)
            rows = -(-shape.rows // self.engine.replicas)
            return rows * each + memory.shared_bytes(config, shape.length)

        return max((bytes_of(shape), shape) for shape in self.shapes)

    def batches(self, tokens: Sequence[int]) -> list[RowBatch]:
        """The batches of pieces of so many tokens, none longer than the expected ones."""
        if not len(tokens):
            return []
        if self.packs:
            return list(packed(np.asarray(tokens), self.shapes[0]))
        lengths = [shape.length for shape in self.shapes]

        def shape_of(longest: int) -> Shape:
            return self.shapes[bisect.bisect_left(lengths, longest)]

        return list(one_a_row(tokens, shape_of, last_full=True))

    def embed(
        self, sequences: Sequence[str], done: Collection[int] = ()
    ) -> Iterator[list[tuple[int, Arrays]]]:
        """The proteins that each batch completes: (index, arrays by vectors).

        Args:
            sequences: normalised; they are sorted by length, so the more of them the better.
            done: indices that are not computed; the batches stay the same.

        Raises:
            ProtlmError: the devices have too little memory.
        """
        pieces = [(i, w) for i, s in enumerate(sequences) for w in windows(len(s), self.limit)]
        vocabulary = self.loaded.vocabulary
        specials, before = vocabulary.num_specials, len(vocabulary.prefix_ids)
        batches = [
            batch
            for batch in self.batches([w.stop - w.start + specials for _, w in pieces])
            if any(pieces[m][0] not in done for m in batch.members)
        ]

        def inputs(batch: RowBatch) -> Any:
            own = [(sequences[i], w) for i, w in (pieces[m] for m in batch.members)]
            return self._inputs(batch, own)

        begun: dict[int, _Protein] = {}
        static = (self.spec, self.packs)
        run = self.engine.run(_vectors, batches, inputs, *static, at_once=self.at_once)
        for batch, found in run:
            complete = []
            for member, row, start in zip(batch.members, batch.rows, batch.starts, strict=True):
                index, window = pieces[member]
                if index in done:
                    continue
                protein = begun.setdefault(index, _Protein(self.spec, len(sequences[index])))
                first = start + before + window.keep_start - window.start
                residues = slice(first, first + window.keep_stop - window.keep_start)
                cls = start + self._cls % (window.stop - window.start + specials)
                protein.add(window, _of_piece(self.spec, found, row, residues, cls))
                if protein.left == 0:
                    complete.append((index, begun.pop(index).finish()))
            yield complete

    def _inputs(self, batch: RowBatch, pieces: list[tuple[str, Window]]) -> Any:
        """Features, which tokens are kept, and the places of classification tokens [rows, 1]."""
        vocabulary = self.loaded.vocabulary
        tokens = [vocabulary.encode(s[w.start : w.stop]) for s, w in pieces]
        kept = [np.zeros(len(own), np.int32) for own in tokens]
        for own, (_, w) in zip(kept, pieces, strict=True):
            begin = len(vocabulary.prefix_ids) + w.keep_start - w.start
            own[begin : begin + w.keep_stop - w.keep_start] = 1
        places = np.zeros((batch.shape.rows, 1), np.int32)
        places[batch.rows, 0] = [self._cls % len(own) for own in tokens]
        read = features(self.loaded, batch, tokens, decoder=False)
        return read, batch.fill(kept) > 0, places

    def _choose_shapes(self, tokens: np.ndarray) -> list[Shape]:
        """At most eight lengths of rows, which cost least in padding and in compilations."""
        config, devices = self.loaded.config, self.engine.replicas
        # Batches in the time of a compilation: 2 s for ESM-2 8M on a CPU, where a batch of 2,048
        # tokens takes 0.6 s; an accelerator compiles longer, and runs a batch in 0.1 s.
        compilation = 4 if jax.default_backend() == "cpu" else 64

        def rows_of(length: int) -> int:
            room = self._room - memory.shared_bytes(config, length)
            fitting = room // memory.row_bytes(config, length, len(self.spec.layers))
            return devices * max(1, min(self._budget // length, fitting))

        sizes, of_size = np.unique(tokens, return_counts=True)
        rounded = [bucket(size, config.max_positions or None, 16) for size in sizes.tolist()]
        lengths, group = np.unique(rounded, return_inverse=True)
        total = np.concatenate([[0], np.cumsum(np.bincount(group, of_size))])
        work = lengths * (1.0 + lengths / (6.0 * config.d_model))  # projections, and attention
        batch = min(rows_of(n) * w for n, w in zip(lengths.tolist(), work, strict=True))
        # cost[i, j]: of the pieces of lengths i to j in rows of length j.
        cost = (total[None, 1:] - total[:-1, None]) * work[None, :] + compilation * batch
        ends = _cheapest(cost)
        members = np.diff(total[[0, *(end + 1 for end in ends)]]).astype(int).tolist()
        return [
            Shape(min(rows_of(length), -(-count // devices) * devices), length)
            for length, count in zip(lengths[ends].tolist(), members, strict=True)
        ]


def _cheapest(cost: np.ndarray) -> list[int]:
    """The last indices of the runs i..j, at most eight, that cover all at the least sum of costs.

    Dynamic programming over the number of runs and the index at which the last one ends.
    """
    nowhere: tuple[float, list[int]] = (np.inf, [])
    paths = [(0.0, nowhere[1])] + [nowhere] * len(cost)
    complete = []
    for _ in range(_MOST_SHAPES):
        longer = []
        for j in range(len(cost)):
            sums = [paths[i][0] + cost[i, j] for i in range(j + 1)]
            best = int(np.argmin(sums))
            longer.append((float(sums[best]), [*paths[best][1], j]))
        paths = [nowhere, *longer]
        complete.append(longer[-1])
    return min(complete, key=lambda path: path[0])[1]


def _cls_place(vocabulary: Vocabulary) -> int | None:
    """Index of the classification token among a protein's tokens, from the end where negative.

    None where the vocabulary puts none around a protein.
    """
    ids = (*vocabulary.prefix_ids, *vocabulary.suffix_ids)
    found = [i for i, token in enumerate(ids) if "cls" in vocabulary.tokens[token].lower()]
    if not found:
        return None
    return found[0] if found[0] < len(vocabulary.prefix_ids) else found[0] - len(ids)


def resolve_window(loaded: LoadedModel, window: int | None, layers: int = 1) -> int:
    """Residues that go through the model at once: `window`, or the most that it can take.

    That is the least of the position table, what fits in the memory of the device, and a row of
    4,096 tokens: beyond, attention takes most of the time, and models were rarely trained there.

    Raises:
        ProtlmError: for a window that the position table or the memory cannot hold.
    """
    config, specials = loaded.config, loaded.vocabulary.num_specials
    limit = max_residues(loaded, window)
    if window is None:
        room = memory.activation_budget(loaded)
        fitting = min(memory.longest_row(config, room, layers), LONGEST_ROW) - specials
        return fitting if limit is None else min(limit, fitting)
    needed, has = memory.row_bytes(config, window + specials, layers), memory.device_memory()
    if needed > has:
        raise ProtlmError(
            f"a window of {window} residues takes about {memory.size(needed)}, and the device"
            f" has {memory.size(has)}: choose less"
        )
    return window


def _vectors(
    model: Any, params: Any, inputs: Any, spec: EmbeddingSpec, packs: bool
) -> dict[str, jax.Array]:
    """The vectors of each row that is one piece; of packed rows, which the host divides, residues.

    Returns:
        "residues" [rows, layers, length, d_model], and sums, maxima and the classification token
        [rows, layers, d_model] float32.
    """
    read, kept, places = inputs
    if spec.layers == (model.config.num_layers,):
        streams = model.apply({"params": params}, read, method="hidden")[:, None]
    else:
        streams = model.apply({"params": params}, read, method="every_layer")
        streams = jnp.swapaxes(streams[jnp.asarray(spec.layers)], 0, 1)
    wide = streams.astype(jnp.float32)
    if packs:
        return {"residues": wide}
    here = kept[:, None, :, None]
    ways = {
        "residues": lambda: streams.astype(spec.dtype),
        "mean": lambda: jnp.sum(jnp.where(here, wide, 0.0), axis=2),
        "max": lambda: jnp.max(jnp.where(here, wide, -jnp.inf), axis=2),
        "cls": lambda: jnp.take_along_axis(wide, places[:, :, None, None], axis=2)[:, :, 0],
    }
    return {name: ways[name]() for name in spec.vectors}


def _of_piece(spec: EmbeddingSpec, found: Arrays, row: int, residues: slice, cls: int) -> Arrays:
    """The vectors of one piece, by the names of `_vectors`, from the results for its batch."""
    if "residues" not in found:
        return {name: values[row] for name, values in found.items()}
    own = found["residues"][row][:, residues]
    ways = {
        "residues": lambda: own,
        "mean": lambda: own.sum(axis=1, dtype=np.float64).astype(np.float32),
        "max": lambda: own.max(axis=1),
        "cls": lambda: found["residues"][row][:, cls],
    }
    return {n: found[n][row] if n in found and n != "residues" else ways[n]() for n in spec.vectors}


class _Protein:
    """The arrays of one protein, put together from its windows."""

    def __init__(self, spec: EmbeddingSpec, residues: int) -> None:
        self.spec, self.residues = spec, residues
        self.left = residues
        self.arrays: Arrays = {}

    def add(self, window: Window, taken: Arrays) -> None:
        """Takes the kept residues of one window."""
        kept = window.keep_stop - window.keep_start
        self.left -= kept
        for name, values in taken.items():
            before = self.arrays.get(name)
            if name == "residues":
                if before is None:
                    shape = (values.shape[0], self.residues, values.shape[2])
                    before = self.arrays[name] = np.empty(shape, values.dtype)
                before[:, window.keep_start : window.keep_stop] = values
                continue
            if name == "cls":  # weighted by the residues kept of each window
                values = values * kept
            merge = np.maximum if name == "max" else np.add
            self.arrays[name] = values.copy() if before is None else merge(before, values)

    def finish(self) -> Arrays:
        """The protein's arrays in their final shape and dtype."""
        done: Arrays = {}
        for name in self.spec.vectors:
            values = self.arrays[name]
            if name in ("mean", "cls"):
                values = values / np.float32(self.residues)
            with np.errstate(over="ignore"):  # reported where it is written
                values = values.astype(self.spec.numpy_dtype, copy=False)
            done[name] = values[0] if len(self.spec.layers) == 1 else values
        return done
