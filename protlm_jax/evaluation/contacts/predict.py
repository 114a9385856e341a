"""Contacts predicted from a model's attention maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.data.rows import RowBatch
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.engine import Engine, features, max_residues, normalised
from protlm_jax.evaluation.finite import require_finite
from protlm_jax.models.block import Block, BlockContext
from protlm_jax.models.build import absent_heads
from protlm_jax.models.contacts import contact_logits, corrected_maps, pairs_of
from protlm_jax.models.exchange import CONTACT_HEAD
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.models.stacked import Stacked
from protlm_jax.vocabularies import normalise


@dataclass(frozen=True)
class Weights:
    """A logistic regression over the corrected maps of all heads."""

    kernel: np.ndarray  # [layers, heads] float32
    bias: float  # the logit of a pair whose maps are all zero


def own_head(loaded: LoadedModel) -> Weights:
    """The weights of the contact head that came with the model.

    Raises:
        ProtlmError: it has none.
    """
    if not hasattr(loaded.model, "contacts"):
        raise ProtlmError(
            f"{loaded.name} has no contact head: the {loaded.config.family} family is trained "
            f"without one; take an ESM-2 folder, or fit weights on chains of known structure"
        )
    if CONTACT_HEAD in loaded.missing:
        raise ProtlmError(
            f"{loaded.name} was stored without {absent_heads(loaded.config, [CONTACT_HEAD])}: take "
            f"the folder of the whole model, or fit weights on chains of known structure"
        )
    head = loaded.params[CONTACT_HEAD]
    return Weights(np.asarray(head["kernel"]), float(np.asarray(head["bias"])[0]))


def predict(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    *,
    weights: Weights | None = None,
    tokens_per_batch: int | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """The probability that two residues of a protein touch.

    Args:
        loaded: the model; of an encoder-decoder the encoder is read.
        sequences: id -> sequence, spaced or not; read under the model's policy.
        weights: of its heads; None takes the model's own contact head (ESM-2).
        tokens_per_batch: budget of one batch; None suits the device.

    Yields:
        (id, [residues, residues] float32, symmetric), proteins of one length together, longest
        first.

    Raises:
        ProtlmError: weights are not given and the model has no contact head, an unknown residue
            turns up, a protein is longer than its position table, or its map is not finite.
    """
    weights = own_head(loaded) if weights is None else weights
    plain = normalised(sequences.items(), loaded.policy)
    limit = max_residues(loaded)
    for name, sequence in plain.items():
        if limit is not None and len(sequence) > limit:
            raise ProtlmError(
                f"{name!r} has {len(sequence)} residues, {loaded.name} takes {limit}: contacts "
                f"across a cut are lost, so leave the protein out or cut out a domain"
            )
    return _stream(loaded, plain, weights, tokens_per_batch)


def _stream(
    loaded: LoadedModel, sequences: Mapping[str, str], weights: Weights, budget: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    names, before = list(sequences), len(loaded.vocabulary.prefix_ids)
    tokens = [loaded.vocabulary.encode(sequence) for sequence in sequences.values()]
    params = {"model": loaded.params, "kernel": weights.kernel, "bias": np.float32(weights.bias)}
    engine = Engine(loaded, params=params)

    def inputs(batch: RowBatch) -> Any:
        return features(loaded, batch, [tokens[m] for m in batch.members], decoder=False)

    batches = engine.one_a_row([len(row) for row in tokens], budget)
    for batch, found in engine.run(_probabilities, batches, inputs, _specials(loaded)):
        for row, member in enumerate(batch.members):
            name = names[member]
            inside = slice(before, before + len(sequences[name]))
            probabilities = found[row, inside, inside]
            require_finite(loaded, probabilities, sequences[name], name, "the contact map")
            yield name, probabilities


def maps(loaded: LoadedModel, sequence: str) -> np.ndarray:
    """The corrected maps of one protein: [layers, heads, residues, residues] float32."""
    tokens = loaded.vocabulary.encode(normalise(sequence, loaded.policy, record=sequence[:20]))
    engine, before = Engine(loaded), len(loaded.vocabulary.prefix_ids)
    (batch,) = engine.one_a_row([len(tokens)], None)
    found = engine(_maps, features(loaded, batch, [tokens], decoder=False), _specials(loaded))
    inside = slice(before, before + len(sequence))
    return np.asarray(found)[:, 0, :, inside, inside]


def _specials(loaded: LoadedModel) -> tuple[int, ...]:
    return (*loaded.vocabulary.prefix_ids, *loaded.vocabulary.suffix_ids)


def _probabilities(model: Any, params: Any, batch: Any, specials: tuple[int, ...]) -> jax.Array:
    """[rows, length, length] float32."""
    logits = model.apply(
        {"params": params["model"]},
        method=lambda module: contact_logits(
            *_row(module, batch, specials), kernel=params["kernel"]
        ),
    )
    return jax.nn.sigmoid(logits + params["bias"])


def _maps(model: Any, params: Any, batch: Any, specials: tuple[int, ...]) -> jax.Array:
    return model.apply(
        {"params": params}, method=lambda module: corrected_maps(*_row(module, batch, specials))
    )


def _row(
    module: Stacked, batch: Any, specials: tuple[int, ...]
) -> tuple[Block, Any, Any, BlockContext, jax.Array]:
    """Block, parameters, stream and context of the row that is read, and the pairs of residues."""
    stream, context = module.before_blocks(batch)
    block, params = module.rows("encoder")
    prefix = "" if "input_tokens" in batch else "encoder_"
    tokens, segments = batch[f"{prefix}input_tokens"], batch[f"{prefix}segment_ids"]
    residues = (segments > 0) & ~jnp.isin(tokens, jnp.asarray(specials, jnp.int32))
    return block, params, stream, context, pairs_of(residues, segments)
