"""Several models as one study: each beside its control, and a family over its numbers of layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from protlm_jax.evaluation.depth.evidence import quantity, side, tail, written
from protlm_jax.evaluation.depth.headlines import NEGLIGIBLE, Headline, headlines
from protlm_jax.evaluation.depth.plain import plain
from protlm_jax.evaluation.depth.results import Analysis, Measured, by_noise

TREND = ("depth_score", "small_share", "exit_depth", "late_contribution")
_PHRASES = {
    "depth_score": "the depth score",
    "small_share": f"the share of layers that cost less than {NEGLIGIBLE} nats",
    "exit_depth": "the depth at which 95 % of the answer is there",
    "late_contribution": "the mean contribution in the second half",
}
Runs = list[Headline]


@dataclass(frozen=True)
class Member:
    """A model of a study.

    Attributes:
        title: its name, which no other has.
        family: models of one family are compared over depth.
        analysis: what was measured.
        asked: in words, what it is asked.
        control_of: the title of the model that this is a re-initialised copy of, or "".
        noise: what was measured by level of noise, where it was asked for and is defined.
    """

    title: str
    family: str
    analysis: Analysis
    asked: str = ""
    control_of: str = ""
    noise: Analysis | None = None


def study(members: Sequence[Member]) -> dict[str, Any]:
    """What the report draws, ready for JSON.

    Returns:
        "models" -> title -> `plain`, "family", "control_of", "noise" (`by_level` or None), and
        "beside_control" -> stack -> sentences; "trends", one for each family and stack of two or
        more depths: "family", "stack", "rows" ("model", "layers", "control", and TREND by name,
        each value, low, high) and "reading" (sentences).
    """
    heads = _heads(members)
    models: dict[str, Any] = {}
    for each in members:
        twin = next((m for m in members if each.title and m.control_of == each.title), None)
        models[each.title] = {
            **plain(each.analysis, each.asked),
            "noise": each.noise and by_level(each.noise),
            "family": each.family,
            "control_of": each.control_of,
            "beside_control": {
                stack: beside_control(measured, twin.analysis.stacks[stack])
                for stack, measured in each.analysis.stacks.items()
            }
            if twin
            else {},
        }
    return {"models": models, "trends": list(_trends(members, heads))}


def tidy(members: Sequence[Member]) -> list[dict[str, Any]]:
    """One record for each model, stack and headline: for tables and plots of one's own."""
    return [
        {
            "model": each.title,
            "family": each.family,
            "control_of": each.control_of,
            "stack": stack,
            "layers": measured.num_layers,
            "proteins": len(each.analysis.proteins),
            "quantity": name,
            **found.numbers(),
        }
        for each in members
        for stack, measured in each.analysis.stacks.items()
        for name, found in headlines(measured).items()
    ]


def beside_control(measured: Measured, control: Measured) -> list[str]:
    """What sets a model apart from its re-initialised copy, measured on the same proteins."""
    ours, theirs = headlines(measured), headlines(control)
    apart, alike = [], []
    for name, phrase in _PHRASES.items():
        if name in ours and name in theirs:
            here, there = (written(x.value, x.draws) for x in (ours[name], theirs[name]))
            word = {-1: "lower", 1: "higher"}.get(side(ours[name].minus(theirs[name]).draws))
            if word:
                apart.append(f"{phrase} is {word}, {here} against {there}")
            else:
                alike.append(f"{phrase}, {here} against {there}")
    sentences = []
    if apart:
        sentences.append(f"Beside the re-initialised control, {'; '.join(apart)}.")
    if alike:
        sentences.append(f"Not told from the control: {'; '.join(alike)}.")
    return [*sentences, *_idle(measured, control)]


def _idle(measured: Measured, control: Measured) -> list[str]:
    """Whether layers at the end that do little do so without training too."""
    kls = [quantity(x, "skip_kl") for x in (measured, control)]
    runs = [tail(x.drawn(), NEGLIGIBLE)[0] for x in kls if x is not None]
    if len(runs) < 2 or not runs[0]:
        return []
    ours, theirs = runs
    there = (
        f"In the control {theirs or 'none'} of {control.num_layers} layers, counted from the end,"
    )
    if theirs >= ours:
        return [
            f"{there} stay below {NEGLIGIBLE} nats too: that {ours} of this model do so is no sign "
            "of training."
        ]
    return [
        f"{there} stay below {NEGLIGIBLE} nats for certain: that {ours} of this model do so is not "
        "there before training."
    ]


def _trends(members: Sequence[Member], heads: dict[str, Any]) -> Iterator[dict[str, Any]]:
    families = dict.fromkeys(
        (each.family, stack) for each in members for stack in each.analysis.stacks
    )
    for family, stack in families:
        group = [m for m in members if m.family == family and stack in m.analysis.stacks]
        group.sort(key=lambda m: m.analysis.stacks[stack].num_layers)
        trained = [m for m in group if not m.control_of]
        if len({m.analysis.stacks[stack].num_layers for m in trained}) < 2:
            continue
        rows = [
            {
                "model": m.title,
                "layers": m.analysis.stacks[stack].num_layers,
                "control": bool(m.control_of),
                **{n: heads[m.title][stack][n].numbers() for n in TREND
                   if n in heads[m.title][stack]},
            }
            for m in group
        ]  # fmt: skip
        by_depth: dict[str, dict[float, Runs]] = {name: {} for name in TREND}
        for m in trained:
            for name in TREND:
                if found := heads[m.title][stack].get(name):
                    depth = m.analysis.stacks[stack].num_layers
                    by_depth[name].setdefault(depth, []).append(found)
        words = [trend(_PHRASES[name], runs) for name, runs in by_depth.items() if len(runs) > 1]
        yield {"family": family, "stack": stack, "rows": rows, "reading": words}


def by_level(noise: Analysis) -> dict[str, Any]:
    """What was measured by level of noise, and how the headlines change with it.

    Returns:
        `plain`, whose stacks have beside "levels": a row for each ("noise", and headlines by name,
        each value, low, high); their "reading" is about the change with noise.
    """
    found = plain(noise)
    for stack, measured in noise.stacks.items():
        heads = {float(level): headlines(one) for level, one in by_noise(measured)}
        found["stacks"][stack]["levels"] = [
            {"noise": level, **{name: x.numbers() for name, x in of.items()}}
            for level, of in heads.items()
        ]
        found["stacks"][stack]["reading"] = [
            trend(phrase, runs, "of the residues hidden")
            for name, phrase in _PHRASES.items()
            if len(runs := {level: [of[name]] for level, of in heads.items() if name in of}) > 1
        ]
    return found


def trend(phrase: str, runs: Mapping[float, Runs], unit: str = "layers") -> str:
    """A number over layers, or over another scale, in a sentence.

    Args:
        phrase: what the number is.
        runs: number of layers -> models of that depth, two depths or more. Single models are
            compared by the interval of their (paired) difference; where a depth has several, the
            range of all intervals of each depth has to lie apart.
        unit: what is counted.
    """
    depths = sorted(runs)
    first, last = depths[0], depths[-1]
    word = {-1: "falls", 1: "rises"}.get(_apart(runs[first], runs[last]))
    here, there = _spanned(runs[first]), _spanned(runs[last])
    if word is None and _same(runs[first], runs[last]):
        return f"From {first} to {last} {unit} {phrase} stays at {here}."
    if word is None:
        ends = f"from {first} to {last} {unit}"
        return f"Whether {phrase} changes {ends} cannot be told: {here}, {there}."
    steps = [_apart(runs[a], runs[b]) for a, b in pairwise(depths)]
    every = all(step == _apart(runs[first], runs[last]) for step in steps)
    how = "" if len(steps) == 1 else ", at every step" if every else ", not at every step"
    return f"From {first} to {last} {unit} {phrase} {word} from {here} to {there}{how}."


def _apart(first: Runs, second: Runs) -> int:
    if len(first) == len(second) == 1:
        return side(second[0].minus(first[0]).draws)
    ends = [[end for x in each for end in (x.low, x.high)] for each in (first, second)]
    if any(map(math.isnan, itertools.chain(*ends))):
        return 0
    return int(min(ends[1]) > max(ends[0])) - int(max(ends[1]) < min(ends[0]))


def _same(first: Runs, second: Runs) -> bool:
    """Whether two models have the same number in every draw."""
    return len(first) == len(second) == 1 and not second[0].minus(first[0]).draws.any()


def _spanned(runs: Runs) -> str:
    if len(runs) == 1:
        return written(runs[0].value, runs[0].draws)
    low, high = min(x.value for x in runs), max(x.value for x in runs)
    return f"{written(low)} to {written(high)} ({len(runs)} models)"


def _heads(members: Sequence[Member]) -> dict[str, dict[str, dict[str, Headline]]]:
    """By title and stack; models on the same proteins draw alike, others on their own."""
    seeds: dict[tuple[str, ...], int] = {}
    return {
        m.title: {
            stack: headlines(measured, seeds.setdefault(tuple(m.analysis.proteins), len(seeds)))
            for stack, measured in m.analysis.stacks.items()
        }
        for m in members
    }
