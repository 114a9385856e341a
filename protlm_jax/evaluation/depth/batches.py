"""From proteins to batches of one shape with residues that the model cannot see."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from protlm_jax.data.rows import RowBatch, Shape, even_pieces
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.depth.positions import Positions, PositionSet, position_set
from protlm_jax.evaluation.engine import normalised, residues_in_row
from protlm_jax.evaluation.heldout import RATE, HiddenProtein, hidden_batch, hide
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.models.readouts import Readout

LONGEST = 256
ROWS = 8


class DepthBatch(NamedTuple):
    """A batch, and what is asked of it."""

    features: dict[str, Any]  # what the model is shown
    true: np.ndarray  # [B, L] int32, the tokens as they are
    hidden: np.ndarray  # [B, L] bool, whose residue is asked
    residues: np.ndarray  # [B, L] bool, tokens that are amino acids
    protein: np.ndarray  # [B, L] int32, which of `owners` a token belongs to; -1 for padding
    owners: Sequence[int]  # index of each protein of the batch among all that are measured
    most: int | None = None  # asked residues of a row at most, in every batch; None: of this one

    def positions(self, name: PositionSet, readout: Readout, slots: int = ROWS) -> Positions:
        """The named position set, placed where the model answers."""
        asked, residues = (
            np.asarray(readout.positions(jnp.asarray(x))) for x in (self.hidden, self.residues)
        )
        return position_set(name, asked, residues, self.protein, slots, self.most)


@dataclass(frozen=True)
class Proteins:
    """Proteins with their hidden residues, cut to what one row holds."""

    names: list[str]  # of the proteins that have a residue to hide, in their order
    hidden: list[HiddenProtein]
    pieces: list[tuple[int, int, int]]  # of each row: protein, first residue, that after the last
    length: int  # tokens in a row

    def fitting(self, loaded: LoadedModel, before: LoadedModel) -> Proteins:
        """The same pieces and hidden residues for another model."""
        extra = loaded.vocabulary.num_specials - before.vocabulary.num_specials
        return dataclasses.replace(self, length=self.length + extra)

    @property
    def batches(self) -> int:
        return -(-len(self.pieces) // ROWS)

    @functools.cached_property
    def most(self) -> int:
        """DepthBatch residues of a row at most, rounded up so that few programs are compiled."""
        targets = ((self.hidden[i].targets, start, stop) for i, start, stop in self.pieces)
        return -(-max(int(((t >= a) & (t < b)).sum()) for t, a, b in targets) // 8) * 8

    def batch(self, loaded: LoadedModel, index: int) -> DepthBatch:
        """Batch `index`, of ROWS rows; those beyond the last piece are padding."""
        members = self.pieces[index * ROWS : (index + 1) * ROWS]
        rows, shape = list(range(len(members))), Shape(ROWS, self.length)
        batch = RowBatch(rows, rows, [0] * len(rows), shape)
        asked = hidden_batch(loaded, self.hidden, members, batch)
        # A model whose answer is not read from the stream is shown every residue.
        features = {name: x for name, x in asked.features.items() if name != "hidden"}
        specials = loaded.vocabulary.num_specials
        sizes = np.array([stop - start + specials for _, start, stop in members])
        sizes = np.pad(sizes, (0, ROWS - len(members)))
        real = np.arange(self.length)[None] < sizes[:, None]
        return DepthBatch(
            features,
            asked.true,
            asked.hidden,
            np.isin(asked.true, loaded.vocabulary.amino_acid_columns) & real,
            np.where(real, np.arange(ROWS, dtype=np.int32)[:, None], -1),
            [protein for protein, _, _ in members],
            self.most,
        )

    def all_batches(self, loaded: LoadedModel) -> Iterator[DepthBatch]:
        return (self.batch(loaded, index) for index in range(self.batches))


def prepare(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    length: int | None,
    seed: int,
    rate: float = RATE,
) -> Proteins:
    """Chooses what is hidden, and cuts proteins longer than a row into even pieces.

    Args:
        length: tokens in a row, special tokens included; None takes the position table's size, or
            LONGEST where positions have no limit.
        rate: share of each protein's standard residues, the first left out, that are hidden.

    Raises:
        ProtlmError: no protein has a residue to hide.
    """
    read = normalised(sequences.items(), loaded.policy)
    plain = {name: hide(s, seed, rate, name=name) for name, s in read.items()}
    kept = {name: protein for name, protein in plain.items() if len(protein.targets)}
    if not kept:
        raise ProtlmError("depth analysis needs proteins with at least two standard residues")
    specials = loaded.vocabulary.num_specials
    limit = residues_in_row(loaded, length)
    limit = min(limit or LONGEST - specials, max(len(p.sequence) for p in kept.values()))
    pieces = [
        (i, start, stop)
        for i, protein in enumerate(kept.values())
        for start, stop in even_pieces(len(protein.sequence), limit)
    ]
    return Proteins(list(kept), list(kept.values()), pieces, limit + specials)


def in_float32(loaded: LoadedModel) -> LoadedModel:
    """The same model computing in float32: effects of late layers are small differences."""
    return loaded if loaded.config.dtype == "float32" else loaded.with_config(dtype="float32")
