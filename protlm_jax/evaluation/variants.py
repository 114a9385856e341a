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
from typing import Literal

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
    budget = tokens_per_batch
    result = np.zeros(len(variants))
    changed = [(i, v) for i, v in enumerate(variants) if not v.is_wildtype]
    whole = [(i, v) for i, v in changed if strategy_of(v, strategy) == "likelihood-ratio"]
    marginal = [(i, v) for i, v in changed if strategy_of(v, strategy) != "likelihood-ratio"]
    for part, compute in (
        (marginal, lambda vs: _marginals(loaded, vs, strategy, length, budget, progress)),
        (whole, lambda vs: _likelihood_ratios(loaded, vs, softmax, length, budget, progress)),
    ):
        if part:
            result[[i for i, _ in part]] = compute([v for _, v in part])
    return result


Key = tuple[int, tuple[int, ...]]  # the wild type, and the positions that are hidden in it


def _marginals(
    loaded: LoadedModel,
    variants: Sequence[Variant],
    strategy: Strategy,
    length: int | None,
    budget: int | None,
    progress: bool,
) -> np.ndarray:
    limit = residue_limit(loaded, length)
    wildtypes = list(dict.fromkeys(v.wildtype for v in variants))
    index = {sequence: i for i, sequence in enumerate(wildtypes)}
    positions = [v.positions for v in variants]
    proteins = [index[v.wildtype] for v in variants]
    if strategy == "wildtype-marginals":
        keys: list[list[Key]] = [[(i, ())] for i in proteins]
        questions = _unmasked_questions(wildtypes, proteins, positions, limit)
    else:
        together = 1 if strategy == "masked-marginals-additive" else limit
        keys = [
            [(i, group) for group in groups_of(at, together)]
            for i, at in zip(proteins, positions, strict=True)
        ]
        # One row for each set of hidden positions, however many variants share it.
        questions = [
            Question(i, *window_around(at[0], at[-1], len(wildtypes[i]), limit), at, at)
            for i, at in dict.fromkeys(key for part in keys for key in part)
        ]
    answers = _answers(loaded, wildtypes, questions, budget, progress)
    result = np.zeros(len(variants))
    for row, (variant, at, own) in enumerate(zip(variants, positions, keys, strict=True)):
        for key in own:
            for i in key[1] or at:
                answer = answers[key][i]
                result[row] += answer[COLUMN[variant.sequence[i]]]
                result[row] -= answer[COLUMN[variant.wildtype[i]]]
    return result


def _unmasked_questions(
    wildtypes: list[str],
    proteins: list[int],
    positions: list[tuple[int, ...]],
    limit: int | None,
) -> list[Question]:
    """One row for each wild type, or for each window of one that does not fit."""
    sites: list[set[int]] = [set() for _ in wildtypes]
    for i, at in zip(proteins, positions, strict=True):
        sites[i].update(at)
    questions = []
    for i, wildtype in enumerate(wildtypes):
        for w in windows(len(wildtype), limit):
            if asked := sorted(p for p in sites[i] if w.keep_start <= p < w.keep_stop):
                questions.append(Question(i, w.start, w.stop, (), asked))
    return questions


def _answers(
    loaded: LoadedModel,
    wildtypes: list[str],
    questions: list[Question],
    budget: int | None,
    progress: bool,
) -> dict[Key, dict[int, np.ndarray]]:
    """Log-probabilities [20] float64 by protein and hidden positions, and by position."""
    from tqdm import tqdm

    proteins = [loaded.vocabulary.encode(w, specials=False) for w in wildtypes]
    found: dict[Key, dict[int, np.ndarray]] = defaultdict(dict)
    quiet = None if progress else True
    with tqdm(total=len(questions), unit="row", desc="score", disable=quiet) as bar:
        for index, answer in ask(
            Engine(loaded), proteins, questions, softmax="residues", tokens_per_batch=budget
        ):
            question = questions[index]
            rows = answer.astype(np.float64)
            found[question.protein, tuple(question.hidden)].update(
                zip(question.asked, rows, strict=True)
            )
            bar.update()
    return found


def _likelihood_ratios(
    loaded: LoadedModel,
    variants: Sequence[Variant],
    softmax: Softmax,
    length: int | None,
    budget: int | None,
    progress: bool,
) -> np.ndarray:
    """log p(mutant sequence) - log p(wild type) [variants]."""
    sequences = list(dict.fromkeys(s for v in variants for s in (v.wildtype, v.sequence)))
    scores = likelihoods(
        loaded,
        sequences,
        softmax=softmax,
        length=length,
        tokens_per_batch=budget,
        policy=ResiduePolicy(rare="keep"),  # they are normalised already
        progress=progress,
    )
    total = {s: score.total for s, score in zip(sequences, scores, strict=True)}
    return np.array([total[v.sequence] - total[v.wildtype] for v in variants])
