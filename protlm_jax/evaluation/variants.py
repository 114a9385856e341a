"""Effects of substitutions: how much likelier a model finds the mutant residues than the wild type.

Strategies, after Meier et al. 2021 (doi:10.1101/2021.07.09.450648), each a sum over the mutated
positions T of log p(mutant residue) - log p(wild-type residue):

- masked-marginals: the wild type with all positions of T hidden at once, as in the paper's equation
  (the scripts published with the paper and with ProteinGym hide one position at a time; for single
  substitutions that is the same).
- wildtype-marginals: the wild type as it is, one forward for all its variants. Masked models only:
  others would copy what they see, or cannot see it.
- likelihood-ratio: what a causal model has instead, log p(mutant sequence) - log p(wild type).

Positive means that the model prefers the mutant. A marginal compares residues at one position, so
that the softmax, over 20 residues or the vocabulary, does not change it. T5 is asked as in `score`:
positions hidden in the encoder's input, the decoder fed the wild type's residues before each.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.batching import default_tokens_per_batch
from protlm_jax.evaluation.embedding.plan import windows
from protlm_jax.evaluation.questions import Question, Softmax, ask
from protlm_jax.evaluation.score import COLUMN, kind_of, likelihoods, residue_limit, window_around
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS

Strategy = Literal["masked-marginals", "wildtype-marginals", "likelihood-ratio"]

# By kind of readout; the first is the default.
STRATEGIES: dict[str, tuple[Strategy, ...]] = {
    "masked": ("masked-marginals", "wildtype-marginals"),
    "query": ("masked-marginals",),
    "denoising": ("masked-marginals",),
    "causal": ("likelihood-ratio",),
}

_SUBSTITUTION = re.compile(r"([A-Za-z])(\d+)([A-Za-z])").fullmatch


@dataclass(frozen=True, slots=True)
class Substitution:
    """One residue for another.

    wildtype and mutant are letters of AMINO_ACIDS; position counts from 1, as people write it.
    """

    wildtype: str
    position: int
    mutant: str

    def __str__(self) -> str:
        return f"{self.wildtype}{self.position}{self.mutant}"


@dataclass(frozen=True, slots=True)
class Variant:
    """A wild type (normalised residues) and what is changed in it, at distinct positions."""

    wildtype: str
    substitutions: tuple[Substitution, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """Mutated residues, counted from 0, ascending."""
        return tuple(sorted(s.position - 1 for s in self.substitutions))

    @property
    def sequence(self) -> str:
        """The mutant's residues."""
        letters = list(self.wildtype)
        for s in self.substitutions:
            letters[s.position - 1] = s.mutant
        return "".join(letters)


def parse_substitutions(text: str) -> tuple[Substitution, ...]:
    """Reads `A42G`, or several joined by colons: `A42G:L50P`.

    Raises:
        ProtlmError: an insertion, a deletion, a stop, a letter that is none of the 20 amino acids,
            a position named twice, or no substitution at all.
    """
    if not text.strip():
        raise ProtlmError("no mutation; write one like A42G, several like A42G:L50P")
    found: list[Substitution] = []
    for part in text.split(":"):
        part = part.strip()
        match = _SUBSTITUTION(part)
        if match is None:
            shown = part if len(part) <= 30 else part[:27] + "..."
            raise ProtlmError(
                f"{shown!r} is no substitution like A42G (wild-type residue, position "
                "counted from 1, mutant residue); insertions, deletions and stops are not scored"
            )
        wildtype, position, mutant = match[1].upper(), int(match[2]), match[3].upper()
        for letter in (wildtype, mutant):
            if letter not in COLUMN:
                raise ProtlmError(
                    f"{part!r}: {letter} is none of the 20 amino acids ({AMINO_ACIDS}); "
                    "the model has no probability for it to compare"
                )
        if position in {s.position for s in found}:
            raise ProtlmError(f"{text!r} names position {position} twice")
        found.append(Substitution(wildtype, position, mutant))
    return tuple(found)


def check(substitutions: Iterable[Substitution], sequence: str, *, mutated: bool = False) -> None:
    """Holds substitutions against the wild type, or against the mutant if `mutated`.

    Raises:
        ProtlmError: a position outside the sequence, or another residue there; says what is
            expected and what is found.
    """
    for s in substitutions:
        expected, name = (s.mutant, "mutated sequence") if mutated else (s.wildtype, "wild type")
        if not 1 <= s.position <= len(sequence):
            raise ProtlmError(
                f"{s}: position {s.position} is outside of the {name}, which has {len(sequence)} "
                "residues; positions count from 1"
            )
        found = sequence[s.position - 1]
        if found != expected:
            raise ProtlmError(
                f"{s}: expected {expected} at position {s.position} of the {name}, found {found}; "
                "is it the right sequence, and do positions count from its first residue?"
            )


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


def fits(variant: Variant, limit: int | None) -> None:
    """Whether the mutated positions fit a row of `limit` residues together.

    Raises:
        ProtlmError: they lie too far apart.
    """
    span = variant.positions[-1] - variant.positions[0] + 1
    if limit is not None and span > limit:
        raise ProtlmError(
            f"the mutations span {span} residues and the model reads {limit} at once; score them "
            "one by one, or use a model that reads longer proteins"
        )


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
    """Effects [variants] float64 in nats, positive where the mutant is likelier.

    Args:
        loaded: the model.
        variants: substitutions in a wild type; they are held against it.
        strategy: see the top of this file; None takes the model's own.
        softmax: matters for likelihood-ratio alone.
        length: tokens in a row, as in `score.likelihoods`; of a longer wild type the model is shown
            the window around the mutations.
        tokens_per_batch: budget of one batch; None suits the device.
        progress: draw a progress bar on a terminal.

    Raises:
        ProtlmError: a substitution that does not fit its wild type, mutations too far apart for the
            model, or a strategy that the model does not have.
    """
    strategy = choose_strategy(loaded, strategy)
    limit = residue_limit(loaded, length)
    for variant in variants:
        check(variant.substitutions, variant.wildtype)
    budget = tokens_per_batch or default_tokens_per_batch()
    if strategy == "likelihood-ratio":
        return _likelihood_ratios(loaded, variants, softmax, budget, progress)
    wildtypes = list(dict.fromkeys(v.wildtype for v in variants))
    index = {sequence: i for i, sequence in enumerate(wildtypes)}
    # What is hidden of which protein: a variant's own positions, or nothing.
    masked = strategy == "masked-marginals"
    keys = [(index[v.wildtype], v.positions if masked else ()) for v in variants]
    if masked:
        questions = _masked_questions(wildtypes, variants, keys, limit)
    else:
        questions = _unmasked_questions(wildtypes, variants, keys, limit)
    answers = _answers(loaded, wildtypes, questions, budget, progress)
    result = np.zeros(len(variants))
    for row, (variant, key) in enumerate(zip(variants, keys, strict=True)):
        for s in variant.substitutions:
            answer = answers[key][s.position - 1]
            result[row] += answer[COLUMN[s.mutant]] - answer[COLUMN[s.wildtype]]
    return result


Key = tuple[int, tuple[int, ...]]


def _masked_questions(
    wildtypes: list[str], variants: Sequence[Variant], keys: list[Key], limit: int | None
) -> list[Question]:
    """One row for each set of mutated positions, however many variants share it."""
    for variant in variants:
        fits(variant, limit)
    return [
        Question(i, *window_around(at[0], at[-1], len(wildtypes[i]), limit), at, at)
        for i, at in dict.fromkeys(keys)
    ]


def _unmasked_questions(
    wildtypes: list[str], variants: Sequence[Variant], keys: list[Key], limit: int | None
) -> list[Question]:
    """One row for each wild type, or for each window of one that does not fit."""
    sites: list[set[int]] = [set() for _ in wildtypes]
    for variant, (i, _) in zip(variants, keys, strict=True):
        sites[i].update(variant.positions)
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
    budget: int,
    progress: bool,
) -> dict[Key, dict[int, np.ndarray]]:
    """Log-probabilities [20] float64 by protein and hidden positions, and by position."""
    from tqdm import tqdm

    proteins = [loaded.vocabulary.encode(w, specials=False) for w in wildtypes]
    found: dict[Key, dict[int, np.ndarray]] = defaultdict(dict)
    quiet = None if progress else True
    with tqdm(total=len(questions), unit="row", desc="score", disable=quiet) as bar:
        for index, answer in ask(
            loaded, proteins, questions, softmax="residues", tokens_per_batch=budget
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
    budget: int,
    progress: bool,
) -> np.ndarray:
    """log p(mutant sequence) - log p(wild type) [variants]."""
    sequences = list(dict.fromkeys(s for v in variants for s in (v.wildtype, v.sequence)))
    scores = likelihoods(
        loaded, sequences, softmax=softmax, tokens_per_batch=budget, progress=progress
    )
    total = {s: score.total for s, score in zip(sequences, scores, strict=True)}
    return np.array([total[v.sequence] - total[v.wildtype] for v in variants])
