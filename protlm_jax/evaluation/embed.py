"""Embeddings: one vector a residue, the same whatever else is in the batch.

`embed_sequences` streams in the order of its input. Proteins longer than the model takes at once
are read through overlapping windows, each residue from the window in which it is farthest from a
cut; they are counted and listed, never truncated.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.evaluation.batching import (
    Group,
    default_tokens_per_batch,
    encoder_features,
    grouped,
    max_residues,
)
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import ResiduePolicy, normalise

_PROTEINS_AT_ONCE = 1024  # how far the stream looks ahead to fill its buckets


@dataclass(frozen=True)
class Window:
    """A stretch [start, stop) of a protein, of which [keep_start, keep_stop) is kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def windows(residues: int, limit: int | None) -> list[Window]:
    """Covers a protein by windows of at most `limit` residues that overlap by half.

    Two neighbours meet in the middle of their overlap, so that each residue comes from the window
    in which it is farthest from a cut (the ends of the protein itself are no cuts).
    """
    if limit is None or residues <= limit:
        return [Window(0, residues, 0, residues)]
    stride = max(1, limit // 2)
    starts = [*range(0, residues - limit, stride), residues - limit]
    meets = [(after + before + limit) // 2 for before, after in itertools.pairwise(starts)]
    bounds = [0, *meets, residues]
    return [
        Window(start, start + limit, bounds[i], bounds[i + 1]) for i, start in enumerate(starts)
    ]


@dataclass(frozen=True)
class EmbeddingStream:
    """Iterate to get (id, [residues, d_model] float32), in the order of the input.

    Attributes:
        loaded: the model.
        sequences: id -> normalised sequence.
        limit: residues that go through the model at once; None without a limit.
        tokens_per_batch: budget of one batch.
        progress: whether to draw a progress bar on a terminal.
        windowed: id -> number of windows, of the proteins that did not fit at once.
    """

    loaded: LoadedModel
    sequences: Mapping[str, str]
    limit: int | None
    tokens_per_batch: int
    progress: bool
    windowed: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        counts = {name: len(windows(len(s), self.limit)) for name, s in self.sequences.items()}
        object.__setattr__(self, "windowed", {k: n for k, n in counts.items() if n > 1})

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        from tqdm import tqdm

        names = list(self.sequences)
        residues = sum(map(len, self.sequences.values()))
        # disable=None draws on a terminal only.
        quiet = None if self.progress else True
        with tqdm(total=residues, unit="aa", unit_scale=True, desc="embed", disable=quiet) as bar:
            for start in range(0, len(names), _PROTEINS_AT_ONCE):
                part = names[start : start + _PROTEINS_AT_ONCE]
                arrays = self._embed([self.sequences[name] for name in part], bar)
                yield from zip(part, arrays, strict=True)

    def report(self) -> dict[str, Any]:
        """Plain counts: proteins, residues, window length, and which proteins needed windows."""
        return {
            "proteins": len(self.sequences),
            "residues": sum(map(len, self.sequences.values())),
            "window": self.limit,
            "windowed_proteins": len(self.windowed),
            "windowed": self.windowed,
        }

    def _embed(self, sequences: list[str], bar: Any) -> list[np.ndarray]:
        """[residues, d_model] of each sequence."""
        pieces = [(i, w) for i, s in enumerate(sequences) for w in windows(len(s), self.limit)]
        tokens = [self.loaded.vocabulary.encode(sequences[i][w.start : w.stop]) for i, w in pieces]
        width = self.loaded.config.d_model
        out = [np.empty((len(s), width), np.float32) for s in sequences]
        before = len(self.loaded.vocabulary.prefix_ids)
        cap = self.loaded.config.max_positions or None
        for group, hidden in self._forward(tokens, cap):
            for row, member in enumerate(group.members):
                protein, w = pieces[member]
                first = before + w.keep_start - w.start
                kept = w.keep_stop - w.keep_start
                out[protein][w.keep_start : w.keep_stop] = hidden[row, first : first + kept]
                bar.update(kept)
        return out

    def _forward(
        self, tokens: list[np.ndarray], cap: int | None
    ) -> Iterator[tuple[Group, np.ndarray]]:
        """Runs all groups; a batch is fetched only after the next one is under way."""
        waiting: tuple[Group, jax.Array] | None = None
        for group in grouped([len(t) for t in tokens], self.tokens_per_batch, cap):
            batch = encoder_features(self.loaded, [tokens[m] for m in group.members], group)
            hidden = _hidden(self.loaded.model, self.loaded.params, batch)
            if waiting is not None:
                yield waiting[0], np.asarray(waiting[1])
            waiting = (group, hidden)
        if waiting is not None:
            yield waiting[0], np.asarray(waiting[1])


def embed_sequences(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    *,
    window: int | None = None,
    tokens_per_batch: int | None = None,
    policy: ResiduePolicy = ResiduePolicy(),
    progress: bool = False,
) -> EmbeddingStream:
    """The frozen per-residue representation of proteins, special tokens removed.

    Args:
        loaded: the model.
        sequences: id -> sequence, spaced or not; read under `policy`.
        window: residues that go through the model at once; None takes all that its position table
            holds, and the whole protein where positions have no limit.
        tokens_per_batch: budget of one batch, in tokens with padding; None suits the device.
        policy: what to do with rare residues and lower case.
        progress: draw a progress bar on a terminal.

    Returns:
        A stream of (id, [residues, d_model] float32) in the order of `sequences`; `len`, `report()`
        and `windowed` are known before anything is computed, and it can be iterated again.

    Raises:
        ProtlmError: for an unknown residue (naming record and position) or an impossible window.
    """
    plain = {name: normalise(s, policy, record=name) for name, s in sequences.items()}
    limit = max_residues(loaded, window)
    budget = tokens_per_batch or default_tokens_per_batch()
    return EmbeddingStream(loaded, plain, limit, budget, progress)


@functools.partial(jax.jit, static_argnums=0)
def _hidden(model: Any, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """[rows, length, d_model] float32; compiled once per model architecture and batch shape."""
    return model.apply({"params": params}, batch, method="hidden").astype(jnp.float32)
