"""Runs a frozen model over batches of rows, for every verb that reads proteins.

A program is a function (model, params, inputs, *static) of arrays whose first axis is the rows of a
batch. The engine compiles it once per shape and runs it on a mesh: every device has the parameters,
or its share of them where the model was loaded so, and its share of the rows. The result for a
protein does not depend on the other proteins of its row or batch.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from protlm_jax.data.rows import RowBatch, Shape, bucket, one_a_row
from protlm_jax.errors import ProtlmError, one_error
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.partitioning import make_mesh, on_mesh
from protlm_jax.vocabularies import ResiduePolicy, normalise

Program = Callable[..., Any]
AminoAcids = tuple[tuple[int, ...], ...]  # the ids of each of the 20
Function = TypeVar("Function", bound=Callable[..., Any])


class Engine:
    """A model on its devices.

    Attributes:
        loaded: the model.
        mesh: devices that share the rows of a batch, and the parameters where the model has a mesh.
        replicas: into how many parts the rows of a batch are divided.
        used: shapes of the batches that were run.
    """

    def __init__(self, loaded: LoadedModel, *, devices: int | None = 1, params: Any = None) -> None:
        """Places `params` (None: the model's) on so many of this process's devices (None: all).

        A model with a mesh of its own stays on it.

        Raises:
            ProtlmError: there are fewer devices.
        """
        there = jax.local_devices()
        if devices is not None and not 1 <= devices <= len(there):
            raise ProtlmError(f"{devices} devices are not there: choose 1 to {len(there)}")
        self.loaded, self.used = loaded, set[Shape]()
        self.mesh = loaded.mesh or make_mesh({"data": devices or len(there)}, there)
        self.replicas = math.prod(self.mesh.shape[axis] for axis in ("data", "fsdp"))
        params = loaded.params if params is None else params
        whole = NamedSharding(self.mesh, PartitionSpec())
        places = jax.tree.map(lambda own: own.sharding, loaded.params) if loaded.mesh else whole
        self._params = jax.device_put(params, places)

    @property
    def amino_acids(self) -> AminoAcids:
        """Ids of the 20 amino acids, as a static argument of programs."""
        return tuple(map(tuple, self.loaded.vocabulary.amino_acid_columns.tolist()))

    def __call__(self, program: Program, inputs: Any, *static: Any) -> Any:
        """Starts one batch, and returns arrays on the devices without waiting for them.

        A model that computes in float32 multiplies in float32: by default GPUs take TensorFloat32,
        and TPUs bfloat16.
        """
        rows = PartitionSpec(("data", "fsdp")) if self.mesh.size > 1 else PartitionSpec()
        inputs = jax.device_put(inputs, NamedSharding(self.mesh, rows))
        model, mesh = self.loaded.model, self.mesh
        exact = self.loaded.config.dtype == "float32"
        with jax.default_matmul_precision("float32") if exact else contextlib.nullcontext():
            if self.loaded.mesh is None:
                return _run(program, model, static, mesh, self._params, inputs)
            with on_mesh(mesh):
                return _run_divided(program, model, static, mesh, self._params, inputs)

    def run(
        self,
        program: Program,
        batches: Iterable[RowBatch],
        inputs: Callable[[RowBatch], Any],
        *static: Any,
        at_once: int = 1,
        title: str = "",
        progress: bool = False,
    ) -> Iterator[tuple[RowBatch, Any]]:
        """Runs batches in order; a batch is fetched while the next ones are computed.

        `inputs` makes the inputs of the program from a batch; `static` is compiled in; `at_once`
        batches are computed at the same time; `title` and `progress` are of a bar on a terminal.

        Yields:
            A batch and the program's result, as NumPy arrays.

        Raises:
            ProtlmError: the devices have too little memory.
        """
        from protlm_jax.process.progress import Bar

        def start(batch: RowBatch) -> Any:
            self.used.add(batch.shape)
            found = self(program, inputs(batch), *static)
            return jax.block_until_ready(found) if at_once > 1 else found

        def finished() -> tuple[RowBatch, Any]:
            batch, found = waiting.popleft()
            with _enough_memory(batch.shape):
                arrays = jax.device_get(found.result())
            bar.update()
            return batch, arrays

        waiting: deque[tuple[RowBatch, Future[Any]]] = deque()
        batches = list(batches)
        bar = Bar(total=len(batches), desc=title, show=progress)
        with bar, ThreadPoolExecutor(at_once) as pool:
            for batch in batches:
                waiting.append((batch, pool.submit(start, batch)))
                if len(waiting) > at_once:
                    yield finished()
            while waiting:
                yield finished()

    def one_a_row(
        self, tokens: Sequence[int], tokens_per_batch: int | None, sizes: int = 2
    ) -> list[RowBatch]:
        """Batches of one piece a row; None is a budget that suits the device."""
        budget = tokens_per_batch or default_tokens_per_batch()
        cap = self.loaded.config.max_positions or None

        def shape_of(longest: int) -> Shape:
            length = bucket(longest, cap, sizes)
            return Shape(self.replicas * max(1, budget // length), length)

        return list(one_a_row(tokens, shape_of, multiple=self.replicas))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(
    program: Program, model: Any, static: tuple[Any, ...], mesh: Mesh, params: Any, inputs: Any
) -> Any:
    """A program on every device for its rows: loops may take as many steps as these need."""

    def of_rows(params: Any, inputs: Any) -> Any:
        return program(model, params, inputs, *static)

    if mesh.size == 1:
        return of_rows(params, inputs)
    rows = PartitionSpec("data")
    specs = (PartitionSpec(), rows)
    return jax.shard_map(of_rows, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(
        params, inputs
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run_divided(
    program: Program, model: Any, static: tuple[Any, ...], mesh: Mesh, params: Any, inputs: Any
) -> Any:
    """A program whose parameters are divided over the devices; the compiler gathers a layer's."""
    return program(model, params, inputs, *static)


@contextlib.contextmanager
def _enough_memory(shape: Shape) -> Iterator[None]:
    """Turns an allocation error into one that names the remedy."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ProtlmError(
            f"the device has too little memory for a batch of {shape.rows} rows of {shape.length} "
            "tokens: choose fewer tokens per batch or a shorter window; what is done is kept"
        ) from error


def float32_products(function: Function) -> Function:
    """The function with products in float32 on every device; a decorator below `jax.jit`."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("float32"):
            return function(*args, **kwargs)

    return cast(Function, run)


def for_reading(loaded: LoadedModel, dtype: str | None = None) -> LoadedModel:
    """The same model with the attention that suits inference here, computing in `dtype`.

    Parameters stay float32; None leaves the dtype as it is.
    """
    backend = "chunked" if jax.default_backend() == "cpu" else loaded.config.attention_backend
    return loaded.with_config(attention_backend=backend, dtype=dtype or loaded.config.dtype)


def features(
    loaded: LoadedModel, batch: RowBatch, tokens: Sequence[np.ndarray], *, decoder: bool = True
) -> dict[str, np.ndarray]:
    """Features of members with these tokens (special ones included): int32 [rows, length].

    Each member is a segment of its row, with positions of its own. The decoder of an
    encoder-decoder, left out without `decoder`, is fed the true tokens shifted by one.
    """
    pad = loaded.vocabulary.pad_id
    segments = [np.full(len(own), n) for n, own in zip(batch.segments, tokens, strict=True)]
    found = {
        "input_tokens": batch.fill(tokens, pad),
        "segment_ids": batch.fill(segments),
        "positions": batch.fill([np.arange(len(own)) for own in tokens]),
    }
    if not loaded.config.num_decoder_layers:
        return found
    sides = {f"encoder_{name}": array for name, array in found.items()}
    if decoder:
        shifted = [np.concatenate([[pad], own[:-1]]) for own in tokens]
        found["input_tokens"] = batch.fill(shifted, pad)
        sides |= {f"decoder_{name}": array for name, array in found.items()}
    return sides


def normalised(named: Iterable[tuple[str, str]], policy: ResiduePolicy) -> dict[str, str]:
    """Name -> residues, of names and sequences.

    Raises:
        ProtlmError: names all sequences that the policy refuses.
    """
    plain: dict[str, str] = {}
    refused: list[ProtlmError] = []
    for name, sequence in named:
        try:
            plain[name] = normalise(sequence, policy, record=name)
        except ProtlmError as error:
            refused.append(error)
    if refused:
        raise one_error(refused)
    return plain


def max_residues(loaded: LoadedModel, window: int | None = None) -> int | None:
    """Residues that go through the model at once: `window`, or what its position table holds.

    Special tokens are taken off. None: no limit (relative positions and no window).

    Raises:
        ProtlmError: the position table does not hold the window, or it is below 2 residues.
    """
    config = loaded.config
    limit = config.max_positions - loaded.vocabulary.num_specials if config.max_positions else None
    if window is None:
        return limit
    if window < 2 or (limit is not None and window > limit):
        bound = f"between 2 and {limit}" if limit is not None else "at least 2"
        raise ProtlmError(
            f"a window of {window} residues does not fit {loaded.name}: choose {bound}"
        )
    return window


def residues_in_row(loaded: LoadedModel, length: int | None) -> int | None:
    """As `max_residues`, of rows of `length` tokens, special ones included."""
    return max_residues(loaded, None if length is None else length - loaded.vocabulary.num_specials)


def default_tokens_per_batch() -> int:
    """Small batches stay in a CPU's caches (8192 tokens took 1.4 times as long as 2048 with a width
    of 128); accelerators need large ones."""
    return 2048 if jax.default_backend() == "cpu" else 65_536
