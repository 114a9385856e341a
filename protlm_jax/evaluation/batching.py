"""From sequences of many lengths to batches of few shapes.

XLA compiles once per shape, so lengths are rounded up to a short ladder of buckets and rows to a
short ladder of counts. Nothing is ever cut off: what does not fit is the caller's to split.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from protlm_jax.errors import ProtlmError, one_error
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import ResiduePolicy, normalise

_SMALLEST_BUCKET = 16


@dataclass(frozen=True)
class Group:
    """Sequences that share one batch.

    Attributes:
        members: indices into the list of lengths that was grouped; at most `rows`.
        rows: rows of the batch; those beyond the members are padding.
        length: tokens in a row.
    """

    members: list[int]
    rows: int
    length: int


def normalised(named: Iterable[tuple[str, str]], policy: ResiduePolicy) -> dict[str, str]:
    """Name -> residues, of names and sequences.

    Raises:
        ProtlmError: naming all sequences that the policy does not accept.
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

    Special tokens are taken off. None where there is no limit (relative positions and no window).

    Raises:
        ProtlmError: for a window that the position table cannot hold, or below 2 residues.
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


def default_tokens_per_batch() -> int:
    """Small batches stay in a CPU's caches (8192 tokens took 1.4 times as long as 2048 with a width
    of 128); an accelerator wants large ones."""
    import jax

    return 2048 if jax.default_backend() == "cpu" else 65_536


def bucket(tokens: int, cap: int | None = None, sizes: int = 2) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96, 128, ... that holds `tokens`, at most `cap`.

    `sizes` is how many there are from one power of two to the next: 2 wastes a sixth of a batch on
    padding, 8 a twentieth and takes up to four times the compilations. All are multiples of 8.
    """
    step = max(8, (1 << (tokens - 1).bit_length()) // (2 * sizes))
    size = max(_SMALLEST_BUCKET, -(-tokens // step) * step)
    return size if cap is None else min(size, cap)


def grouped(
    lengths: Sequence[int], tokens_per_batch: int, cap: int | None = None, sizes: int = 2
) -> Iterator[Group]:
    """Groups sequences by bucket, longest first, within a budget of tokens.

    Args:
        lengths: tokens of each sequence, special tokens included.
        tokens_per_batch: rows x length of a full batch; one row is allowed to exceed it.
        cap: the longest row the model takes.
        sizes: see `bucket`.
    """
    buckets: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        buckets[bucket(length, cap, sizes)].append(index)
    for length in sorted(buckets, reverse=True):
        full = max(1, tokens_per_batch // length)
        members = buckets[length]
        for start in range(0, len(members), full):
            part = members[start : start + full]
            # Few row counts as well: full, or, where a bucket fills no batch, a power of four.
            rows = full if start else min(full, 4 ** math.ceil(math.log(len(part), 4)))
            yield Group(part, max(rows, len(part)), length)


def encoder_features(
    loaded: LoadedModel, token_rows: Sequence[np.ndarray], group: Group
) -> dict[str, np.ndarray]:
    """One sequence a row, as the model's first stack reads it: int32 [rows, length] each.

    Args:
        loaded: decides the feature names (encoder_* for an encoder-decoder).
        token_rows: ids of the group's members, in their order.
        group: shape of the batch.
    """
    tokens = padded(token_rows, group, fill=loaded.vocabulary.pad_id)
    segments = padded([np.ones(len(row), np.int32) for row in token_rows], group)
    positions = padded([np.arange(len(row), dtype=np.int32) for row in token_rows], group)
    if loaded.config.num_decoder_layers:
        return {
            "encoder_input_tokens": tokens,
            "encoder_segment_ids": segments,
            "encoder_positions": positions,
        }
    return {"input_tokens": tokens, "segment_ids": segments, "positions": positions}


def clean_features(
    loaded: LoadedModel, token_rows: Sequence[np.ndarray], group: Group
) -> dict[str, np.ndarray]:
    """One protein a row with its true tokens: what every readout can hide residues in.

    A decoder is fed the true tokens, shifted by one: each is predicted from those before it.
    """
    batch = encoder_features(loaded, token_rows, group)
    if loaded.config.num_decoder_layers:
        start = [loaded.vocabulary.pad_id]
        shifted = [np.concatenate([start, row[:-1]]) for row in token_rows]
        batch["decoder_input_tokens"] = padded(shifted, group, fill=loaded.vocabulary.pad_id)
        batch["decoder_segment_ids"] = batch["encoder_segment_ids"]
        batch["decoder_positions"] = batch["encoder_positions"]
    return batch


def padded(rows: Sequence[np.ndarray], group: Group, fill: int = 0) -> np.ndarray:
    """int32 [group.rows, group.length] with the given rows from the left, `fill` elsewhere."""
    out = np.full((group.rows, group.length), fill, np.int32)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out
