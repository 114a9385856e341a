"""Causal answers about proteins too long for one row: the same numbers, in pieces.

A whole row needs memory for every pair of residues. Read in pieces, each of which remembers the
streams of all pieces before it, nothing is approximated: every residue still sees all before it.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.evaluation.batching import bucket
from protlm_jax.models.build import build
from protlm_jax.models.loaded import LoadedModel

LONGEST_ROW = 2048  # tokens that are read at once
PIECE = 512


def next_residues(loaded: LoadedModel, tokens: np.ndarray, softmax: str) -> np.ndarray:
    """What a recurrent model expects after each token of one protein.

    Args:
        loaded: a causal model with a memory.
        tokens: [length] int32 ids.
        softmax: over "residues" or the "vocabulary".

    Returns:
        Log-probabilities [length, 20] float32 of the token after each one.
    """
    memory = bucket(len(tokens))  # few shapes; what is not filled yet is of no segment
    carry = build(loaded.config.replace(memory_length=memory)).initial_carry(1)
    amino_acids = jnp.asarray(loaded.vocabulary.amino_acid_ids)
    answers = []
    for start in range(0, len(tokens), PIECE):
        piece = tokens[start : start + PIECE]
        padding = (0, PIECE - len(piece))
        batch = {
            "input_tokens": np.pad(piece, padding)[None],
            "segment_ids": np.pad(np.ones_like(piece), padding)[None],
            "positions": np.arange(start, start + PIECE, dtype=np.int32)[None],
        }
        answer, carry = _step(loaded.model, loaded.params, batch, carry, amino_acids, softmax)
        answers.append(np.asarray(answer)[: len(piece)])
    return np.concatenate(answers)


@functools.partial(jax.jit, static_argnames=("model", "softmax"))
def _step(
    model: Any,
    params: Any,
    batch: dict[str, jax.Array],
    carry: dict[str, jax.Array],
    amino_acids: jax.Array,
    softmax: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Log-probabilities [length, 20] float32 after each token of a piece, and the next memory."""
    logits, carry = model.apply({"params": params}, batch, carry, method="recur")
    logits = logits[0].astype(jnp.float32)
    if softmax == "residues":
        return jax.nn.log_softmax(logits[:, amino_acids], axis=-1), carry
    return jax.nn.log_softmax(logits, axis=-1)[:, amino_acids], carry
