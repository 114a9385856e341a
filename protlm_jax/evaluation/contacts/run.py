"""Contacts from attention on a benchmark, beside controls."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.contacts.precision import COUNTS, RANGES, contact_map, precisions
from protlm_jax.evaluation.contacts.predict import Weights, own_head, predict
from protlm_jax.evaluation.contacts.regression import FittedContacts, fit
from protlm_jax.evaluation.engine import max_residues
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein, counts, subset
from protlm_jax.evaluation.probes.controls import random_control
from protlm_jax.evaluation.probes.results import ESTIMATE, from_numbers, numbers
from protlm_jax.evaluation.tables import Table
from protlm_jax.models.exchange import CONTACT_HEAD
from protlm_jax.models.loaded import LoadedModel

if TYPE_CHECKING:
    import xarray

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


def run(
    loaded: LoadedModel,
    benchmark: Benchmark,
    *,
    train_proteins: int = TRAIN_PROTEINS,
    test_proteins: int | None = None,
    seed: int = 0,
    tokens_per_batch: int | None = None,
) -> xarray.Dataset:
    """P@L of a regression over the model's heads, of its own contact head, and of controls.

    Args:
        benchmark: at pair level, with the label "contact".
        train_proteins, test_proteins: chains drawn for the fit and for the test; None takes all.
        seed: of the draws, the random control and the bootstrap.
        tokens_per_batch: budget of one batch; None suits the device.

    Returns:
        Along predictor (of TITLES), protein, range (of RANGES), count ("L", "L/2", "L/5", and
        "chance", the share of all pairs that touch) and estimate (value, standard error, ends of
        the 95 % interval); NaN where there is none:

        precision  (predictor, protein, range, count), of each chain
        mean       (predictor, range, count, estimate), over chains that have a pair of the range
        difference (predictor, range, count, estimate), the regression's mean minus the predictor's
        chains     (range), how many have a pair
        kernel, share (layer, head): the regression's weights, and what each head adds to its
                   answer (size of weight times spread of the map), as a share of all

        The attributes hold the model, the benchmark, the fit, the protocol, and "left_out", how
        many test chains are too long.

    Raises:
        ProtlmError: the benchmark has no pairs, or no chain is short enough for the model.
    """
    if benchmark.level != "pair":
        raise ProtlmError(f"{benchmark.title} labels no pairs of residues; choose 'contacts'")
    began = time.perf_counter()
    train, valid, test, left_out = _chains(loaded, benchmark)
    train, test = subset(train, train_proteins, seed), subset(test, test_proteins, seed)
    fitted = fit(loaded, train, valid)
    # The control's seed is not the seed of any training run that a user is likely to make.
    random = random_control(loaded, seed + 7919)
    models = {"regression": (loaded, fitted.weights)}
    if hasattr(loaded.model, "contacts") and CONTACT_HEAD not in loaded.missing:
        models["own_head"] = (loaded, own_head(loaded))
    models["random"] = (random, fit(random, train, valid).weights)
    found = _all_precisions(models, test, tokens_per_batch)
    return _dataset(found, [p.id for p in test], fitted, seed).assign_attrs(
        title=f"{benchmark.title}, read from {loaded.name}",
        source=benchmark.source,
        model=loaded.name,
        benchmark=_about(benchmark),
        protocol=_PROTOCOL.format(train=len(train), valid=len(valid), test=len(test)),
        left_out=left_out,
        train_proteins=len(train),
        seconds=round(time.perf_counter() - began, 1),
    )


def _chains(loaded: LoadedModel, benchmark: Benchmark) -> tuple[Any, Any, Any, int]:
    """The chains that the model takes of training, validation and test, and how many test chains
    are too long."""
    limit, (view,) = max_residues(loaded), benchmark.views.values()
    test = benchmark.splits[view.split]()
    train, valid, kept = (
        [p for p in chains if limit is None or len(p.sequence) <= limit]
        for chains in (benchmark.splits["train"](), benchmark.splits["valid"](), test)
    )
    if not train or not kept:
        raise ProtlmError(f"{loaded.name} takes {limit} residues, and no chain is as short as that")
    return train, valid, kept, len(test) - len(kept)


def _about(benchmark: Benchmark) -> str:
    about = {name: getattr(benchmark, name) for name in ("title", "licence", "source", "notes")}
    return json.dumps(about | {"splits": counts(benchmark)})


def _all_precisions(
    models: Mapping[str, tuple[LoadedModel, Weights]],
    proteins: Sequence[LabelledProtein],
    tokens_per_batch: int | None,
) -> dict[str, np.ndarray]:
    """By predictor [proteins, ranges, counts], of models and of the pairs nearest in sequence."""
    sequences = {p.id: p.sequence for p in proteins}
    predicted: dict[str, Iterable[tuple[str, np.ndarray]]] = {
        name: predict(model, sequences, weights=weights, tokens_per_batch=tokens_per_batch)
        for name, (model, weights) in models.items()
    }
    places = {p.id: np.arange(len(p.sequence), dtype=np.float32) for p in proteins}
    predicted["separation"] = ((n, -np.abs(x[:, None] - x[None])) for n, x in places.items())
    pairs = {p.id: p.labels["contact"] for p in proteins}
    result = {}
    for predictor, maps in predicted.items():
        found = {n: precisions(x, contact_map(pairs[n], len(x), n)) for n, x in maps}
        result[predictor] = np.array(
            [[[found[name].get(kind, {}).get(count, np.nan) for count in COUNTS]
              for kind in RANGES] for name in sequences]
        )  # fmt: skip
    return result


def _dataset(
    precision: Mapping[str, np.ndarray], names: list[str], fitted: FittedContacts, seed: int
) -> xarray.Dataset:
    import xarray

    ours = precision["regression"]
    mean, difference = np.full((2, len(precision), len(RANGES), len(COUNTS), 4), np.nan)
    chains = np.isfinite(ours[:, :, 0]).sum(axis=0)
    for p, r, c in np.ndindex(mean.shape[:-1]):
        if chains[r]:
            there, ones = np.isfinite(ours[:, r, 0]), np.ones(chains[r])
            theirs = list(precision.values())[p][there, r, c]
            mean[p, r, c] = numbers(statistics.ratio(theirs, ones, seed=seed).to_dict())
            if p and COUNTS[c] != "chance":
                apart = statistics.paired_difference(ours[there, r, c], theirs, ones, seed=seed)
                difference[p, r, c] = numbers(apart.to_dict())
    strength = np.abs(fitted.weights.kernel) * fitted.spread
    dims = ("predictor", "range", "count", "estimate")
    return xarray.Dataset(
        {
            "precision": (("predictor", "protein", "range", "count"), list(precision.values())),
            "mean": (dims, mean, {"long_name": "mean precision over chains"}),
            "difference": (dims, difference, {"long_name": "regression minus predictor"}),
            "chains": ("range", chains),
            "kernel": (("layer", "head"), fitted.weights.kernel),
            "share": (("layer", "head"), strength / max(strength.sum(), 1e-30)),
        },
        {"predictor": list(precision), "protein": names, "range": list(RANGES),
         "count": list(COUNTS), "estimate": list(ESTIMATE)},
        # "valid": C -> cross-entropy on the validation chains
        {"strength": fitted.strength, "valid": json.dumps(fitted.valid), "pairs": fitted.pairs,
         "contacts": fitted.contacts, "loss": fitted.loss, "bias": fitted.weights.bias},
    )  # fmt: skip


def estimate(
    data: xarray.Dataset, name: str, predictor: str, kind: str, count: str
) -> dict[str, Any] | None:
    """A "mean" or "difference" of the dataset as a dict; None where there is none."""
    return from_numbers(data[name].sel(predictor=predictor, range=kind, count=count).values)


def uses(data: xarray.Dataset) -> str:
    """What the regression was fitted on, in one sentence."""
    kernel, attributes = data["kernel"].values, data.attrs
    return (
        f"The regression uses {int((kernel != 0).sum())} of {kernel.size} heads, fitted on "
        f"{attributes['pairs']:,} pairs of {attributes['train_proteins']} chains"
    )


def summary(data: xarray.Dataset) -> str:
    """The table for the terminal, in percent."""
    about, attributes = json.loads(data.attrs["benchmark"]), data.attrs
    predictors = data["predictor"].values.tolist()

    def row(title: str, name: str, way: str, count: str) -> list[str]:
        found = (estimate(data, name, way, kind, count) for kind in RANGES)
        return [title, *(statistics.written(e, 1, scale=100) for e in found)]

    rows = [row(TITLES[way], "mean", way, "L") for way in predictors]
    rows.append(row("any pairs", "mean", "separation", "chance"))
    rows += [row(f"minus {TITLES[way]}", "difference", way, "L") for way in predictors[1:]]
    chains = f"{data.sizes['protein']:,} chains"
    lines = [
        f"{attributes['model']}: {about['title']}, P@L in percent, {chains}",
        Table(("", *RANGES), rows).text(),
        f"{uses(data)}, C = {attributes['strength']:g}.",
    ]
    value, error = (data["mean"].sel(estimate=name) for name in ("value", "standard_error"))
    if bool((value.notnull() & error.isnull()).any()):
        lines.append(statistics.NO_ERROR)
    if attributes["left_out"]:
        lines.append(f"{attributes['left_out']:,} test chains are longer than the model takes.")
    sentences = [attributes["protocol"], *about["notes"]]
    sentences += [f"Licence: {about['licence']}", f"Source: {about['source']}"]
    for sentence in sentences:
        lines += textwrap.wrap(sentence, 100, subsequent_indent="  ")
    return "\n".join(lines)
