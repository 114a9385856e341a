"""Asking a model for the distribution of residues that it is kept from seeing.

A question is one row of a batch: a stretch of a protein, the residues hidden from the model, and
the residues it is asked about. Scores of proteins and of variants are sums over answers.

Rows of one bucket share batches whatever protein they come from, and where a row asks for one
residue only, `head` is computed at that residue only, and so is the last block of a masked model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.evaluation import recurrence
from protlm_jax.evaluation.batching import Group, clean_features, grouped
from protlm_jax.models.attention_context import at_places
from protlm_jax.models.block import Block, BlockContext
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.models.stack import layer_params, run_stack

Softmax = Literal["residues", "vocabulary"]

_BUCKET_SIZES = 8  # a protein of L residues is L rows of one length: padding costs more than shapes


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One row of a batch; residues are counted from 0 in the whole protein.

    Attributes:
        protein: index into the list of proteins.
        start: first residue that is in the row.
        stop: the residue after the last one in the row.
        hidden: residues that the model must not see.
        asked: residues whose distribution is read.
        backwards: the row is read from its last token to its first.
    """

    protein: int
    start: int
    stop: int
    hidden: Sequence[int]
    asked: Sequence[int]
    backwards: bool = False


def ask(
    loaded: LoadedModel,
    proteins: Sequence[np.ndarray],
    questions: Sequence[Question],
    *,
    softmax: Softmax,
    tokens_per_batch: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """Answers in the order in which batches are computed.

    Args:
        loaded: any model whose readout predicts residues.
        proteins: ids of each protein's residues, without special tokens.
        questions: a stretch with the special tokens must fit the model.
        softmax: over the 20 amino acids, or over all ids of the vocabulary.
        tokens_per_batch: budget of one batch.

    Yields:
        The index of a question and its natural-log probabilities [asked, 20] float32, in the order
        of AMINO_ACIDS.

    Raises:
        ProtlmError: the model gives no distribution over residues.
    """
    vocabulary, cap = loaded.vocabulary, loaded.config.max_positions or None
    amino_acids = jnp.asarray(vocabulary.amino_acid_ids)
    waiting: tuple[list[int], Any] | None = None
    whole = set(_too_long(loaded, questions))
    for i in whole:
        yield i, _in_pieces(loaded, proteins[questions[i].protein], questions[i], softmax)
    for single in (True, False):
        chosen = [
            i for i, q in enumerate(questions) if (len(q.asked) == 1) == single and i not in whole
        ]
        lengths = [questions[i].stop - questions[i].start for i in chosen]
        tokens = [length + vocabulary.num_specials for length in lengths]
        for group in grouped(tokens, tokens_per_batch, cap, _BUCKET_SIZES):
            members = [chosen[m] for m in group.members]
            rows = _rows(loaded, proteins, [questions[i] for i in members], group, single)
            answers = _log_probabilities(
                loaded.model, loaded.params, *rows, vocabulary.mask_id, amino_acids, softmax
            )
            if waiting is not None:  # fetched only after the next batch is under way
                yield from _unpacked(*waiting, questions)
            waiting = (members, answers)
    if waiting is not None:
        yield from _unpacked(*waiting, questions)


def _too_long(loaded: LoadedModel, questions: Sequence[Question]) -> list[int]:
    """Questions that a causal model with a memory is asked piece by piece."""
    if loaded.model.readouts[0].kind != "causal" or not loaded.model.initial_carry(1):
        return []
    longest = recurrence.LONGEST_ROW - loaded.vocabulary.num_specials
    return [i for i, q in enumerate(questions) if q.stop - q.start > longest]


def _in_pieces(
    loaded: LoadedModel, residues: np.ndarray, question: Question, softmax: Softmax
) -> np.ndarray:
    """Log-probabilities [asked, 20] of a causal model: each is what the token before expects."""
    tokens = np.concatenate([np.array(loaded.vocabulary.prefix_ids, np.int32), residues])
    before = len(tokens) - len(residues) - 1
    answers = recurrence.next_residues(loaded, tokens, softmax)
    return answers[np.asarray(question.asked) + before]


def _rows(
    loaded: LoadedModel,
    proteins: Sequence[np.ndarray],
    questions: list[Question],
    group: Group,
    single: bool,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Features, hidden [rows, length] bool, and columns [rows, 1 or length] int32 that are read."""
    vocabulary = loaded.vocabulary
    prefix, suffix = (
        np.array(ids, np.int32) for ids in (vocabulary.prefix_ids, vocabulary.suffix_ids)
    )
    tokens = []
    hidden = np.zeros((group.rows, group.length), bool)
    columns = np.zeros((group.rows, 1 if single else group.length), np.int32)
    for row, q in enumerate(questions):
        tokens.append(np.concatenate([prefix, proteins[q.protein][q.start : q.stop], suffix]))
        shift = len(prefix) - q.start
        places = [np.asarray(residues, np.int32) + shift for residues in (q.hidden, q.asked)]
        if q.backwards:
            places = [len(tokens[-1]) - 1 - at for at in places]
            tokens[-1] = tokens[-1][::-1]
        hidden[row, places[0]] = True
        columns[row, : len(q.asked)] = places[1]
    return clean_features(loaded, tokens, group), hidden, columns


def _unpacked(
    members: list[int], answers: jax.Array, questions: Sequence[Question]
) -> Iterator[tuple[int, np.ndarray]]:
    for index, answer in zip(members, np.asarray(answers), strict=False):
        yield index, answer[: len(questions[index].asked)]


@functools.partial(jax.jit, static_argnames=("model", "softmax"))
def _log_probabilities(
    model: Any,
    params: Any,
    batch: dict[str, jax.Array],
    hidden: jax.Array,
    columns: jax.Array,
    mask_id: int | None,
    amino_acids: jax.Array,
    softmax: Softmax,
) -> jax.Array:
    """Log-probabilities [rows, columns, 20] float32 at `columns` [rows, columns]."""
    readout = model.readouts[0]
    run = functools.partial(model.apply, {"params": params})
    shown = readout.hide(batch, hidden, mask_id)
    if readout.kind == "query":  # a query stream of these positions alone
        shown["targets"] = columns
    h, context = run(shown, method="embed")
    attention = context[readout.stack].attention
    if readout.kind == "masked" and attention.bias is None and attention.distances is None:
        block, layers = run(readout.stack, method="rows")
        stream = _last_at(block, layers, h[readout.stack], context[readout.stack], columns)
    else:
        stream = run(h, context, method="stack")[0][readout.stack]
        if readout.kind != "query":
            stream = _at(readout.align(stream), columns)
    logits = run({readout.stack: stream}, method="head").astype(jnp.float32)
    if softmax == "residues":
        return jax.nn.log_softmax(logits[..., amino_acids], axis=-1)
    return jax.nn.log_softmax(logits, axis=-1)[..., amino_acids]


def _last_at(
    block: Block, layers: Any, h: jax.Array, context: BlockContext, columns: jax.Array
) -> jax.Array:
    """The stream after the last block, at `columns` only: [rows, columns, d_model].

    There the asked positions are a stream of their own that looks at the whole row, as a query
    stream does. What becomes of the others in the last block is not read, and so not computed.
    """
    last = block.num_layers - 1
    if last:
        shorter = block.clone(config=block.config.replace(num_layers=last))
        first = layers if block.config.share_layers else jax.tree.map(lambda x: x[:-1], layers)
        h, _ = run_stack(shorter, first, h, context)
    asking = at_places(context.attention, columns)
    context = dataclasses.replace(context, query_attention=asking)
    pair = (h, _at(h, columns))
    after, _ = block.apply({"params": layer_params(layers, last)}, pair, context)
    return after[1]


def _at(stream: jax.Array, columns: jax.Array) -> jax.Array:
    """[rows, columns, d_model] of a stream [rows, length, d_model]."""
    return jnp.take_along_axis(stream, columns[..., None], axis=1)
