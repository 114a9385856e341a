"""Writing tokens one after the other with T5X's beam search, for models without a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from t5x import decoding

from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import Vocabulary

NextToken = Callable[[jax.Array, jax.Array], jax.Array]
"""(what is written [rows, length] int32, shifted right after a 0, the place [rows] int32 of the
last of it) -> logits [rows, vocabulary] float32 of the token that follows."""


def continuations(
    next_token: NextToken, prompt: jax.Array, vocabulary: Vocabulary, num_decodes: int
) -> tuple[jax.Array, jax.Array]:
    """The best continuation of each row, up to its closing token or the end of the row.

    Args:
        next_token: the model; called with `num_decodes` rows for each row of the prompt.
        prompt: [rows, length] int32, what each row begins with, 0 where there is no more of it.
        vocabulary: the model's.
        num_decodes: beams.

    Returns:
        Tokens [rows, length] int32, prompt included, 0 after the end; and T5X's scores [rows]
        float32, log-probabilities of what was written over a penalty for being short.

    Raises:
        ProtlmError: a vocabulary whose padding is not 0, which beam search takes for the end of a
            prompt, or one without a closing token.
    """
    if vocabulary.pad_id != 0 or not vocabulary.suffix_ids:
        raise ProtlmError(
            f"beam search needs a vocabulary that pads with 0 and closes proteins with a token; "
            f"{vocabulary.name} does not"
        )
    length = prompt.shape[1]

    def logits(state: Any) -> tuple[jax.Array, Any]:
        index = jnp.broadcast_to(state.cur_index, (state.sequences.shape[0],))
        return next_token(state.sequences[:, :length], index), state.cache

    decodes, scores = decoding.beam_search(
        inputs=jnp.pad(prompt, ((0, 0), (1, 1))),  # the 0 that all begin with, and one to end on
        cache={},
        tokens_to_logits=logits,
        eos_id=vocabulary.suffix_ids[0],
        num_decodes=num_decodes,
        max_decode_len=length,
    )
    return decodes[:, -1, :length], scores[:, -1]
