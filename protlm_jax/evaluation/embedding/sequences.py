"""Embeddings: one vector a residue or a protein, the same whatever else is in the batch.

    loaded = load_model("runs/mine")
    for name, vectors in embed_sequences(loaded, {"P1": "MKTAYIAKQR", "P2": "MKVLAAG"}):
        print(name, vectors.shape)  # (residues, d_model)

These are the arrays that `protlm embed` writes; `vectors="mean"` gives one a protein, and
`layers="all"` every depth. Proteins longer than the model takes at once are read through
overlapping windows, each residue from the window in which it is farthest from a cut; they are
counted and listed, never truncated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.batching import default_tokens_per_batch, max_residues, normalised
from protlm_jax.evaluation.embedding import memory
from protlm_jax.evaluation.embedding.engine import Engine, device_mesh, for_reading
from protlm_jax.evaluation.embedding.plan import (
    Shape,
    choose_shapes,
    packed_shapes,
    packs,
    window_counts,
)
from protlm_jax.evaluation.embedding.wanted import Dtype, Vectors, Wanted, resolve_layers
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import ResiduePolicy

_PROTEINS_AT_ONCE = 1024  # how far the stream looks ahead to sort by length,
_BYTES_AT_ONCE = 1 << 28  # and how much of what it finds it holds
LONGEST_ROW = 4096  # tokens, where nobody asks for more
# Batches in the time of a compilation: 2 s for ESM-2 8M on a CPU, where a batch of 2,048 tokens
# takes 0.6 s; an accelerator compiles longer, and runs its batches in a tenth of a second.
_COMPILATION = {"cpu": 4}
_COMPILATION_ELSEWHERE = 64


@dataclass(frozen=True)
class EmbeddingStream:
    """Iterate to get (id, array), in the order of the input; see `embed_sequences`.

    Attributes:
        engine: the model with what is wanted of it.
        sequences: id -> normalised sequence.
        progress: whether to draw a progress bar on a terminal.
        windowed: id -> number of windows, of the proteins that did not fit at once.
    """

    engine: Engine
    sequences: Mapping[str, str]
    progress: bool
    windowed: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        residues = np.array([len(s) for s in self.sequences.values()], np.int64)
        counts = window_counts(residues, self.engine.limit).tolist()
        found = {k: n for k, n in zip(self.sequences, counts, strict=True) if n > 1}
        object.__setattr__(self, "windowed", found)

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        from tqdm import tqdm

        residues = sum(map(len, self.sequences.values()))
        # disable=None draws on a terminal only.
        quiet = None if self.progress else True
        (vectors,) = self.engine.wanted.vectors
        with tqdm(total=residues, unit="aa", unit_scale=True, desc="embed", disable=quiet) as bar:
            for names in self._parts():
                part = [self.sequences[name] for name in names]
                found: dict[int, np.ndarray] = {}
                for complete in self.engine.embed(part):
                    found |= {index: arrays[vectors] for index, arrays in complete}
                    bar.update(sum(len(part[index]) for index, _ in complete))
                for index, name in enumerate(names):
                    yield name, found.pop(index)

    def report(self) -> dict[str, Any]:
        """Plain counts: proteins, residues, window length, and which proteins needed windows."""
        return {
            "proteins": len(self.sequences),
            "residues": sum(map(len, self.sequences.values())),
            "window": self.engine.limit,
            "windowed_proteins": len(self.windowed),
            "windowed": self.windowed,
        }

    def _parts(self) -> Iterator[list[str]]:
        """The names, some at a time."""
        wanted, loaded = self.engine.wanted, self.engine.loaded
        part: list[str] = []
        held = 0
        for name, sequence in self.sequences.items():
            held += memory.result_bytes(loaded, wanted, 1, len(sequence))
            if part and (len(part) == _PROTEINS_AT_ONCE or held > _BYTES_AT_ONCE):
                yield part
                part, held = [], memory.result_bytes(loaded, wanted, 1, len(sequence))
            part.append(name)
        if part:
            yield part


def embed_sequences(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    *,
    layers: str | Sequence[int] = "last",
    vectors: Vectors = "residues",
    dtype: Dtype = "float32",
    window: int | None = None,
    tokens_per_batch: int | None = None,
    devices: int | None = None,
    policy: ResiduePolicy | None = None,
    progress: bool = False,
) -> EmbeddingStream:
    """The frozen representation of proteins, special tokens and padding left out.

    Args:
        loaded: the model.
        sequences: id -> sequence, spaced or not; read under `policy`.
        layers: "last", "all" or numbers, see `wanted.resolve_layers`.
        vectors: "residues", or of the protein "mean", "max" (over residues) or "cls".
        dtype: of the arrays; the model computes in its own.
        window: residues that go through the model at once; see `resolve_window`.
        tokens_per_batch: budget of one batch on each device, with padding; None suits the device.
        devices: how many of this process's devices share the work; None takes all.
        policy: what to do with rare residues and lower case; None: as the model has it.
        progress: draw a progress bar on a terminal.

    Returns:
        A stream of (id, array) in the order of `sequences`, [residues, d_model] or [d_model], and
        [layers, ...] where several are asked for; `len`, `report()` and `windowed` are known before
        anything is computed, and it can be iterated again.

    Raises:
        ProtlmError: for an unknown residue (naming record and position), an impossible window, or
            what the model does not have.
    """
    policy = policy or loaded.policy
    plain = normalised(sequences.items(), policy)
    loaded = for_reading(loaded)
    wanted = Wanted(resolve_layers(loaded, layers), (vectors,), dtype)
    residues = np.array([len(s) for s in plain.values()], np.int64)
    engine = make_engine(loaded, wanted, residues, window, tokens_per_batch, devices)
    return EmbeddingStream(engine, plain, progress)


def make_engine(
    loaded: LoadedModel,
    wanted: Wanted,
    residues: np.ndarray,
    window: int | None = None,
    tokens_per_batch: int | None = None,
    devices: int | None = None,
) -> Engine:
    """An engine for proteins of these lengths; arguments as in `embed_sequences`."""
    mesh = device_mesh(devices)
    limit = resolve_window(loaded, window, len(wanted.layers))
    shapes: list[Shape] = []
    if len(residues):
        longest = residues if limit is None else np.minimum(residues, limit)
        tokens = np.repeat(longest, window_counts(residues, limit)) + loaded.vocabulary.num_specials
        budget = tokens_per_batch or default_tokens_per_batch()
        shapes = _shapes(loaded, tokens, len(wanted.layers), budget, mesh.size)
    return Engine(loaded, wanted, limit, shapes, mesh)


def _shapes(
    loaded: LoadedModel, tokens: np.ndarray, layers: int, budget: int, devices: int
) -> list[Shape]:
    """The shapes of the batches of pieces of so many tokens each."""
    config, room = loaded.config, memory.activation_budget(loaded)
    if packs(config):
        fitting = memory.longest_row(config, room, layers)
        return packed_shapes(tokens, min(budget, fitting), devices)

    def rows_of(length: int) -> int:
        each = memory.row_bytes(config, length, layers)
        fitting = (room - memory.shared_bytes(config, length)) // each
        return devices * max(1, min(budget // length, fitting))

    return choose_shapes(
        tokens,
        rows_of=rows_of,
        width=config.d_model,
        compilation=_COMPILATION.get(jax.default_backend(), _COMPILATION_ELSEWHERE),
        cap=config.max_positions or None,
        multiple=devices,
    )


def resolve_window(loaded: LoadedModel, window: int | None, layers: int = 1) -> int:
    """Residues that go through the model at once: `window`, or the most that it can take.

    That is the least of what its position table holds, where it has one, of what the memory of the
    device holds, and of a row of 4,096 tokens: beyond, attention takes most of the time, and
    models were rarely trained there.

    Raises:
        ProtlmError: for a window that the position table or the memory cannot hold.
    """
    config, specials = loaded.config, loaded.vocabulary.num_specials
    room = memory.activation_budget(loaded)
    fitting = min(memory.longest_row(config, room, layers), LONGEST_ROW) - specials
    limit = max_residues(loaded, window)
    if window is None:
        return fitting if limit is None else min(limit, fitting)
    needed = memory.row_bytes(config, window + specials, layers)
    if needed > memory.device_memory():
        raise ProtlmError(
            f"a window of {window} residues takes about {memory.size(needed)}, and the device"
            f" has {memory.size(memory.device_memory())}: choose less"
        )
    return window
