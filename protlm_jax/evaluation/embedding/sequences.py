"""Embeddings in memory: one vector a residue or a protein, independent of the rest of the batch.

    loaded = load_model("runs/mine")
    for name, vectors in embed_sequences(loaded, {"P1": "MKTAYIAKQR", "P2": "MKVLAAG"}):
        print(name, vectors.shape)  # (residues, d_model)

`protlm embed` writes the same arrays. Proteins longer than the model takes at once are read through
overlapping windows, each residue from the window in which it is farthest from a cut; they are
listed, never truncated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from protlm_jax.data.rows import window_counts
from protlm_jax.evaluation.embedding.embedder import Embedder
from protlm_jax.evaluation.embedding.spec import Dtype, EmbeddingSpec, Vectors, resolve_layers
from protlm_jax.evaluation.engine import for_reading, normalised
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import ResiduePolicy

_PROTEINS_AT_ONCE = 1024  # sorted by length together,
_BYTES_AT_ONCE = 1 << 28  # if their results take no more than this


class EmbeddingStream:
    """Iterate to get (id, array), in the order of the input; see `embed_sequences`.

    Attributes:
        embedder: the model, and what is computed.
        sequences: id -> normalised sequence.
        progress: whether to draw a progress bar on a terminal.
        windowed: id -> number of windows, of the proteins that did not fit at once.
    """

    def __init__(self, embedder: Embedder, sequences: Mapping[str, str], progress: bool) -> None:
        self.embedder, self.sequences, self.progress = embedder, sequences, progress
        residues = np.array([len(s) for s in sequences.values()], np.int64)
        counts = window_counts(residues, embedder.limit).tolist()
        self.windowed = {k: n for k, n in zip(sequences, counts, strict=True) if n > 1}

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        from protlm_jax.process.progress import Bar

        residues = sum(map(len, self.sequences.values()))
        (vectors,) = self.embedder.spec.vectors
        with Bar(
            total=residues, unit="aa", unit_scale=True, desc="embed", show=self.progress
        ) as bar:
            for names in self._parts():
                part = [self.sequences[name] for name in names]
                found: dict[int, np.ndarray] = {}
                for complete in self.embedder.embed(part):
                    found |= {index: arrays[vectors] for index, arrays in complete}
                    bar.update(sum(len(part[index]) for index, _ in complete))
                for index, name in enumerate(names):
                    yield name, found.pop(index)

    def report(self) -> dict[str, Any]:
        """Plain counts: proteins, residues, window length, and which proteins needed windows."""
        return {
            "proteins": len(self.sequences),
            "residues": sum(map(len, self.sequences.values())),
            "window": self.embedder.limit,
            "windowed_proteins": len(self.windowed),
            "windowed": self.windowed,
        }

    def _parts(self) -> Iterator[list[str]]:
        """The names, some at a time."""
        spec, width = self.embedder.spec, self.embedder.loaded.config.d_model
        part: list[str] = []
        held = 0
        for name, sequence in self.sequences.items():
            size = spec.nbytes(width, 1, len(sequence))
            if part and (len(part) == _PROTEINS_AT_ONCE or held + size > _BYTES_AT_ONCE):
                yield part
                part, held = [], 0
            part.append(name)
            held += size
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
        loaded: the model, which computes in its own dtype.
        sequences: id -> sequence, spaced or not; read under `policy` (None: the model's own).
        layers: "last", "all" or numbers, see `spec.resolve_layers`.
        vectors: "residues", or of the protein "mean", "max" (over residues) or "cls".
        dtype: of the arrays.
        window: residues that go through the model at once; see `embedder.resolve_window`.
        tokens_per_batch: budget of one batch on each device, with padding; None suits the device.
        devices: how many of this process's devices share the work; None takes all.

    Returns:
        A stream of (id, array) in the order of `sequences`, [residues, d_model] or [d_model], and
        [layers, ...] of several layers. `len`, `report()` and `windowed` are known before anything
        is computed, and it can be iterated again.

    Raises:
        ProtlmError: an unknown residue, an impossible window, or what the model does not have.
    """
    plain = normalised(sequences.items(), policy or loaded.policy)
    loaded = for_reading(loaded)
    spec = EmbeddingSpec(resolve_layers(loaded, layers), (vectors,), dtype)
    residues = np.array([len(s) for s in plain.values()], np.int64)
    embedder = Embedder(loaded, spec, residues, window, tokens_per_batch, devices)
    return EmbeddingStream(embedder, plain, progress)
