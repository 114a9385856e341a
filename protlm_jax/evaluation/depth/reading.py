"""What the measurements say, in sentences that are computed.

Every sentence has its threshold and a condition on a bootstrap over proteins (95 % intervals, those
of differences paired); where the condition fails, the sentence says that it cannot be told, or is
not there. They describe one set of weights on these proteins.
"""

from __future__ import annotations

import math

import numpy as np

from protlm_jax.evaluation.depth import reading_changes as changes
from protlm_jax.evaluation.depth.evidence import quantity, side, tail, written
from protlm_jax.evaluation.depth.headlines import (
    GUESS,
    HALF,
    Headline,
    headlines,
    reached,
)
from protlm_jax.evaluation.depth.results import Measured, Quantity

FEW = 30  # proteins below which an interval is called rough
_LEAST = 3  # layers from which it makes sense to speak of early and late ones


def reading(measured: Measured, proteins: int) -> list[str]:
    """What can be said of one stack of one model.

    Args:
        measured: any subset of measurements; sentences on others are absent.
        proteins: how many it was measured on.
    """
    heads = headlines(measured)
    found = [_few(proteins), _loss(heads)]
    if measured.num_layers >= _LEAST:
        found += [
            changes.late_layers(measured),
            changes.dearest(measured),
            _early(measured, heads),
            _trained_lens(measured, heads),
            _centre(heads),
            _halves(measured),
            _direction(measured),
            changes.sublayers(measured),
            changes.order(measured),
            changes.blocks(measured),
            changes.needed(measured),
            _context(measured),
        ]
    return [sentence for sentence in found if sentence]


def _few(proteins: int) -> str:
    if proteins >= FEW:
        return ""
    if proteins == 1:
        return "Only one protein: there are no intervals, and nothing can be told apart."
    return (
        f"Only {proteins} proteins: intervals from fewer than {FEW} are rough, and mostly narrower "
        "than they should be."
    )


def _loss(heads: dict[str, Headline]) -> str:
    loss = heads.get("loss")
    if loss is None:
        return ""
    text = f"At the residues that are read the loss is {written(loss.value, loss.draws)} nats"
    if math.isnan(loss.low):
        return f"{text}; a blind guess among the 20 amino acids has {written(GUESS)}."
    if side(loss.draws, GUESS) < 0:
        below = written(GUESS - loss.value)
        return f"{text}, {below} below a blind guess among the 20 amino acids."
    return (
        f"{text}, which is not below a blind guess among the 20 amino acids ({written(GUESS)}): "
        "this model answers nothing yet, and what changes its answer means little."
    )


def _early(measured: Measured, heads: dict[str, Headline]) -> str:
    if not _answers(heads) or "half_depth" not in heads:
        return ""
    half, most = (_layers(heads[name], measured) for name in ("half_depth", "exit_depth"))
    return (
        f"Read early by its own head, half of what the model gains on a blind guess is there after "
        f"{half} of {measured.num_layers} layers, and 95 % after {most}."
    )


def _answers(heads: dict[str, Headline]) -> bool:
    """Whether the model is better than a blind guess for certain, so that a share of it exists."""
    return "loss" in heads and side(heads["loss"].draws, GUESS) < 0


def _trained_lens(measured: Measured, heads: dict[str, Headline]) -> str:
    """On the proteins that the maps were not fitted to, which are fewer."""
    lens, base = (quantity(measured, n) for n in ("tuned_lens_nll", "base_nll"))
    if lens is None or base is None or not _answers(heads):
        return ""
    judged = lens.counts[0] > 0
    totals = np.concatenate([lens.totals, base.totals[None] * judged])
    counts = np.concatenate([lens.counts, base.counts[None] * judged])
    whole = Quantity(("depth",), totals[:, judged], counts[:, judged])
    half = Headline(
        float(reached(GUESS - whole.values, HALF)), reached(GUESS - whole.drawn(), HALF)
    )
    if np.isnan(half.value):
        return ""
    return (
        f"Through a trained map that half is there after {_layers(half, measured)} layers "
        f"({int(judged.sum())} proteins that it was not fitted to)."
    )


def _centre(heads: dict[str, Headline]) -> str:
    score = heads.get("depth_score")
    if score is None:
        return ""
    where = {-1: "in the first half", 1: "in the second half"}.get(side(score.draws, 0.5))
    return (
        "Weighted by what later layers lose without them, layers have their centre at "
        f"{written(score.value, score.draws)} of the depth (0 is the first layer, 1 the last), "
        f"{where or 'which cannot be told from the middle'}."
    )


def _halves(measured: Measured) -> str:
    x = quantity(measured, "relative_contribution")
    if x is None or measured.num_layers < 4:
        return ""
    middle = measured.num_layers // 2
    there = ~np.isnan(x.values[0])
    early, late = (np.flatnonzero(there[half]) for half in (slice(middle), slice(middle, None)))
    if not len(early) or not len(late):
        return ""
    of = [(x.values[0][i], x.drawn()[:, 0][:, i]) for i in (early, late + middle)]
    (first, first_draws), (second, second_draws) = (
        (value.mean(), draws.mean(axis=1)) for value, draws in of
    )
    word = {-1: "less", 1: "more"}.get(side(second_draws - first_draws))
    return (
        f"A layer of the second half adds {written(second, second_draws)} of the stream's norm in "
        f"the mean, one of the first half {written(first, first_draws)}: "
        f"{word or 'no difference that can be told'}."
    )


def _direction(measured: Measured) -> str:
    x = quantity(measured, "cosine")
    if x is None:
        return ""
    cosine = x.drawn()[:, 0]
    for draws, words in (
        (-cosine, "add along the stream (cosine above 0): they amplify what is there"),
        (cosine, "add against the stream (cosine below 0): they erase some of it"),
    ):
        run, _ = tail(draws, 0.0)
        if run >= 2:
            who = f"All {run}" if run == measured.num_layers else f"The last {run} of"
            number = "" if run == measured.num_layers else f" {measured.num_layers}"
            return f"{who}{number} layers {words}."
    return ""


def _context(measured: Measured) -> str:
    share, depths = quantity(measured, "context_share"), measured.coords.get("at_depth", ())
    if share is None or len(depths) < 2:
        return ""
    values, draws = share.values, share.drawn()
    word = {-1: "falls", 1: "rises"}.get(side(draws[:, -1] - draws[:, 0]))
    first, last = (written(values[i], draws[:, i]) for i in (0, -1))
    if word is None:
        return ""
    return (
        f"The share of the answer's attribution that lies on other tokens {word} from {first} at "
        f"depth {depths[0]} to {last} at depth {depths[-1]}."
    )


def _layers(head: Headline, measured: Measured) -> str:
    """A share of the depth as a number of layers, with its interval."""
    value, low, high = (round(x * measured.num_layers) if x == x else None
                        for x in (head.value, head.low, head.high))  # fmt: skip
    return f"{value} ({low} to {high})" if low is not None else f"{value}"
