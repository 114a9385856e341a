"""Runs proteins through a frozen model and hands back what was asked for, protein by protein.

Data parallel over the devices of a mesh: every device has the parameters, and its share of a
batch's rows. What a row gives does not depend on the other rows, so neither does an embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.batching import Group, encoder_features
from protlm_jax.evaluation.embedding.plan import Shape, Window, batches, windows
from protlm_jax.evaluation.embedding.wanted import Dtype, Wanted, cls_place
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.partitioning import batch_sharding, make_mesh, on_mesh, replicated

Arrays = dict[str, np.ndarray]


def for_reading(loaded: LoadedModel, dtype: Dtype | None = None) -> LoadedModel:
    """The same model with the attention that suits inference here, computing in `dtype`.

    Parameters stay float32; None leaves the dtype as it is.
    """
    backend = "chunked" if jax.default_backend() == "cpu" else loaded.config.attention_backend
    changes = {"attention_backend": backend, "dtype": dtype or loaded.config.dtype}
    model = models.build(loaded.config.replace(**changes))
    return LoadedModel(model, loaded.params, loaded.vocabulary, loaded.name, loaded.left)


@dataclass
class Engine:
    """A model on its devices.

    Attributes:
        loaded: the model.
        wanted: what is computed.
        limit: residues that go through the model at once; None without a limit.
        shapes: of the batches, as `choose_shapes` found them for all proteins to come.
        mesh: devices that share the rows of a batch.
    """

    loaded: LoadedModel
    wanted: Wanted
    limit: int | None
    shapes: Sequence[Shape]
    mesh: Mesh
    used: set[Shape] = field(default_factory=set, init=False)
    _params: Any = field(init=False)

    def __post_init__(self) -> None:
        if "cls" in self.wanted.vectors:
            cls_place(self.loaded.vocabulary, 0)
        self._params = jax.device_put(self.loaded.params, replicated(self.mesh))

    def embed(
        self, sequences: Sequence[str], done: Collection[int] = ()
    ) -> Iterator[list[tuple[int, Arrays]]]:
        """What each batch completes: (index, arrays by vectors), the longest proteins first.

        Args:
            sequences: normalised; they are sorted, so the more of them the better.
            done: indices that are not computed; batches are the same as without it.

        Raises:
            ProtlmError: the devices have too little memory.
        """
        pieces = [(i, w) for i, s in enumerate(sequences) for w in windows(len(s), self.limit)]
        specials = self.loaded.vocabulary.num_specials
        lengths = [w.stop - w.start + specials for _, w in pieces]
        groups = [
            group
            for group in batches(lengths, self.shapes)
            if any(pieces[m][0] not in done for m in group.members)
        ]
        begun: dict[int, _Joined] = {}
        for group, arrays in self._forward(groups, sequences, pieces):
            complete = []
            for row, member in enumerate(group.members):
                protein, window = pieces[member]
                if protein in done:
                    continue
                if protein not in begun:
                    begun[protein] = _Joined(self.wanted, len(sequences[protein]), self._before)
                begun[protein].add(window, {name: a[row] for name, a in arrays.items()})
                if begun[protein].left == 0:
                    complete.append((protein, begun.pop(protein).finish()))
            yield complete

    @property
    def _before(self) -> int:
        return len(self.loaded.vocabulary.prefix_ids)

    def _forward(
        self, groups: list[Group], sequences: Sequence[str], pieces: list[tuple[int, Window]]
    ) -> Iterator[tuple[Group, Arrays]]:
        """Runs all groups; a batch is fetched only after the next one is under way."""
        waiting: tuple[Group, dict[str, jax.Array]] | None = None
        for group in groups:
            members = [pieces[m] for m in group.members]
            with _enough_memory(group):
                started = (group, self._start(group, sequences, members))
            if waiting is not None:
                yield waiting[0], _fetch(*waiting)
            waiting = started
        if waiting is not None:
            yield waiting[0], _fetch(*waiting)

    def _start(
        self, group: Group, sequences: Sequence[str], members: list[tuple[int, Window]]
    ) -> dict[str, jax.Array]:
        """Sends a batch on its way."""
        vocabulary = self.loaded.vocabulary
        tokens = [vocabulary.encode(sequences[i][w.start : w.stop]) for i, w in members]
        kept = np.zeros((group.rows, group.length), bool)
        places = np.zeros((group.rows, 1), np.int32)
        for row, (_, w) in enumerate(members):
            first = self._before + w.keep_start - w.start
            kept[row, first : first + w.keep_stop - w.keep_start] = True
            if "cls" in self.wanted.vectors:
                places[row] = cls_place(vocabulary, len(tokens[row]))
        features = encoder_features(self.loaded, tokens, group)
        inputs = jax.device_put((features, kept, places), batch_sharding(self.mesh, group.rows))
        self.used.add(Shape(group.rows, group.length))
        with on_mesh(self.mesh):
            return _run(self.loaded.model, self.wanted, self._params, *inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(
    model: Any,
    wanted: Wanted,
    params: Any,
    batch: dict[str, jax.Array],
    kept: jax.Array,
    places: jax.Array,
) -> dict[str, jax.Array]:
    """Of each row: "residues" [rows, layers, length, d_model], and sums, maxima and the
    classification token [rows, layers, d_model] float32."""
    if wanted.layers == (model.config.num_layers,):
        streams = model.apply({"params": params}, batch, method="hidden")[:, None]
    else:
        streams = model.apply({"params": params}, batch, method="every_layer")
        streams = jnp.swapaxes(streams[jnp.asarray(wanted.layers)], 0, 1)
    wide = streams.astype(jnp.float32)
    here = kept[:, None, :, None]
    found = {}
    if "residues" in wanted.vectors:
        found["residues"] = streams.astype(wanted.dtype)
    if "mean" in wanted.vectors:
        found["mean"] = jnp.sum(jnp.where(here, wide, 0.0), axis=2)
    if "max" in wanted.vectors:
        found["max"] = jnp.max(jnp.where(here, wide, -jnp.inf), axis=2)
    if "cls" in wanted.vectors:
        found["cls"] = jnp.take_along_axis(wide, places[:, :, None, None], axis=2)[:, :, 0]
    return found


class _Joined:
    """The arrays of one protein, put together from its windows."""

    def __init__(self, wanted: Wanted, residues: int, before: int) -> None:
        self.wanted, self.residues, self.before = wanted, residues, before
        self.left = residues
        self.arrays: Arrays = {}

    def add(self, window: Window, row: Arrays) -> None:
        """Takes the kept residues of one window."""
        kept = window.keep_stop - window.keep_start
        self.left -= kept
        for name, values in row.items():
            if name == "residues":
                first = self.before + window.keep_start - window.start
                if name not in self.arrays:
                    shape = (values.shape[0], self.residues, values.shape[2])
                    self.arrays[name] = np.empty(shape, values.dtype)
                part = self.arrays[name][:, window.keep_start : window.keep_stop]
                part[...] = values[:, first : first + kept]
            elif name not in self.arrays:
                self.arrays[name] = values * kept if name == "cls" else values.copy()
            elif name == "max":
                self.arrays[name] = np.maximum(self.arrays[name], values)
            else:  # a sum; the cls tokens of windows are weighed by the residues they stand for
                self.arrays[name] = self.arrays[name] + values * (kept if name == "cls" else 1)

    def finish(self) -> Arrays:
        """The protein's arrays in their final shape and dtype."""
        dtype = self.wanted.numpy_dtype
        done: Arrays = {}
        for name in self.wanted.vectors:
            values = self.arrays[name]
            if name in ("mean", "cls"):
                values = values / np.float32(self.residues)
            with np.errstate(over="ignore"):  # told apart by who writes it
                values = values.astype(dtype, copy=False)
            done[name] = values[0] if len(self.wanted.layers) == 1 else values
        return done


def device_mesh(devices: int | None) -> Mesh:
    """A mesh of so many of this process's devices; None for all.

    Raises:
        ProtlmError: there are not so many.
    """
    there = jax.local_devices()
    if devices is not None and not 1 <= devices <= len(there):
        raise ProtlmError(f"{devices} devices are not there: choose 1 to {len(there)}")
    return make_mesh({"data": devices or len(there)}, there)


class _enough_memory:
    """Says what to do when a batch does not fit; what was written stays."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            raise ProtlmError(
                f"the device has too little memory for a batch of {self.group.rows} rows of "
                f"{self.group.length} tokens: choose fewer tokens per batch or a shorter window; "
                "what is done is kept"
            ) from error


def _fetch(group: Group, arrays: dict[str, jax.Array]) -> Arrays:
    with _enough_memory(group):
        return {name: np.asarray(values) for name, values in arrays.items()}
