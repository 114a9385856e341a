"""Causal answers about proteins too long for one row: the same numbers, in pieces.

A whole row needs memory for every pair of residues. Read in pieces, each of which remembers the
streams of all pieces before it, nothing is approximated: every residue still sees all before it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.data.rows import bucket
from protlm_jax.evaluation.engine import AminoAcids, Engine
from protlm_jax.models.build import build
from protlm_jax.models.readouts import residue_logits

LONGEST_ROW = 2048  # tokens that are read at once
PIECE = 512


def next_residues(engine: Engine, tokens: np.ndarray, softmax: str) -> np.ndarray:
    """What a recurrent model expects after each token of one protein.

    Args:
        engine: of a causal model with a memory.
        tokens: [length] int32 ids.
        softmax: over "residues" or the "vocabulary".

    Returns:
        Log-probabilities [length, 20] float32 of the token after each one.
    """
    memory = bucket(len(tokens))  # few shapes; what is not filled yet is of no segment
    carry = build(engine.loaded.config.replace(memory_length=memory)).initial_carry(1)
    answers = []
    for start in range(0, len(tokens), PIECE):
        piece = tokens[start : start + PIECE]
        padding = (0, PIECE - len(piece))
        batch = {
            "input_tokens": np.pad(piece, padding)[None],
            "segment_ids": np.pad(np.ones_like(piece), padding)[None],
            "positions": np.arange(start, start + PIECE, dtype=np.int32)[None],
        }
        answer, carry = engine(_step, (batch, carry), engine.amino_acids, softmax)
        answers.append(np.asarray(answer)[: len(piece)])
    return np.concatenate(answers)


def _step(
    model: Any, params: Any, inputs: Any, amino_acids: AminoAcids, softmax: str
) -> tuple[jax.Array, Any]:
    """Log-probabilities [length, 20] float32 after each token of a piece, and the next memory."""
    logits, carry = model.apply({"params": params}, *inputs, method="recur")
    return log_probabilities(logits[0], amino_acids, softmax), carry


def log_probabilities(logits: jax.Array, amino_acids: AminoAcids, softmax: str) -> jax.Array:
    """[..., 20] float32 of the amino acids, among these or all ids of the vocabulary."""
    logits = logits.astype(jnp.float32)
    if softmax == "residues":
        return jax.nn.log_softmax(residue_logits(logits, amino_acids), axis=-1)
    return residue_logits(jax.nn.log_softmax(logits, axis=-1), amino_acids)
