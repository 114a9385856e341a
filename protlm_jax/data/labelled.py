"""Batches of labelled proteins for fine-tuning.

A file of labels is a NumPy archive with the proteins end to end: `letters` (uint8) and `labels`
(float32 [residues, targets]; classes as their numbers, NaN where there is none), `lengths` and
`heldout` (of each protein). The label of a whole protein stands at its first residue.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from protlm_jax.data.batches import BatchRequest, TokenBatches
from protlm_jax.data.config import DataConfig
from protlm_jax.data.splits import Split
from protlm_jax.data.token_files import TokenShard
from protlm_jax.data.token_rows import Layout
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.arrays import read_npz
from protlm_jax.storage.files import write_atomically
from protlm_jax.vocabularies import Vocabulary


def write_labels(
    file: Path,
    sequences: Sequence[str],
    labels: Sequence[np.ndarray],
    heldout: Sequence[bool],
) -> None:
    """Writes a file of labels: [residues, targets] of each protein, or [targets] of the whole."""
    placed = []
    for sequence, values in zip(sequences, labels, strict=True):
        if values.ndim == 1:
            whole = np.full((len(sequence), len(values)), np.nan, np.float32)
            whole[0] = values
            values = whole
        placed.append(values.astype(np.float32))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        letters=np.frombuffer("".join(sequences).encode("ascii"), np.uint8),
        lengths=np.array([len(s) for s in sequences], np.int64),
        heldout=np.array(heldout, bool),
        labels=np.concatenate(placed),
    )
    write_atomically(file, buffer.getvalue())


def read_labels(config: DataConfig, split: Split) -> tuple[TokenShard, np.ndarray, str]:
    """The proteins of one side, their labels [residues, targets], and a digest of both.

    Raises a ProtlmError where the file is no file of labels, or has no protein on this side.
    """
    file = Path(str(config.labels))
    arrays = read_npz(file, remedy="make it again with protlm finetune")
    if arrays.keys() != {"letters", "lengths", "heldout", "labels"}:
        raise ProtlmError(f"{file} is no file of labels: make it with protlm finetune")
    lengths, heldout, labels = arrays["lengths"], arrays["heldout"], arrays["labels"]
    if not lengths.sum() == len(arrays["letters"]) == len(labels) or len(heldout) != len(lengths):
        raise ProtlmError(f"{file}: its arrays are of different proteins: make it again")
    chosen = heldout == (split == "heldout")
    if not chosen.any():
        raise ProtlmError(f"{file}: there is no protein for {split!r}; divide the proteins anew")
    here = np.repeat(chosen, lengths)
    letters, labels = arrays["letters"][here], labels[here]
    offsets = np.concatenate([[0], np.cumsum(lengths[chosen])])
    digest = blake2b(digest_size=8)
    for array in (letters, labels, offsets):
        digest.update(np.ascontiguousarray(array).data)
    nameless = np.zeros_like(offsets), np.zeros(0, np.uint8)
    return TokenShard(offsets, letters, *nameless), labels, digest.hexdigest()


class LabelBatches(TokenBatches):
    """Rows of tokens with "labels": float32 [rows, length, targets], NaN where there is none."""

    def __init__(
        self,
        shard: TokenShard,
        labels: np.ndarray,
        config: DataConfig,
        vocabulary: Vocabulary,
        identity: str,
        request: BatchRequest,
    ) -> None:
        self._labels = labels
        super().__init__([shard], config, vocabulary, identity, request)

    def batch(self, number: int) -> dict[str, np.ndarray]:
        found = super().batch(number)
        owner, starts, residues = self._contents(number)
        layout = Layout(owner, residues + self._ends, *found["input_tokens"].shape)
        begin = layout.begin + len(self._alphabet.prefix)
        labels = np.full((found["input_tokens"].size, self._labels.shape[1]), np.nan, np.float32)
        for place, start, count in zip(begin, starts, residues, strict=True):
            labels[place : place + count] = self._labels[start : start + count]
        return {**found, "labels": labels.reshape(*found["input_tokens"].shape, -1)}
