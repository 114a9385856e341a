"""Where a model's answers can be read, declared by each family."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from protlm_jax.errors import ProtlmError

Batch = dict[str, Any]
Kind = Literal["masked", "denoising", "query", "causal", "detection", "none"]

Hides = int | tuple[int, ...] | None
Columns = Any  # [20, tokens] ids, see `Vocabulary.amino_acid_columns`

_SILENCE: dict[Kind, str] = {
    "none": "has no head, and so gives no distribution over residues: embed or probe it, or take "
    "the folder of the whole model, with its decoder",
    "detection": "tells replaced residues from true ones and gives no distribution over residues: "
    "score its generator instead",
    "query": "predicts residues from its query stream, not from the stream that is measured",
}


@dataclasses.dataclass(frozen=True)
class Readout:
    """A distribution over residues that the model was trained to give, and how it is asked for.

    Attributes:
        kind: "masked" (residues hidden in the input of a single stack), "denoising" (hidden in the
            encoder's input, read at the decoder under teacher forcing), "query" (kept from the
            query stream, which knows the position alone), "causal" (the next residue),
            "detection" (whether a residue was replaced: no distribution over residues), or "none"
            (an encoder without a head).
        stack: the stack whose stream `head` reads; a logit lens is defined on this stack alone.
        both_ways: whether a causal model also reads proteins from their last token to their first;
            a score is then the mean of both.
        absent: of kind "none", the head that the model has by its family and that was not stored.
    """

    kind: Kind
    stack: str
    both_ways: bool = False
    absent: str = ""

    @property
    def predicts_residues(self) -> bool:
        """Whether the model can be asked for the residues that are kept from it."""
        return self.kind not in ("detection", "none")

    @property
    def silence(self) -> str:
        """Why residues cannot be read from the stream, as what is said after the model's name."""
        if self.absent:
            return (
                f"was stored without {self.absent}, and so gives no distribution over residues: "
                f"embed or probe it, or take the folder of the whole model"
            )
        return _SILENCE[self.kind]

    @property
    def why_no_noise(self) -> str | None:
        """Why no share of the input can be hidden from the model; None where any can: in masked
        models, of which diffusion models are some."""
        if self.kind == "masked":
            return None
        return f"it is not asked by masks in its input (its readout is {self.kind})"

    @property
    def reads_stream(self) -> bool:
        """Whether `head`, read at the stream of `stack`, predicts residues kept from the model.

        A query stream predicts, and the content stream beside it, which is what is measured and
        embedded, does not.
        """
        return self.kind in ("masked", "denoising", "causal")

    def hide(self, batch: Batch, hidden: Any, hides: Hides) -> Batch:
        """The batch as the model may see it when residues are kept from it.

        Args:
            batch: features with the true tokens.
            hidden: [batch, length] bool, the positions whose residue must not be seen.
            hides: what stands for a hidden residue, `Vocabulary.hides`.

        Raises:
            ProtlmError: the model gives no distribution over residues.
        """
        if not self.predicts_residues:
            raise ProtlmError(f"this model {self.silence}")
        if self.kind == "causal":  # it never sees what it predicts
            return batch
        if self.kind == "query":
            return {**batch, "hidden": hidden}
        name = "encoder_input_tokens" if self.kind == "denoising" else "input_tokens"
        return {**batch, name: jnp.where(hidden, hiding(batch[name], hides), batch[name])}

    def align(self, answers: jax.Array) -> jax.Array:
        """Moves answers to the positions of the tokens that they are about: [B, L, ...].

        A causal model answers one position early; nothing predicts its first token (zeros).
        """
        if self.kind != "causal":
            return answers
        return jnp.concatenate([jnp.zeros_like(answers[:, :1]), answers[:, :-1]], axis=1)

    def positions(self, tokens: jax.Array) -> jax.Array:
        """Moves what belongs to tokens to the positions where they are predicted: [B, L, ...].

        The reverse of `align`: the first token is lost, and the last position gets zeros.
        """
        if self.kind != "causal":
            return tokens
        return jnp.concatenate([tokens[:, 1:], jnp.zeros_like(tokens[:, :1])], axis=1)


def hiding(tokens: Any, hides: Hides) -> Any:
    """What tokens of any shape are shown as where they are hidden; see `Vocabulary.hides`."""
    return jnp.take(jnp.asarray(hides, jnp.int32), tokens) if isinstance(hides, tuple) else hides


def residue_logits(logits: jax.Array, columns: Columns) -> jax.Array:
    """Logits [..., vocab] of the 20 amino acids [..., 20]: the sum of a residue's tokens, where it
    has several."""
    columns = jnp.asarray(columns)
    if columns.shape[1] == 1:
        return logits[..., columns[:, 0]]
    return jax.nn.logsumexp(logits[..., columns].astype(jnp.float32), axis=-1)


def is_residue(tokens: jax.Array, columns: Columns) -> jax.Array:
    """Whether each token [...] is of each amino acid: [..., 20] bool."""
    columns = jnp.asarray(columns)
    shape = (1,) * tokens.ndim + columns.shape
    return jnp.any(tokens[..., None, None] == columns.reshape(shape), axis=-1)
