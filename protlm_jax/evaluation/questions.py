"""The distribution that a model gives of residues that are hidden from it.

A question is one row of a batch: a stretch of a protein, the residues hidden from the model, and
the residues it is asked about. Scores of proteins and of variants are sums over answers.

Rows of one bucket share batches whatever protein they come from, and where a row asks for one
residue only, `head` is computed at that residue only, and so is the last block of a masked model.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.data.rows import RowBatch
from protlm_jax.evaluation import recurrence
from protlm_jax.evaluation.engine import AminoAcids, Engine, features
from protlm_jax.models.attention_context import at_places
from protlm_jax.models.block import Block, BlockContext
from protlm_jax.models.readouts import Hides
from protlm_jax.models.stack import layer_params, run_stack

Softmax = Literal["residues", "vocabulary"]

_BUCKET_SIZES = 8  # a protein of L residues is L rows of one length: padding costs more than shapes


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One row of a batch; residues are counted from 0 in the whole protein."""

    protein: int  # index into the list of proteins
    start: int  # first residue that is in the row
    stop: int  # the residue after the last one in the row
    hidden: Sequence[int]  # residues that the model must not see
    asked: Sequence[int]  # residues whose distribution is read
    backwards: bool = False  # the row is read from its last token to its first


def ask(
    engine: Engine,
    proteins: Sequence[np.ndarray],
    questions: Sequence[Question],
    *,
    softmax: Softmax,
    tokens_per_batch: int | None = None,
    progress: bool = False,
) -> Iterator[tuple[int, np.ndarray]]:
    """Answers in the order in which batches are computed.

    Args:
        engine: of any model whose readout predicts residues.
        proteins: ids of each protein's residues, without special tokens.
        questions: a stretch with the special tokens must fit the model.
        softmax: over the 20 amino acids, or over all ids of the vocabulary.
        tokens_per_batch: budget of one batch; None suits the device.

    Yields:
        The index of a question and its natural-log probabilities [asked, 20] float32, in the order
        of AMINO_ACIDS.

    Raises:
        ProtlmError: the model gives no distribution over residues.
    """
    specials = engine.loaded.vocabulary.num_specials
    longest = _longest_row(engine)
    for i, q in enumerate(questions):
        if q.stop - q.start > longest:
            yield i, _in_pieces(engine, proteins[q.protein], q, softmax)
    short = [i for i, q in enumerate(questions) if q.stop - q.start <= longest]
    for single in (True, False):
        chosen = [i for i in short if (len(questions[i].asked) == 1) == single]
        tokens = [questions[i].stop - questions[i].start + specials for i in chosen]
        batches = engine.one_a_row(tokens, tokens_per_batch, _BUCKET_SIZES)
        own = [questions[i] for i in chosen]
        inputs = functools.partial(_inputs, engine, proteins, own, single)
        static = engine.loaded.vocabulary.hides, engine.amino_acids, softmax
        for batch, answers in engine.run(
            _answers, batches, inputs, *static, title="score", progress=progress
        ):
            for member, answer in zip(batch.members, answers, strict=False):
                yield chosen[member], answer[: len(own[member].asked)]


def _longest_row(engine: Engine) -> float:
    """Residues beyond which a causal model with a memory is asked piece by piece."""
    model = engine.loaded.model
    if model.readouts[0].kind != "causal" or not model.initial_carry(1):
        return math.inf
    return recurrence.LONGEST_ROW - engine.loaded.vocabulary.num_specials


def _in_pieces(
    engine: Engine, residues: np.ndarray, question: Question, softmax: Softmax
) -> np.ndarray:
    """Log-probabilities [asked, 20] of a causal model: each is what the token before expects."""
    prefix = np.array(engine.loaded.vocabulary.prefix_ids, np.int32)
    answers = recurrence.next_residues(engine, np.concatenate([prefix, residues]), softmax)
    return answers[np.asarray(question.asked) + len(prefix) - 1]


def _inputs(
    engine: Engine,
    proteins: Sequence[np.ndarray],
    questions: list[Question],
    single: bool,
    batch: RowBatch,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Features, hidden [rows, length] bool, and columns [rows, 1 or length] int32 that are read."""
    vocabulary = engine.loaded.vocabulary
    prefix, suffix = (
        np.array(ids, np.int32) for ids in (vocabulary.prefix_ids, vocabulary.suffix_ids)
    )
    tokens = []
    hidden = np.zeros(batch.shape, bool)
    columns = np.zeros((batch.shape.rows, 1 if single else batch.shape.length), np.int32)
    for row, q in enumerate(questions[m] for m in batch.members):
        tokens.append(np.concatenate([prefix, proteins[q.protein][q.start : q.stop], suffix]))
        shift = len(prefix) - q.start
        places = [np.asarray(residues, np.int32) + shift for residues in (q.hidden, q.asked)]
        if q.backwards:
            before, after = vocabulary.fixed_ends
            places = [before + len(tokens[-1]) - after - 1 - at for at in places]
            tokens[-1] = vocabulary.backwards(tokens[-1])
        hidden[row, places[0]] = True
        columns[row, : len(q.asked)] = places[1]
    return features(engine.loaded, batch, tokens), hidden, columns


def _answers(
    model: Any,
    params: Any,
    inputs: Any,
    hides: Hides,
    amino_acids: AminoAcids,
    softmax: Softmax,
) -> jax.Array:
    """Log-probabilities [rows, columns, 20] float32 at `columns` [rows, columns]."""
    readout = model.readouts[0]
    run = functools.partial(model.apply, {"params": params})
    batch, hidden, columns = inputs
    shown = readout.hide(batch, hidden, hides)
    if readout.kind == "query":  # a query stream of these positions alone
        shown["targets"] = columns
    h, context = run(shown, method="embed")
    attention = context[readout.stack].attention
    alike = attention.bias is None and attention.distances is None
    if readout.kind == "masked" and alike and not model.config.counts_layers:
        block, layers = run(readout.stack, method="rows")
        stream = _last_at(block, layers, h[readout.stack], context[readout.stack], columns)
    else:
        stream = run(h, context, method="stack")[0][readout.stack]
        if readout.kind != "query":
            stream = _at(readout.align(stream), columns)
    logits = run({readout.stack: stream}, method="head")
    return recurrence.log_probabilities(logits, amino_acids, softmax)


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
