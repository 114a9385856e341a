"""Effects of mutations: how much likelier a model finds the mutant than the wild type.

Strategies. The marginals are after Meier et al. 2021 (doi:10.1101/2021.07.09.450648) and defined
for substitutions, as a sum over the mutated positions T of log p(mutant residue) - log p(wild-type
residue):

- masked-marginals: the wild type with all positions of T hidden at once, as the paper defines it.
- masked-marginals-additive: the same with one position of T hidden at a time, which makes it the
  sum of the single mutants' scores. The scripts published with the paper and with ProteinGym do
  this. Equal to masked-marginals for single substitutions.
- wildtype-marginals: the wild type as it is, one forward for all its variants. Masked models only:
  others would copy what they see, or cannot see it.
- likelihood-ratio: log p(mutant sequence) - log p(wild-type sequence), with the log-likelihood that
  `score` defines for the model: exact for causal models, otherwise pseudo-log-likelihoods, which
  cost one row for each residue of each mutant. Sums over residues, not means.

Insertions and deletions have no marginals: every model scores them by likelihood-ratio.

Positive means that the model prefers the mutant. A marginal compares residues at one position, so
that the softmax, over 20 residues or the vocabulary, does not change it. T5 is asked as in `score`:
positions hidden in the encoder's input, the decoder fed the wild type's residues before each.

Where the positions of T do not fit one window of the model, masked-marginals divides them, from the
first on, into groups that fit, and adds up the scores of the groups.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from protlm_jax.data.rows import windows
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.engine import Engine
from protlm_jax.evaluation.questions import Question, Softmax, ask
from protlm_jax.evaluation.score import (
    COLUMN,
    kind_of,
    likelihoods,
    questions_of,
    residue_limit,
    window_around,
)
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import ResiduePolicy

Strategy = Literal[
    "masked-marginals", "masked-marginals-additive", "wildtype-marginals", "likelihood-ratio"
]

# By kind of readout; the first is the default.
STRATEGIES: dict[str, tuple[Strategy, ...]] = {
    "masked": (
        *("masked-marginals", "masked-marginals-additive"),
        *("wildtype-marginals", "likelihood-ratio"),
    ),
    "query": ("masked-marginals", "masked-marginals-additive", "likelihood-ratio"),
    "denoising": ("masked-marginals", "masked-marginals-additive", "likelihood-ratio"),
    "causal": ("likelihood-ratio",),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A wild type and its mutant.

    Attributes:
        wildtype: normalised residues.
        sequence: those of the mutant.
        shifted: residues were inserted and as many deleted; positions cannot be compared.
    """

    wildtype: str
    sequence: str
    shifted: bool = False

    @property
    def is_wildtype(self) -> bool:
        return self.sequence == self.wildtype

    @property
    def is_indel(self) -> bool:
        """Whether residues were inserted or deleted."""
        return self.shifted or len(self.sequence) != len(self.wildtype)

    @property
    def positions(self) -> tuple[int, ...]:
        """Residues that differ, counted from 0, ascending; of sequences of one length."""
        own, other = (np.frombuffer(s.encode(), np.uint8) for s in (self.wildtype, self.sequence))
        return tuple(np.flatnonzero(own != other).tolist())


def choose_strategy(loaded: LoadedModel, wanted: Strategy | None) -> Strategy:
    """The strategy to use: `wanted`, or the model's own.

    Raises:
        ProtlmError: the model cannot answer what the strategy asks.
    """
    allowed = STRATEGIES[kind_of(loaded)]
    if wanted is None or wanted in allowed:
        return wanted or allowed[0]
    raise ProtlmError(
        f"{wanted} is not defined for {loaded.name} ({kind_of(loaded)} readout); it has "
        f"{' and '.join(allowed)}"
    )


def strategy_of(variant: Variant, strategy: Strategy) -> Strategy:
    """How a variant is scored where `strategy` was chosen."""
    return "likelihood-ratio" if variant.is_indel else strategy


def require_scorable(
    loaded: LoadedModel, variant: Variant, strategy: Strategy, limit: int | None
) -> None:
    """Checks that a model has a score for a variant.

    Raises:
        ProtlmError: a mutated residue is none of the 20, or the model cannot read a sequence.
    """
    if variant.is_indel:
        other = Counter(variant.sequence)
        other.subtract(variant.wildtype)
        unscored = [letter for letter in other if letter not in COLUMN and other[letter]]
    else:
        at = variant.positions
        changed = {s[i] for s in (variant.wildtype, variant.sequence) for i in at}
        unscored = sorted(changed - set(COLUMN))
    if unscored:
        raise ProtlmError(
            f"the mutation changes {unscored[0]}, which is none of the 20 amino acids; the model "
            "has no probability for it to compare"
        )
    loaded.vocabulary.encode(variant.wildtype, specials=False)
    if strategy_of(variant, strategy) == "likelihood-ratio" and not variant.is_wildtype:
        loaded.vocabulary.encode(variant.sequence, specials=False)
        if kind_of(loaded) == "causal":
            longest = max(variant.wildtype, variant.sequence, key=len)
            questions_of(loaded, 0, longest, limit)


def groups_of(positions: tuple[int, ...], limit: int | None) -> list[tuple[int, ...]]:
    """Positions that are hidden together: all, or from the first on those that fit one window."""
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
    """Effects [variants] float64 in nats, positive where the mutant is likelier; the wild type's
    is 0.

    Args:
        loaded: the model.
        variants: `require_scorable` has passed for each.
        strategy: see the top of this file; None takes the model's own.
        softmax: matters for likelihood-ratio alone.
        length: tokens in a row, as in `score.likelihoods`; of a longer wild type the model is shown
            the window around the mutations.
        tokens_per_batch: budget of one batch; None suits the device.
        progress: draw a progress bar on a terminal.

    Raises:
        ProtlmError: a strategy that the model does not have, or a sequence that it cannot read.
    """
    strategy = choose_strategy(loaded, strategy)
    result = np.zeros(len(variants))
    changed = [i for i, v in enumerate(variants) if not v.is_wildtype]
    ratios = [i for i in changed if strategy_of(variants[i], strategy) == "likelihood-ratio"]
    marginals = sorted({*changed} - {*ratios})
    options: dict[str, Any] = {"tokens_per_batch": tokens_per_batch, "progress": progress}
    if marginals:
        limit = residue_limit(loaded, length)
        result[marginals] = _marginals(
            loaded, [variants[i] for i in marginals], strategy, limit, options
        )
    if ratios:
        options |= {"softmax": softmax, "length": length}
        result[ratios] = _likelihood_ratios(loaded, [variants[i] for i in ratios], options)
    return result


def _marginals(
    loaded: LoadedModel,
    variants: Sequence[Variant],
    strategy: Strategy,
    limit: int | None,
    options: dict[str, Any],
) -> np.ndarray:
    """log p(mutant residues) - log p(wild-type residues) [variants]."""
    wildtypes = list(dict.fromkeys(v.wildtype for v in variants))
    index = {sequence: i for i, sequence in enumerate(wildtypes)}
    together = 1 if strategy == "masked-marginals-additive" else limit
    # One row for each set of hidden positions of a wild type, however many variants share it.
    asked: dict[tuple[int, tuple[int, ...]], set[int]] = defaultdict(set)
    terms = []  # of each variant: wild type, hidden positions, and the position that is read
    for variant in variants:
        i, at = index[variant.wildtype], variant.positions
        groups = groups_of(at, together) if strategy != "wildtype-marginals" else [()]
        terms.append([(i, hidden, place) for hidden in groups for place in hidden or at])
        for i, hidden, place in terms[-1]:
            asked[i, hidden].add(place)
    questions = []
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
            answers[q.protein, q.hidden, place] = row
    result = np.zeros(len(variants))
    for n, (variant, of_variant) in enumerate(zip(variants, terms, strict=True)):
        for term in of_variant:
            result[n] += answers[term][COLUMN[variant.sequence[term[2]]]]
            result[n] -= answers[term][COLUMN[variant.wildtype[term[2]]]]
    return result


def _likelihood_ratios(
    loaded: LoadedModel, variants: Sequence[Variant], options: dict[str, Any]
) -> np.ndarray:
    """log p(mutant sequence) - log p(wild type) [variants]."""
    sequences = list(dict.fromkeys(s for v in variants for s in (v.wildtype, v.sequence)))
    normalised = ResiduePolicy(rare="keep")
    scores = likelihoods(loaded, sequences, policy=normalised, **options)
    total = {s: score.total for s, score in zip(sequences, scores, strict=True)}
    return np.array([total[v.sequence] - total[v.wildtype] for v in variants])
