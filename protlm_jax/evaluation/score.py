"""How likely a model finds a protein: the log-probability of each residue, which it cannot see.

What that means is decided by what the model was trained to answer, its readout:

- masked (BERT and its kin): each residue is masked alone, in a row of its own, and the
  log-probabilities are summed to a pseudo-log-likelihood; exp of minus their mean is the
  pseudo-perplexity (Salazar et al. 2020, doi:10.18653/v1/2020.acl-main.240).
- query (XLNet): the same, each residue kept alone from the query stream.
- denoising (T5): each residue is hidden alone in an encoder input of its own, since an encoder that
  sees the protein would let the decoder copy it; the decoder is fed the true residues before it,
  which it so sees twice. Not comparable with pseudo-perplexities.
- causal (Transformer-XL, GPT-2): each residue from those before it, one row a protein whatever its
  length: the sum is the exact log-likelihood.
- causal in both directions (ProGen2): each residue from those before it, and again from those after
  it, in a row that is read backwards; the mean of the two logarithms, so that the sum is the mean
  of both log-likelihoods.

The 20 standard amino acids are scored; X stays in its place as context.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.engine import Engine, normalised, residues_in_row
from protlm_jax.evaluation.questions import Question, Softmax, ask
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS, ResiduePolicy

METHODS = {
    "masked": "masked pseudo-likelihood",
    "query": "query-stream pseudo-likelihood",
    "denoising": "denoising likelihood",
    "causal": "autoregressive likelihood",
}
SOFTMAX_NAMES = {"residues": "the 20 amino acids", "vocabulary": "the whole vocabulary"}
COLUMN = {residue: column for column, residue in enumerate(AMINO_ACIDS)}

_PROTEINS_AT_ONCE = 256  # how far the stream looks ahead to fill its buckets


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds one protein.

    Attributes:
        log_probabilities: [residues] float32 natural logs, NaN where a residue is not scored.
        window: residues that the model was shown at once; fewer than the protein has where it did
            not fit.
        finite: whether all answers of the model were; otherwise total, mean and perplexity are NaN.
    """

    log_probabilities: np.ndarray
    window: int
    finite: bool = True

    @property
    def scored(self) -> int:
        """How many residues are scored."""
        return int(np.isfinite(self.log_probabilities).sum())

    @property
    def total(self) -> float:
        """The sum over scored residues, in nats."""
        if not self.finite:
            return math.nan
        return float(np.nansum(self.log_probabilities, dtype=np.float64))

    @property
    def mean(self) -> float:
        """Nats per scored residue; NaN without any."""
        return self.total / self.scored if self.scored else math.nan

    @property
    def perplexity(self) -> float:
        """exp(-mean): the pseudo-perplexity of a masked model."""
        with np.errstate(over="ignore"):
            return float(np.exp(-np.float64(self.mean)))


def likelihoods(
    loaded: LoadedModel,
    sequences: Iterable[str],
    *,
    softmax: Softmax = "residues",
    length: int | None = None,
    tokens_per_batch: int | None = None,
    policy: ResiduePolicy | None = None,
    progress: bool = False,
) -> Iterator[Likelihood]:
    """Scores proteins, in their order.

    Args:
        loaded: the model.
        sequences: proteins, spaced or not; read under `policy`.
        softmax: probabilities over the 20 amino acids, or over the whole vocabulary.
        length: tokens in a row, special tokens included; None takes the position table's size, or
            whole proteins where positions have no limit. In a protein that is longer each residue
            is asked in the window around it. Causal models read whole proteins always.
        tokens_per_batch: budget of one batch; None suits the device.
        policy: what to do with rare residues and lower case; None: as the model has it.
        progress: draw a progress bar on a terminal.

    Raises:
        ProtlmError: for an unknown residue, or a model that predicts no residues.
    """
    kind_of(loaded)
    named = ((str(number), s) for number, s in enumerate(sequences, start=1))
    plain = list(normalised(named, policy or loaded.policy).values())
    limit = residue_limit(loaded, length)
    return _stream(loaded, plain, softmax, limit, tokens_per_batch, progress)


def kind_of(loaded: LoadedModel) -> str:
    """The kind of the model's readout.

    Raises:
        ProtlmError: the model predicts no residues.
    """
    readout = loaded.model.readouts[0]
    if not readout.predicts_residues:
        raise ProtlmError(f"{loaded.name} {readout.silence}")
    return readout.kind


def method_of(loaded: LoadedModel) -> str:
    """What a score of the model is, in words.

    Raises:
        ProtlmError: the model predicts no residues.
    """
    both_ways = ", the mean of both directions" if loaded.model.readouts[0].both_ways else ""
    return METHODS[kind_of(loaded)] + both_ways


def residue_limit(loaded: LoadedModel, length: int | None) -> int | None:
    """Residues in a row of at most `length` tokens; None for a causal model: it reads on.

    Raises:
        ProtlmError: the position table does not hold such a row.
    """
    return residues_in_row(loaded, None if kind_of(loaded) == "causal" else length)


def window_around(first: int, last: int, residues: int, limit: int | None) -> tuple[int, int]:
    """The stretch [start, stop) of at most `limit` residues with `first` to `last` in its middle,
    as far as the ends of the protein allow."""
    if limit is None or residues <= limit:
        return 0, residues
    start = (first + last + 1) // 2 - limit // 2
    start = min(max(start, 0), residues - limit)
    return start, start + limit


def questions_of(
    loaded: LoadedModel, protein: int, sequence: str, limit: int | None
) -> list[Question]:
    """What is asked about one protein: a row a standard residue; of a causal model one row.

    Raises:
        ProtlmError: a causal model's position table does not hold the protein.
    """
    residues = len(sequence)
    asked = [i for i, residue in enumerate(sequence) if residue in COLUMN]
    if kind_of(loaded) != "causal":
        windows = (window_around(i, i, residues, limit) for i in asked)
        return [
            Question(protein, start, stop, (i,), (i,))
            for i, (start, stop) in zip(asked, windows, strict=True)
        ]
    if limit is not None and residues > limit:
        raise ProtlmError(
            f"a protein of {residues} residues is longer than the {limit} that {loaded.name} has "
            "positions for; a likelihood of its pieces would not be that of the protein"
        )
    if not loaded.vocabulary.prefix_ids:  # nothing stands before the first residue
        asked = [i for i in asked if i]
    ways = (False, True) if loaded.model.readouts[0].both_ways else (False,)
    return [Question(protein, 0, residues, (), asked, way) for way in ways] if asked else []


def _stream(
    loaded: LoadedModel,
    sequences: Sequence[str],
    softmax: Softmax,
    limit: int | None,
    budget: int | None,
    progress: bool,
) -> Iterator[Likelihood]:
    engine, ways = Engine(loaded), 1 + loaded.model.readouts[0].both_ways
    for start in range(0, len(sequences), _PROTEINS_AT_ONCE):
        part = sequences[start : start + _PROTEINS_AT_ONCE]
        questions = [q for i, s in enumerate(part) for q in questions_of(loaded, i, s, limit)]
        proteins = [loaded.vocabulary.encode(s, specials=False) for s in part]
        arrays = [np.full(len(s), np.nan, np.float32) for s in part]
        finite = [True] * len(part)
        for index, answer in ask(
            *(engine, proteins, questions),
            softmax=softmax,
            tokens_per_batch=budget,
            progress=progress,
        ):
            i, at = questions[index].protein, np.asarray(questions[index].asked)
            columns = [COLUMN[part[i][place]] for place in at]
            own = answer[np.arange(len(at)), columns] / ways
            finite[i] &= bool(np.isfinite(own).all())
            arrays[i][at] = np.nan_to_num(arrays[i][at]) + own
        for array, whole in zip(arrays, finite, strict=True):
            yield Likelihood(array, min(len(array), limit or len(array)), whole)
