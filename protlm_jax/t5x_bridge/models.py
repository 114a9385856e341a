"""Our models and objectives behind T5X's model interface.

    EncoderDecoderModel    ProtT5 and its kin, under "denoising"
    EncoderModel           BERT, ALBERT, ESM-2 and all that hide residues in a single stack
    DecoderModel           GPT-2 and ProGen2, under "causal"

The loss is that of the objective, the same code as in a native run: T5X's own loss, label smoothing
and z-loss are not used. It is the mean over what is asked. With `num_microbatches` T5X adds up the
gradients of the parts, so that each weighs alike and not by what it asks, and it gives all of them
the same key, so that the same places are hidden in each (`train.accumulate` does neither).
Evaluation hides what the objective hides in evaluation, chosen by the content of the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from flax.core import FrozenDict, freeze, unfreeze
from flax.linen.partitioning import AxisMetadata
from flax.traverse_util import flatten_dict, unflatten_dict
from t5x import decoding
from t5x import metrics as t5x_metrics
from t5x.models import BaseTransformerModel

from protlm_jax.data.seqio_features import SeqioVocabulary
from protlm_jax.errors import ProtlmError
from protlm_jax.models import ModelConfig, build, preset
from protlm_jax.models.axes import NamedAxes
from protlm_jax.models.build import init_boxed
from protlm_jax.models.readouts import is_residue, residue_logits
from protlm_jax.objectives import Score, build_objective
from protlm_jax.objectives.base import among, cross_entropy
from protlm_jax.objectives.causal import with_targets
from protlm_jax.t5x_bridge.features import EncoderDecoderFeatures, SingleStackFeatures
from protlm_jax.vocabularies import Vocabulary, get_vocabulary

Batch = dict[str, jax.Array]
Answers = tuple[jax.Array, dict[str, jax.Array]]
Metrics = dict[str, clu_metrics.Metric]
NextToken = Callable[[jax.Array, jax.Array], jax.Array]
"""(what is written [rows, length] int32, shifted right after a 0, the place [rows] int32 of the
last of it) -> logits [rows, vocabulary] float32 of the token that follows."""


def architecture(name: str, **fields: Any) -> ModelConfig:
    """The architecture of a published model with some fields changed.

    Raises:
        ProtlmError: no such preset, or a value that a field cannot have.
    """
    return preset(name).replace(**fields)


class BridgedModel(BaseTransformerModel):
    """A model of ours and what it is asked, as T5X trains, evaluates and queries it.

    Attributes:
        module: the linen module of `config`.
        objective: one that names the family, with its options.
        READOUTS: kinds of readout that the class serves.
    """

    FEATURE_CONVERTER_CLS: ClassVar[Any] = SingleStackFeatures
    READOUTS: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        config: ModelConfig,
        objective: str,
        optimizer_def: Any,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Puts them together.

        Args:
            config: the architecture.
            objective: its name, see `protlm_jax.objectives`.
            optimizer_def: T5X's, or `optimizers.Optimizer`.
            options: fields of the objective's dataclass.

        Raises:
            ProtlmError: a family that another class serves, that this objective does not train, or
                that carries something from batch to batch, for which T5X has no place.
        """
        module = build(config)
        self._check(config, module, objective)
        self.vocabulary = get_vocabulary(config.vocabulary)
        self.objective = build_objective(objective, self.vocabulary, **(options or {}))
        seqio_vocabulary = SeqioVocabulary(self.vocabulary)
        super().__init__(module, seqio_vocabulary, seqio_vocabulary, optimizer_def)

    def _check(self, config: ModelConfig, module: Any, objective: str) -> None:
        kind = module.readouts[0].kind
        if kind not in self.READOUTS:
            raise ProtlmError(
                f"{type(self).__name__} serves models of the kinds {', '.join(self.READOUTS)}, and "
                f"{config.family} is of the kind {kind}: take another class of t5x_bridge.models"
            )
        if objective not in module.objectives:
            raise ProtlmError(
                f"the objective {objective!r} does not train {config.family}, which has "
                f"{', '.join(module.objectives)}"
            )
        if module.initial_carry(1):
            raise ProtlmError(
                f"{config.family} carries a memory from batch to batch, for which T5X has no "
                "place: train it with protlm train"
            )

    def get_initial_variables(
        self,
        rng: jax.Array,
        input_shapes: Mapping[str, Any],
        input_types: Mapping[str, Any] | None = None,
    ) -> FrozenDict:
        """Fresh float32 parameters, "params", and their logical axes, "params_axes"."""
        with nn.logical_axis_rules(()):  # constraints in the model would act on initial values
            boxed = init_boxed(self.module, rng)
        boxes = flatten_dict(boxed, is_leaf=lambda _, leaf: isinstance(leaf, NamedAxes))
        axes = {
            (*path[:-1], f"{path[-1]}_axes"): AxisMetadata(tuple(box.names))
            for path, box in boxes.items()
        }
        params = nn.meta.unbox(boxed)
        return freeze({"params": params, "params_axes": unflatten_dict(axes)})

    def loss_fn(
        self, params: Any, batch: Batch, dropout_rng: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        """The mean loss over what is asked, and metrics.

        Args:
            params: the model's.
            batch: features of one of the objective's tasks.
            dropout_rng: the objective's key: what is hidden, and dropout; None evaluates.
        """
        if dropout_rng is None:
            return self.eval_fn(params, batch)
        score = self.objective(self.module, unfreeze(params), batch, dropout_rng)
        return score.loss_sum / jnp.maximum(score.weight_sum, 1.0), metrics_of(score, batch)

    def eval_fn(self, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        """As `loss_fn`, but as the objective evaluates, and the same for the same batch."""
        rng = content_key(batch)
        score = self.objective(self.module, unfreeze(params), batch, rng, evaluation=True)
        return score.loss_sum / jnp.maximum(score.weight_sum, 1.0), metrics_of(score, batch)

    def predict_batch_with_aux(
        self, params: Any, batch: Batch, rng: jax.Array | None = None
    ) -> Answers:
        """Tokens [batch, length] int32 that the model gives, and {"scores": [batch] float32}."""
        raise NotImplementedError

    def score_batch(self, params: Any, batch: Batch) -> jax.Array:
        """The log-probability of each row in nats: [batch] float32; see the classes."""
        raise NotImplementedError

    def _compute_logits(
        self, params: Any, batch: Batch, dropout_rng: jax.Array | None = None
    ) -> jax.Array:
        rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
        return self._apply(params)(batch, dropout_rng is None, rngs=rngs)

    def _apply(self, params: Any) -> Callable[..., Any]:
        return functools.partial(self.module.apply, {"params": unfreeze(params)})


class EncoderDecoderModel(BridgedModel):
    """A model that writes a target from what its encoder sees."""

    FEATURE_CONVERTER_CLS: ClassVar[Any] = EncoderDecoderFeatures
    READOUTS: ClassVar[tuple[str, ...]] = ("denoising",)

    def score_batch(self, params: Any, batch: Batch) -> jax.Array:
        """log p(target tokens | encoder's input), the closing token included: [batch]."""
        logits = self._compute_logits(params, batch)
        nll = cross_entropy(logits, batch["decoder_target_tokens"])
        return -jnp.sum(nll * batch["decoder_loss_weights"], axis=-1)

    def predict_batch_with_aux(
        self, params: Any, batch: Batch, rng: jax.Array | None = None, num_decodes: int = 1
    ) -> Answers:
        """The target that beam search finds, with `num_decodes` beams, and its score.

        The rows hold one protein each (pack=False). Each step runs the decoder on all that is
        written so far, without a cache, once the encoder has run: L steps of L tokens.
        """
        apply = self._apply(params)
        rows, length = batch["decoder_input_tokens"].shape
        beams = functools.partial(decoding.flat_batch_beam_expand, beam_size=num_decodes)
        h, context = apply(batch, method="embed")
        encoder, _ = apply("encoder", h["encoder"], context["encoder"], method="run")
        shown = {name: beams(feature) for name, feature in batch.items()}
        shown["decoder_segment_ids"] = jnp.ones_like(shown["decoder_segment_ids"])
        memory = {"encoder": beams(encoder)}

        def next_token(tokens: jax.Array, index: jax.Array) -> jax.Array:
            h, context = apply({**shown, "decoder_input_tokens": tokens}, method="embed")
            context = apply(memory, context, method="connect")
            decoder, _ = apply("decoder", h["decoder"], context["decoder"], method="run")
            here = jnp.take_along_axis(decoder, index[:, None, None], axis=1)
            return apply({"decoder": here}, method="head")[:, 0]

        nothing = jnp.zeros((rows, length), jnp.int32)
        written, scores = continuations(next_token, nothing, self.vocabulary, num_decodes)
        return written, {"scores": scores}


class EncoderModel(BridgedModel):
    """A model of one stack that sees both sides of what it is asked."""

    READOUTS: ClassVar[tuple[str, ...]] = ("masked", "query", "detection")

    def score_batch(self, params: Any, batch: Batch) -> jax.Array:
        """The pseudo-log-likelihood, each residue hidden alone (Salazar et al. 2020): [batch].

        Over the 20 amino acids, as `protlm score` has it: L passes for rows of L tokens.
        """
        tokens = batch["input_tokens"]
        answers = self._answers(params, batch)
        own = is_residue(tokens, self.vocabulary.amino_acid_columns)
        return jnp.sum(jnp.where(own, answers, 0.0), axis=(1, 2))

    def predict_batch_with_aux(
        self, params: Any, batch: Batch, rng: jax.Array | None = None
    ) -> Answers:
        """At each residue the amino acid that the model expects there when it cannot see it."""
        tokens, segments = batch["input_tokens"], batch["segment_ids"]
        ids = jnp.asarray(self.vocabulary.amino_acid_ids)
        answers = self._answers(params, batch)
        residue = among(tokens, jnp.asarray(self.vocabulary.residue_ids)) & (segments > 0)
        expected = jnp.where(residue, jnp.take(ids, jnp.argmax(answers, axis=-1)), tokens)
        return expected, {"scores": self.score_batch(params, batch)}

    def _answers(self, params: Any, batch: Batch) -> jax.Array:
        """log p(amino acid) at each position when it alone is hidden: [batch, length, 20]."""
        readout, apply = self.module.readouts[0], self._apply(params)
        columns = self.vocabulary.amino_acid_columns
        rows, length = batch["input_tokens"].shape

        def ask(position: jax.Array) -> jax.Array:
            hidden = jnp.tile(jnp.arange(length) == position, (rows, 1))
            logits = apply(readout.hide(batch, hidden, self.vocabulary.hides))
            return jax.nn.log_softmax(residue_logits(logits[:, position], columns), axis=-1)

        return jnp.swapaxes(jax.lax.map(ask, jnp.arange(length)), 0, 1)


class DecoderModel(BridgedModel):
    """A model of one stack that reads from left to right."""

    READOUTS: ClassVar[tuple[str, ...]] = ("causal",)

    def score_batch(self, params: Any, batch: Batch) -> jax.Array:
        """log p of all tokens but the first, the closing token included: [batch]."""
        asked = with_targets(batch)
        nll = cross_entropy(self._compute_logits(params, batch), asked["target_tokens"])
        return -jnp.sum(nll * asked["target_weights"], axis=-1)

    def predict_batch_with_aux(
        self, params: Any, batch: Batch, rng: jax.Array | None = None, num_decodes: int = 1
    ) -> Answers:
        """Each row without its closing token, and how the model goes on, to the end of the row.

        By beam search with `num_decodes` beams, without a cache; one protein a row (pack=False).
        """
        apply = self._apply(params)
        tokens = batch["input_tokens"]
        given = (batch["segment_ids"] > 0) & ~among(tokens, jnp.asarray(self.vocabulary.suffix_ids))
        rows, length = tokens.shape
        shown = {
            "segment_ids": jnp.ones((rows * num_decodes, length), jnp.int32),
            "positions": jnp.tile(jnp.arange(length), (rows * num_decodes, 1)),
        }

        def next_token(before: jax.Array, index: jax.Array) -> jax.Array:
            # `before` begins with a 0, which T5 starts from and these models do not know.
            written = jnp.pad(before[:, 1:], ((0, 0), (0, 1)))
            logits = apply({**shown, "input_tokens": written})
            place = jnp.maximum(index - 1, 0)
            return jnp.take_along_axis(logits, place[:, None, None], axis=1)[:, 0]

        prompt = jnp.where(given, tokens, 0)
        written, scores = continuations(next_token, prompt, self.vocabulary, num_decodes)
        return written, {"scores": scores}


def content_key(batch: Batch) -> jax.Array:
    """A key that follows from the tokens of a batch and their places alone."""
    name = "input_tokens" if "input_tokens" in batch else "encoder_input_tokens"
    tokens = batch[name].astype(jnp.uint32)
    odd = 2 * jnp.arange(tokens.size, dtype=jnp.uint32).reshape(tokens.shape) + 1
    return jax.random.fold_in(jax.random.key(0), jnp.sum(tokens * odd * jnp.uint32(2654435761)))


@flax.struct.dataclass
class Perplexity(clu_metrics.Average):
    """exp of a mean negative log-likelihood in nats."""

    def compute(self) -> Any:
        return jnp.exp(super().compute())


def metrics_of(score: Score, batch: dict[str, jax.Array]) -> Metrics:
    """The numbers of `Objective.summary`, the loss, and how fast it goes.

    Means are over residues, not over steps: two steps of unequal weight count by their weight.

    Args:
        score: of a batch.
        batch: the features that were scored; "segment_ids" mark what is padding.
    """
    metrics: Metrics = {"loss": _average(score.loss_sum, score.weight_sum)}
    for name, total in score.metrics.items():
        if not name.endswith("_sum"):
            continue
        group = name.rpartition("/")[0]
        count = score.metrics[f"{group}/count"]
        metrics[name.removesuffix("_sum")] = _average(total, count)
        if name.endswith("/nll_sum"):
            metrics[f"{group}/perplexity"] = Perplexity(total=total, count=count)
    filled = {name: ids > 0 for name, ids in batch.items() if name.endswith("segment_ids")}
    for name, mask in filled.items():
        part = name.removesuffix("segment_ids") + "tokens"
        metrics[f"non_padding_fraction/{part}"] = _average(jnp.sum(mask), mask.size)
    tokens = jnp.sum(next(iter(filled.values())))
    metrics |= {
        "timing/seconds": t5x_metrics.Time(),
        "timing/steps_per_second": t5x_metrics.StepsPerTime.from_model_output(),
        "timing/tokens_per_second": t5x_metrics.TimeRate.from_model_output(numerator=tokens),
    }
    return metrics


def _average(total: Any, count: Any) -> clu_metrics.Average:
    return clu_metrics.Average(
        total=jnp.asarray(total, jnp.float32), count=jnp.asarray(count, jnp.float32)
    )


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
