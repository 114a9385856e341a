"""Contacts from attention on a benchmark, with what they are held against."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.contacts.precision import RANGES, contact_map, means, precisions
from protlm_jax.evaluation.contacts.predict import own_head, predict
from protlm_jax.evaluation.contacts.regression import STRENGTHS, Fitted, fit
from protlm_jax.evaluation.engine import max_residues
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein, counts, subset
from protlm_jax.evaluation.probes.controls import random_control
from protlm_jax.models.exchange import CONTACT_HEAD
from protlm_jax.models.loaded import LoadedModel

TRAIN_PROTEINS = 20
TITLES = {
    "regression": "regression over heads",
    "own_head": "the model's own contact head",
    "random": "regression, random initialisation",
    "separation": "nearest pairs first",
}
_PROTOCOL = (
    "Attention maps of all heads, made symmetric and corrected for the average product; sparse "
    "logistic regression (Rao et al. 2021) on {train} training chains, its penalty chosen on "
    "{valid} validation chains, for the model and for a copy with random parameters; P@L: "
    "precision of a chain's L most probable pairs of a range, mean over {test} test chains; "
    "standard errors and 95 % intervals by bootstrap over chains, differences paired."
)

Scores = dict[str, dict[str, dict[str, float]]]  # protein -> range -> label -> precision


def run(
    loaded: LoadedModel,
    benchmark: Benchmark,
    *,
    train_proteins: int = TRAIN_PROTEINS,
    test_proteins: int | None = None,
    seed: int = 0,
    tokens_per_batch: int | None = None,
) -> dict[str, Any]:
    """P@L of a regression over the model's heads, of its own contact head, and of controls.

    Args:
        loaded: any model.
        benchmark: at pair level, with the label "contact".
        train_proteins: chains that the regression is fitted on, drawn from training.
        test_proteins: chains drawn from the test; None takes all.
        seed: of the draws, the random control and the bootstrap.
        tokens_per_batch: budget of one batch; None suits the device.

    Returns:
        A plain dict: "predictors" -> one of TITLES -> range -> {"precision" -> "L", "L/2", "L/5" ->
        estimate, "chance"}; "model_minus" -> control -> range -> label -> estimate of the
        regression's precision minus the control's; "regression" -> what was fitted; "left_out",
        chains longer than the model takes; "benchmark", "protocol", "cost".

    Raises:
        ProtlmError: the benchmark has no pairs, or no chain is short enough for the model.
    """
    if benchmark.level != "pair":
        raise ProtlmError(f"{benchmark.title} labels no pairs of residues; choose 'contacts'")
    began = time.perf_counter()
    train, valid, test, left_out = _fitting(loaded, benchmark)
    train, test = subset(train, train_proteins, seed), subset(test, test_proteins, seed)
    fitted = fit(loaded, train, valid)
    # The control's seed is not the seed of any training run that a user is likely to make.
    random = random_control(loaded, seed + 7919)
    sequences = {p.id: p.sequence for p in test}
    of_random = fit(random, train, valid).weights
    ways = {"regression": (loaded, fitted.weights), "random": (random, of_random)}
    if hasattr(loaded.model, "contacts") and CONTACT_HEAD not in loaded.missing:
        ways["own_head"] = (loaded, own_head(loaded))
    scores = {
        way: _scores(predict(m, sequences, weights=w, tokens_per_batch=tokens_per_batch), test)
        for way, (m, w) in ways.items()
    }
    scores["separation"] = _scores(((p.id, _nearness(len(p.sequence))) for p in test), test)
    shown = [way for way in TITLES if way in scores]
    return {
        "model": loaded.name,
        "benchmark": _about(benchmark),
        "predictors": {way: _by_range(scores[way], seed) for way in shown},
        "model_minus": {
            way: _differences(scores["regression"], scores[way], seed) for way in shown[1:]
        },
        "regression": _fitted(fitted, len(train)),
        "proteins": len(test),
        "left_out": left_out,
        "protocol": _PROTOCOL.format(train=len(train), valid=len(valid), test=len(test)),
        "cost": {"seconds": round(time.perf_counter() - began, 1)},
    }


def _fitting(
    loaded: LoadedModel, benchmark: Benchmark
) -> tuple[list[LabelledProtein], list[LabelledProtein], list[LabelledProtein], int]:
    """The chains that the model takes at once, of training, validation and the test, and how many
    of the test it does not take."""
    (view,) = benchmark.views.values()
    limit = max_residues(loaded)
    train, valid, test = (
        [p for p in benchmark.splits[split]() if limit is None or len(p.sequence) <= limit]
        for split in ("train", "valid", view.split)
    )
    if not train or not test:
        raise ProtlmError(f"{loaded.name} takes {limit} residues, and no chain is as short as that")
    return train, valid, test, len(benchmark.splits[view.split]()) - len(test)


def _nearness(residues: int) -> np.ndarray:
    place = np.arange(residues)
    return -np.abs(place[:, None] - place[None, :]).astype(np.float32)


def _scores(
    predicted: Iterable[tuple[str, np.ndarray]], proteins: Sequence[LabelledProtein]
) -> Scores:
    pairs = {p.id: p.labels["contact"] for p in proteins}
    found = {
        name: precisions(probabilities, contact_map(pairs[name], len(probabilities), name))
        for name, probabilities in predicted
    }
    return {p.id: found[p.id] for p in proteins}


def _by_range(scores: Scores, seed: int) -> dict[str, Any]:
    return {
        kind: means([found[kind] for found in scores.values() if kind in found], seed)
        for kind in RANGES
    }


def _differences(one: Scores, other: Scores, seed: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for kind in RANGES:
        names = [name for name in one if kind in one[name]]
        labels = [label for label in one[names[0]][kind] if label != "chance"] if names else []
        result[kind] = {
            label: statistics.paired_difference(
                [one[name][kind][label] for name in names],
                [other[name][kind][label] for name in names],
                np.ones(len(names)),
                seed=seed,
            ).to_dict()
            for label in labels
        }
    return result


def _fitted(fitted: Fitted, train: int) -> dict[str, Any]:
    """What the regression was fitted on, and how much it takes from each layer's heads."""
    strength = np.abs(fitted.weights.kernel) * fitted.spread
    return {
        "strength": fitted.strength,
        "strengths": STRENGTHS,
        "valid": {str(c): loss for c, loss in fitted.valid.items()},
        "proteins": train,
        "pairs": fitted.pairs,
        "contacts": fitted.contacts,
        "loss": fitted.loss,
        "heads": int(fitted.weights.kernel.size),
        "heads_used": int((fitted.weights.kernel != 0).sum()),
        "share_by_layer": (strength.sum(axis=1) / max(strength.sum(), 1e-30)).tolist(),
        "kernel": fitted.weights.kernel.tolist(),
        "bias": fitted.weights.bias,
    }


def _about(benchmark: Benchmark) -> dict[str, Any]:
    return {
        "name": benchmark.name,
        "title": benchmark.title,
        "level": benchmark.level,
        "targets": {t.name: {"kind": t.kind, "classes": t.classes} for t in benchmark.targets},
        "licence": benchmark.licence,
        "source": benchmark.source,
        "notes": list(benchmark.notes),
        "splits": counts(benchmark),
    }


def summary(result: Mapping[str, Any]) -> str:
    """The table for the terminal, in percent."""
    about, fitted = result["benchmark"], result["regression"]
    lines = [f"{result['model']}: {about['title']}, P@L in percent, {result['proteins']:,} chains"]
    width = max(map(len, TITLES.values())) + len("minus ")
    lines.append(f"  {'':{width}}" + "".join(f"{kind:>14}" for kind in RANGES))
    for way, ranges in result["predictors"].items():
        cells = [r["precision"].get("L") for r in ranges.values()]
        lines.append(f"  {TITLES[way]:{width}}" + "".join(map(_cell, cells)))
    chance = [r["chance"] for r in result["predictors"]["separation"].values()]
    lines.append(f"  {'any pairs':{width}}" + "".join(map(_cell, chance)))
    for way, ranges in result["model_minus"].items():
        name = f"minus {TITLES[way]}"
        lines.append(f"  {name:{width}}" + "".join(_cell(r.get("L")) for r in ranges.values()))
    lines.append(
        f"The regression uses {fitted['heads_used']} of {fitted['heads']} heads, fitted on "
        f"{fitted['pairs']:,} pairs of {fitted['proteins']} chains, C = {fitted['strength']:g}."
    )
    if any(e["standard_error"] is None for e in chance if e):
        lines.append(statistics.NO_ERROR)
    if result["left_out"]:
        lines.append(f"{result['left_out']:,} test chains are longer than the model takes.")
    sentences = [result["protocol"], *about["notes"]]
    sentences += [f"Licence: {about['licence']}", f"Source: {about['source']}"]
    for sentence in sentences:
        lines += textwrap.wrap(sentence, 100, subsequent_indent="  ")
    return "\n".join(lines)


def _cell(estimate: Mapping[str, float] | None) -> str:
    return f"{statistics.written(estimate, 1, scale=100):>14}"
