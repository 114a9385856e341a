"""Likelihoods of proteins, and effects of mutations as differences of log-probabilities.

The log-likelihood of a protein is a sum over its standard residues (X is context). By readout:

- masked (BERT), query (XLNet): each residue is hidden alone, in a row of its own; exp of minus the
  mean is the pseudo-perplexity (Salazar et al. 2020, doi:10.18653/v1/2020.acl-main.240).
- denoising (T5): each residue is hidden alone from the encoder; the decoder is fed the true
  residues before it, which it therefore sees twice. Not comparable with pseudo-perplexities.
- causal: each residue given those before it, in one row a protein: the exact log-likelihood. For
  models in both directions (ProGen2) the mean over a row read forwards and one read backwards. The
  residue that is read first has an answer only where a token stands before it (RITA has none, and
  so scores the ends of a protein in one direction).

The effect of a mutation is positive where the model prefers the mutant. Marginals (Meier et al.
2021, doi:10.1101/2021.07.09.450648) are defined for substitutions: the sum over the mutated
positions of log p(mutant residue) - log p(wild-type residue). The softmax, over 20 residues or over
the vocabulary, does not change such differences.

- masked-marginals: all mutated positions are hidden together, as in the paper. Positions that do
  not fit one window are divided, in their order, into groups that fit, whose scores are added.
- masked-marginals-additive: one position is hidden at a time, as in the scripts of the paper and of
  ProteinGym: the sum of the single mutants' scores.
- wildtype-marginals: nothing is hidden, one forward for all variants of a wild type. Masked models
  only: other readouts would copy the input, or do not see it.
- likelihood-ratio: log p(mutant) - log p(wild type) of the whole sequences, as sums, not means. The
  only strategy for insertions and deletions, and for causal models.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from protlm_jax.data.rows import windows
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.engine import Engine, normalised, residues_in_row
from protlm_jax.evaluation.questions import Question, Softmax, ask
from protlm_jax.evaluation.scoring.mutations import Variant
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS, AS_WRITTEN, ResiduePolicy
from protlm_jax.vocabularies.structure import without_structure

Strategy = Literal[
    "masked-marginals", "masked-marginals-additive", "wildtype-marginals", "likelihood-ratio"
]

METHODS = {
    "masked": "masked pseudo-likelihood",
    "query": "query-stream pseudo-likelihood",
    "denoising": "denoising likelihood",
    "causal": "autoregressive likelihood",
}
SOFTMAX_NAMES = {"residues": "the 20 amino acids", "vocabulary": "the whole vocabulary"}
COLUMN = {residue: column for column, residue in enumerate(AMINO_ACIDS)}

# By kind of readout; the first is the default.
_HIDING: tuple[Strategy, ...] = ("masked-marginals", "masked-marginals-additive")
STRATEGIES: dict[str, tuple[Strategy, ...]] = {
    "masked": (*_HIDING, "wildtype-marginals", "likelihood-ratio"),
    "query": (*_HIDING, "likelihood-ratio"),
    "denoising": (*_HIDING, "likelihood-ratio"),
    "causal": ("likelihood-ratio",),
}
_PROTEINS_AT_ONCE = 256  # scored together, so that rows of one length fill batches


@dataclass(frozen=True)
class Likelihood:
    """The log-probabilities of one protein's residues.

    Attributes:
        log_probabilities: [residues] float32 natural logs; NaN where a residue is not scored, -inf
            where the model's answer is not finite.
        window: residues that the model saw at once, fewer than all where the protein did not fit.
    """

    log_probabilities: np.ndarray
    window: int

    @property
    def scored(self) -> int:
        """How many residues have a finite score."""
        return int(np.isfinite(self.log_probabilities).sum())

    @property
    def total(self) -> float:
        """The sum over scored residues, in nats."""
        return float(np.nansum(self.log_probabilities, dtype=np.float64))

    @property
    def mean(self) -> float:
        """Nats per scored residue; NaN without any."""
        return self.total / self.scored if self.scored else np.nan

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
    """Scores proteins in their order; they are read under `policy` (None: the model's own).

    Args:
        softmax: probabilities over the 20 amino acids, or over the whole vocabulary.
        length: tokens in a row, special ones included; None: the position table, or whole proteins
            where positions have no limit. In a longer protein each residue is predicted in the
            window around it. Causal models always read whole proteins.
        tokens_per_batch: budget of one batch; None suits the device.

    Raises:
        ProtlmError: for an unknown residue, or a model that predicts no residues.
    """
    limit = residue_limit(loaded, length)
    named = ((str(number), s) for number, s in enumerate(sequences, start=1))
    plain = list(normalised(named, policy or loaded.policy).values())
    options: dict[str, Any] = {"tokens_per_batch": tokens_per_batch, "progress": progress}
    return _likelihoods(loaded, plain, limit, {"softmax": softmax, **options})


def _likelihoods(
    loaded: LoadedModel, sequences: Sequence[str], limit: int | None, options: dict[str, Any]
) -> Iterator[Likelihood]:
    engine = Engine(loaded)
    for start in range(0, len(sequences), _PROTEINS_AT_ONCE):
        part = sequences[start : start + _PROTEINS_AT_ONCE]
        questions = [q for i, s in enumerate(part) for q in questions_of(loaded, i, s, limit)]
        proteins = [loaded.vocabulary.encode(s, specials=False) for s in part]
        arrays = [np.full(len(s), np.nan, np.float32) for s in part]
        ways = [np.zeros(len(s), np.float32) for s in part]
        for q in questions:
            arrays[q.protein][np.asarray(q.asked)] = 0.0
            ways[q.protein][np.asarray(q.asked)] += 1
        for index, answer in ask(engine, proteins, questions, **options):
            i, at = questions[index].protein, np.asarray(questions[index].asked)
            letters = without_structure(part[i])
            own = answer[np.arange(len(at)), [COLUMN[letters[place]] for place in at]]
            arrays[i][at] += np.where(np.isfinite(own), own / ways[i][at], -np.inf)
        for array in arrays:
            yield Likelihood(array, min(len(array), limit or len(array)))


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
    """The name of the model's likelihood."""
    both_ways = ", the mean of both directions" if loaded.model.readouts[0].both_ways else ""
    return METHODS[kind_of(loaded)] + both_ways


def residue_limit(loaded: LoadedModel, length: int | None) -> int | None:
    """Residues in a row of at most `length` tokens, which causal models ignore; None: no limit.

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
    """One row for each standard residue; for a causal model one for each direction.

    Raises:
        ProtlmError: a causal model's position table does not hold the protein.
    """
    residues = len(sequence)
    asked = [i for i, residue in enumerate(without_structure(sequence)) if residue in COLUMN]
    if kind_of(loaded) != "causal":
        return [Question(protein, *window_around(i, i, residues, limit), (i,), (i,)) for i in asked]
    if limit is not None and residues > limit:
        raise ProtlmError(
            f"a protein of {residues} residues is longer than the {limit} that {loaded.name} has "
            "positions for; a likelihood of its pieces would not be that of the protein"
        )
    before, after = loaded.vocabulary.fixed_ends
    # Where no token stands before the residue that is read first, nothing predicts it.
    first = {
        False: not loaded.vocabulary.prefix_ids,
        True: not before + len(loaded.vocabulary.suffix_ids) - after,
    }
    ways = (False, True) if loaded.model.readouts[0].both_ways else (False,)
    questions = []
    for way in ways:
        unasked = (residues - 1 if way else 0) if first[way] else -1
        if own := [i for i in asked if i != unasked]:
            questions.append(Question(protein, 0, residues, (), own, way))
    return questions


def choose_strategy(loaded: LoadedModel, strategy: Strategy | None) -> Strategy:
    """The strategy, or the model's default for None.

    Raises:
        ProtlmError: the strategy is not defined for the model.
    """
    allowed = STRATEGIES[kind_of(loaded)]
    if strategy is None or strategy in allowed:
        return strategy or allowed[0]
    raise ProtlmError(
        f"{strategy} is not defined for {loaded.name} ({kind_of(loaded)} readout); it has "
        f"{' and '.join(allowed)}"
    )


def strategy_of(variant: Variant, strategy: Strategy) -> Strategy:
    """How a variant is scored where `strategy` was chosen."""
    return "likelihood-ratio" if variant.is_indel else strategy


def require_scorable(
    loaded: LoadedModel, variant: Variant, strategy: Strategy, limit: int | None
) -> None:
    """Raises ProtlmError where a mutated residue is none of the 20, or the model cannot read a
    sequence."""
    wildtype, mutant = map(without_structure, (variant.wildtype, variant.sequence))
    if variant.is_indel:
        change = Counter(mutant)
        change.subtract(wildtype)
        changed = {letter for letter, count in change.items() if count}
    else:
        changed = {s[i] for s in (wildtype, mutant) for i in variant.positions}
    if unscored := sorted(changed - set(COLUMN)):
        raise ProtlmError(
            f"the mutation changes {unscored[0]}, which is none of the 20 amino acids; the model "
            "has no probability for it to compare"
        )
    loaded.vocabulary.encode(variant.wildtype, specials=False)
    if strategy_of(variant, strategy) == "likelihood-ratio" and not variant.is_wildtype:
        loaded.vocabulary.encode(variant.sequence, specials=False)
        if kind_of(loaded) == "causal":
            questions_of(loaded, 0, max(variant.wildtype, variant.sequence, key=len), limit)


def groups_of(positions: tuple[int, ...], limit: int | None) -> list[tuple[int, ...]]:
    """Ascending positions, divided from the first on into groups that fit a window of `limit`."""
    groups: list[tuple[int, ...]] = []
    for at in positions:
        if groups and (limit is None or at - groups[-1][0] < limit):
            groups[-1] += (at,)
        else:
            groups.append((at,))
    return groups


def effects(
    loaded: LoadedModel,
    variants: Sequence[Variant],
    *,
    strategy: Strategy | None = None,
    softmax: Softmax = "residues",
    length: int | None = None,
    tokens_per_batch: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Effects [variants] float64 in nats, 0 for the wild type; -inf where an answer is not finite.

    `require_scorable` has passed for each variant. The strategy None is the model's default;
    `softmax` changes likelihood-ratio only; of a longer wild type than `length` the model sees the
    window around the mutations. Other arguments as of `likelihoods`.

    Raises:
        ProtlmError: the strategy is not defined for the model, or it cannot read a sequence.
    """
    strategy, limit = choose_strategy(loaded, strategy), residue_limit(loaded, length)
    result = np.zeros(len(variants))
    changed = [i for i, v in enumerate(variants) if not v.is_wildtype]
    ratios = [i for i in changed if strategy_of(variants[i], strategy) == "likelihood-ratio"]
    marginals = sorted({*changed} - {*ratios})
    options: dict[str, Any] = {"tokens_per_batch": tokens_per_batch, "progress": progress}
    if marginals:
        own = [variants[i] for i in marginals]
        result[marginals] = _marginals(loaded, own, strategy, limit, options)
    if ratios:
        pairs = [(variants[i].sequence, variants[i].wildtype) for i in ratios]
        options |= {"softmax": softmax, "length": length, "policy": AS_WRITTEN}
        plain = list(dict.fromkeys(s for pair in pairs for s in reversed(pair)))
        scores = likelihoods(loaded, plain, **options)
        total = {s: score.total for s, score in zip(plain, scores, strict=True)}
        result[ratios] = [total[mutant] - total[wildtype] for mutant, wildtype in pairs]
    return np.where(np.isfinite(result), result, -np.inf)


def _marginals(
    loaded: LoadedModel,
    variants: Sequence[Variant],
    strategy: Strategy,
    limit: int | None,
    options: dict[str, Any],
) -> np.ndarray:
    """log p(mutant residues) - log p(wild-type residues) [variants]."""
    index = {w: i for i, w in enumerate(dict.fromkeys(v.wildtype for v in variants))}
    together = 1 if strategy == "masked-marginals-additive" else limit
    # One row for each set of hidden positions of a wild type; variants with the same set share it.
    asked: dict[tuple[int, tuple[int, ...]], set[int]] = defaultdict(set)
    terms = []  # of each variant: wild type, hidden positions, position
    for variant in variants:
        i, at = index[variant.wildtype], variant.positions
        groups = groups_of(at, together) if strategy != "wildtype-marginals" else [()]
        terms.append([(i, hidden, place) for hidden in groups for place in hidden or at])
        for i, hidden, place in terms[-1]:
            asked[i, hidden].add(place)
    wildtypes, questions = list(index), []
    for (i, hidden), places in asked.items():
        residues = len(wildtypes[i])
        if hidden:
            window = window_around(hidden[0], hidden[-1], residues, limit)
            questions.append(Question(i, *window, hidden, hidden))
            continue
        for w in windows(residues, limit):
            if own := sorted(p for p in places if w.keep_start <= p < w.keep_stop):
                questions.append(Question(i, w.start, w.stop, (), own))
    proteins = [loaded.vocabulary.encode(w, specials=False) for w in wildtypes]
    answers: dict[Any, np.ndarray] = {}
    for number, rows in ask(Engine(loaded), proteins, questions, softmax="residues", **options):
        q = questions[number]
        for place, row in zip(q.asked, rows.astype(np.float64), strict=True):
            answers[q.protein, tuple(q.hidden), place] = row
    result = np.zeros(len(variants))
    for n, (variant, of_variant) in enumerate(zip(variants, terms, strict=True)):
        mutant, wildtype = map(without_structure, (variant.sequence, variant.wildtype))
        for term in of_variant:
            result[n] += answers[term][COLUMN[mutant[term[2]]]]
            result[n] -= answers[term][COLUMN[wildtype[term[2]]]]
    return result
