"""Runs proteins through a frozen model and hands back what was asked for, protein by protein.

Data parallel over the devices of a mesh: every device has the parameters, and its share of a
batch's rows. A CPU runs as many batches at once as it has cores: within one batch they wait for
each other half of the time. What a protein gives does not depend on the others of its row or batch,
so neither does an embedding.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding import memory
from protlm_jax.evaluation.embedding.plan import (
    Batch,
    Shape,
    Window,
    packed,
    packs,
    padded,
    windows,
)
from protlm_jax.evaluation.embedding.rows import Arrays, Joined, Spot, filled, of_piece
from protlm_jax.evaluation.embedding.wanted import Dtype, Wanted, cls_place
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.partitioning import batch_sharding, make_mesh, replicated

Piece = tuple[int, Window]


def for_reading(loaded: LoadedModel, dtype: Dtype | None = None) -> LoadedModel:
    """The same model with the attention that suits inference here, computing in `dtype`.

    Parameters stay float32; None leaves the dtype as it is.
    """
    backend = "chunked" if jax.default_backend() == "cpu" else loaded.config.attention_backend
    return loaded.with_config(attention_backend=backend, dtype=dtype or loaded.config.dtype)


@dataclass
class Engine:
    """A model on its devices.

    Attributes:
        loaded: the model.
        wanted: what is computed.
        limit: residues that go through the model at once; None without a limit.
        shapes: of the batches, as `packed_shapes` or `choose_shapes` found them for all proteins to
            come.
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
        batches = [
            batch
            for batch in (packed if self.packs else padded)(lengths, self.shapes)
            if any(pieces[m][0] not in done for m in batch.members)
        ]
        begun: dict[int, Joined] = {}
        for members, spots, arrays in self._forward(batches, sequences, pieces):
            complete = []
            for member, spot in zip(members, spots, strict=True):
                protein, window = pieces[member]
                if protein in done:
                    continue
                if protein not in begun:
                    begun[protein] = Joined(self.wanted, len(sequences[protein]))
                begun[protein].add(window, of_piece(self.wanted, arrays, spot))
                if begun[protein].left == 0:
                    complete.append((protein, begun.pop(protein).finish()))
            yield complete

    @property
    def packs(self) -> bool:
        """Whether a row has several proteins."""
        return packs(self.loaded.config)

    @property
    def at_once(self) -> int:
        """How many batches are computed at the same time: one for each core that a device has."""
        if jax.default_backend() != "cpu":
            return 1
        cores = (os.cpu_count() or 1) // self.mesh.size
        largest = memory.batch_bytes(self.loaded, self.wanted, self.shapes, self.mesh.size)
        return max(1, min(cores, memory.activation_budget(self.loaded) // largest))

    def _forward(
        self, batches: list[Batch], sequences: Sequence[str], pieces: list[Piece]
    ) -> Iterator[tuple[list[int], list[Spot], Arrays]]:
        """Runs all batches, in order; one is fetched while the next ones are under way."""
        if not batches:
            return
        count = self.at_once
        waiting: deque[tuple[Batch, Future[tuple[list[Spot], dict[str, jax.Array]]]]] = deque()
        with ThreadPoolExecutor(count) as pool:

            def fetched() -> tuple[list[int], list[Spot], Arrays]:
                batch, started = waiting.popleft()
                with _enough_memory(batch.shape):
                    spots, arrays = started.result()
                    return batch.members, spots, {k: np.asarray(a) for k, a in arrays.items()}

            for batch in batches:
                own = [(sequences[i], w) for i, w in (pieces[m] for m in batch.members)]
                waiting.append((batch, pool.submit(self._start, batch, own, count > 1)))
                if len(waiting) > count:
                    yield fetched()
            while waiting:
                yield fetched()

    def _start(
        self, batch: Batch, members: list[tuple[str, Window]], wait: bool
    ) -> tuple[list[Spot], dict[str, jax.Array]]:
        """Sends a batch on its way, and, with `wait`, sees it there."""
        shape = batch.shape
        features, spots = filled(self.loaded, [len(row) for row in batch.rows], members, shape)
        kept = np.zeros((shape.rows, shape.length), bool)
        places = np.zeros((shape.rows, 1), np.int32)
        for spot in spots:
            kept[spot.row, spot.start : spot.stop] = True
            places[spot.row] = spot.cls
        inputs = jax.device_put((features, kept, places), batch_sharding(self.mesh, shape.rows))
        self.used.add(shape)
        found = _run(self.loaded.model, self.wanted, self.packs, self.mesh, self._params, *inputs)
        return spots, jax.block_until_ready(found) if wait else found


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(
    model: Any, wanted: Wanted, packed: bool, mesh: Mesh, params: Any, *inputs: Any
) -> dict[str, jax.Array]:
    """`_streams` and, where a row is one piece, what is asked of it, on every device for its rows.

    Args:
        inputs: features, which tokens are kept [rows, length], and the place of the classification
            token [rows, 1].

    Returns:
        Of each row: "residues" [rows, layers, length, d_model], and sums, maxima and the
        classification token [rows, layers, d_model] float32; of packed rows "residues" float32
        alone, from which the host takes the rest.
    """

    def of_rows(params: Any, features: Any, kept: jax.Array, places: jax.Array) -> Any:
        streams = _streams(model, wanted, params, features)
        wide = streams.astype(jnp.float32)
        if packed:
            return {"residues": wide}
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

    rows = batch_sharding(mesh, inputs[1].shape[0]).spec
    whole = jax.sharding.PartitionSpec()
    specs = (whole, rows, rows, rows)
    return jax.shard_map(of_rows, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(
        params, *inputs
    )


def _streams(model: Any, wanted: Wanted, params: Any, features: Any) -> jax.Array:
    """The layers that are asked for: [rows, layers, length, d_model]."""
    if wanted.layers == (model.config.num_layers,):
        return model.apply({"params": params}, features, method="hidden")[:, None]
    streams = model.apply({"params": params}, features, method="every_layer")
    return jnp.swapaxes(streams[jnp.asarray(wanted.layers)], 0, 1)


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

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            raise ProtlmError(
                f"the device has too little memory for a batch of {self.shape.rows} rows of "
                f"{self.shape.length} tokens: choose fewer tokens per batch or a shorter window; "
                "what is done is kept"
            ) from error
