"""Sums of measurements by protein, and datasets with named dimensions made of them.

A dataset is one stack of one model. A quantity q is a mean over positions and has the variables

    q          (dims)           the mean over all positions of all proteins; nan where none counts
    q_total    (dims, protein)  sums over the positions of each protein
    q_count    (dims, protein)  positions of each protein at which it is defined
    q_peak     (dims, protein)  the largest value of each protein; absent where that says nothing

A similarity of all points, such as CKA, has the first alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from protlm_jax.evaluation import statistics

if TYPE_CHECKING:
    from protlm_jax.evaluation.depth.positions import Stat

PARTS = ("total", "count", "peak")
Values = tuple[tuple[str, ...], np.ndarray]  # dimensions, and values without a bootstrap

_CSORDAS = "Csordás, Manning and Potts 2025, arXiv 2505.13898"
# Of one number: units, long name, source.
_ALONE = {
    "relative_contribution": ("1", "norm of what is added / norm of the stream", _CSORDAS),
    "cosine": ("1", "cosine of what is added with the stream", _CSORDAS),
    "stream_norm": ("1", "norm of the stream", _CSORDAS),
    "block_influence": ("1", "1 - cos(h_l, h_{l+1})", "Men et al. 2024, arXiv 2403.03853"),
    "angular_distance": (
        "pi rad", "angle between the streams of two depths", "Gromov et al. 2024, arXiv 2403.17887",
    ),
    "skip_effect": ("1", "relative change of what a later layer adds", _CSORDAS),
    "sublayer_skip_effect": ("1", "relative change of what a later layer adds", _CSORDAS),
    "local_effect": ("1", "relative direct change of what a later layer adds", _CSORDAS),
    "context_share": (
        "1", "share of the integrated gradients on tokens that are not read", _CSORDAS,
    ),
    "cka": ("1", "linear centred kernel alignment", "Kornblith et al. 2019, arXiv 1905.00414"),
    "effective_rank": ("1", "exp of the entropy of the singular values", "Roy and Vetterli 2007"),
    "intrinsic_dimension": ("1", "TwoNN dimension", "Facco et al. 2017"),
}  # fmt: skip
_CHANGES = {
    "base": ("the model itself", ""),
    "skip": ("a layer left out", _CSORDAS),
    "sublayer_skip": ("a sublayer left out", _CSORDAS),
    "swap": ("a layer exchanged with the next", "Lad et al. 2024, arXiv 2406.19384"),
    "repeat": ("a layer run twice", ""),
    "delete": ("a block of layers left out", "Gromov et al. 2024, arXiv 2403.17887"),
    "reverse": ("a block of layers reversed", "Kapl et al. 2025, arXiv 2512.08819"),
    "erasure": ("the stream of one residue replaced by a mean stream", _CSORDAS),
    "lens": ("the head on the stream of a depth", _CSORDAS),
    "tuned_lens": (
        "the head on a trained map of a stream",
        "Belrose et al. 2023, arXiv 2303.08112",
    ),
    "edit": ("under a layer program", ""),
}
_MEASURES = {
    "l2": ("1", "Euclidean distance of the answers' probabilities"),
    "kl": ("nats", "divergence of the changed answer from the model's"),
    "kl_reverse": ("nats", "divergence of the model's answer from the changed one"),
    "top1_agreement": ("1", "share of residues with the same first amino acid"),
    "nll": ("nats", "loss"),
    "delta_nll": ("nats", "rise of the loss"),
    "accuracy": ("1", "share of residues whose first amino acid is the true one"),
    "js": ("nats", "Jensen-Shannon divergence of the answers"),
    "top3_overlap": ("1", "overlap of the first three amino acids"),
    "rank_correlation": ("1", "Spearman's correlation of the 20 amino acids"),
}


@dataclass(frozen=True)
class Quantity:
    """What each protein adds to a mean over positions: arrays [*shape, proteins] float64."""

    dims: tuple[str, ...]  # names of the axes before that of proteins
    total: np.ndarray
    count: np.ndarray
    peak: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """Over all positions of all proteins, [*shape]."""
        return _ratio(self.total.sum(axis=-1), self.count.sum(axis=-1))


class Totals:
    """Sums of so many proteins while batches come in; `kept` is a `dataset` to go on from."""

    def __init__(self, proteins: int, kept: xarray.Dataset | None = None) -> None:
        self.proteins = proteins
        self.quantities: dict[str, Quantity] = {}
        for key in () if kept is None else map(str, kept.data_vars):
            if (name := key.removesuffix("_total")) != key:
                self.quantities[name] = quantity(kept, name)  # type: ignore[assignment,arg-type]

    def add(self, found: Mapping[str, Stat], owners: Sequence[int]) -> None:
        """Adds a batch's sums to `owners`, the index of the protein in each slot of the last axis.

        A protein may own several slots; those beyond the owners hold nothing.
        """
        places: Any = (..., np.asarray(owners, int))
        for name, stat in found.items():
            if name not in self.quantities:
                shape = (*stat.total.shape[:-1], self.proteins)
                peak = None if stat.peak is None else np.zeros(shape)
                self.quantities[name] = Quantity(stat.dims, np.zeros(shape), np.zeros(shape), peak)
            mine = self.quantities[name]
            for add, sums, more in (
                (np.add, mine.total, stat.total),
                (np.add, mine.count, stat.count),
                (np.maximum, mine.peak, stat.peak),
            ):
                if sums is not None:
                    add.at(sums, places, np.asarray(more, np.float64)[..., : len(owners)])

    def dataset(self) -> xarray.Dataset:
        """The sums alone."""
        variables = {}
        for name, x in self.quantities.items():
            for part in PARTS:
                if (array := getattr(x, part)) is not None:
                    variables[f"{name}_{part}"] = ((*x.dims, "protein"), array)
        return xarray.Dataset(variables)


def dataset(
    quantities: Mapping[str, Quantity | Values],
    labels: Mapping[str, Sequence[Any]],
    **attributes_: str | float,
) -> xarray.Dataset:
    """One stack's results; a dimension has `labels`, "protein" always, or counts from 0."""
    totals = Totals(len(labels["protein"]))
    totals.quantities = {n: x for n, x in quantities.items() if isinstance(x, Quantity)}
    found = totals.dataset()
    for name, x in quantities.items():
        dims, values = (x.dims, x.mean) if isinstance(x, Quantity) else x
        found[name] = (dims, values, attributes(name))
    places: dict[str, Any] = {str(dim): np.arange(n) for dim, n in found.sizes.items()}
    places |= {dim: list(labels[dim]) for dim in ("protein", *places) if dim in labels}
    return found.assign_coords(places).assign_attrs(attributes_)


def with_rises(quantities: Mapping[str, Quantity | Values]) -> dict[str, Quantity | Values]:
    """Beside the loss under each change its rise, "<change>_delta_nll", protein by protein."""
    found, base = dict(quantities), quantities.get("base_nll")
    for change in ("skip", "sublayer_skip", "swap", "repeat", "delete", "reverse"):
        x = quantities.get(f"{change}_nll")
        if isinstance(x, Quantity) and isinstance(base, Quantity):
            found[f"{change}_delta_nll"] = Quantity(x.dims, x.total - base.total, x.count)
    return found


def names(results: xarray.Dataset) -> list[str]:
    """Of the quantities."""
    parts = tuple(f"_{part}" for part in PARTS)
    return [str(name) for name in results.data_vars if not str(name).endswith(parts)]


def quantity(results: xarray.Dataset, name: str) -> Quantity | None:
    """The sums of a quantity; None where it was not measured, or is no mean over positions."""
    if f"{name}_total" not in results:
        return None
    total = results[f"{name}_total"]
    peak = results[f"{name}_peak"].values if f"{name}_peak" in results else None
    dims = tuple(map(str, total.dims[:-1]))
    return Quantity(dims, total.values, results[f"{name}_count"].values, peak)


def drawn(x: Quantity, seed: int = 0) -> np.ndarray:
    """The mean over proteins drawn with replacement, [draws, *shape].

    The same seed draws the same proteins for every quantity, so that differences are paired. nan
    where a draw has no value; everywhere where fewer than two proteins count, or all are alike.
    """
    proteins = x.total.shape[-1]
    weights = statistics.resampled(proteins, seed)
    totals, counts = (np.moveaxis(s @ weights.T, -1, 0) for s in (x.total, x.count))
    alike = all(np.allclose(s, s[..., :1], 1e-6, 0.0) for s in (x.total, x.count))
    several = ((x.count > 0).sum(axis=-1) > 1) & (not alike)
    return np.where(several, _ratio(totals, counts), np.nan)


def interval(x: Quantity, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval over proteins, [*shape] each; nan where there is none."""
    return statistics.interval(drawn(x, seed), least=1.0)


def records(results: xarray.Dataset, name: str) -> list[dict[str, Any]]:
    """One for each entry of a quantity: its labels by dimension, and its numbers.

    "value", "low" and "high" (the interval over proteins), "largest" (of all positions) and
    "positions" (how many count); None for what there is not.
    """
    mean, x = results[name], quantity(results, name)
    numbers = {"value": mean.values}
    if x is not None:
        numbers["low"], numbers["high"] = interval(x)
        numbers["positions"] = x.count.sum(axis=-1)
        if x.peak is not None:
            numbers["largest"] = x.peak.max(axis=-1)
    labels = [results[dim].values.tolist() for dim in mean.dims]
    found = []
    for index in np.ndindex(mean.shape):
        entry = {dim: labels[i][index[i]] for i, dim in enumerate(map(str, mean.dims))}
        cells = {key: float(array[index]) for key, array in numbers.items()}
        found.append(entry | {key: None if np.isnan(x) else x for key, x in cells.items()})
    return found


def undefined(results: xarray.Dataset) -> dict[str, str]:
    """Metric -> why it is not defined on this stack."""
    return dict(json.loads(results.attrs.get("undefined", "{}")))


def combined(stacks: Iterable[xarray.Dataset]) -> xarray.Dataset:
    """All stacks of all models as one dataset, with the dimensions "model" and "stack".

    What one stack does not have, such as later layers of another, is nan. The attribute "stacks"
    has their attributes, variables and labels, by which `separate` undoes it.
    """
    stacks = list(stacks)
    about = [
        {
            "attributes": one.attrs,
            "variables": list(one.data_vars),
            "labels": {str(dim): x.values.tolist() for dim, x in one.coords.items()},
        }
        for one in stacks
    ]
    placed = [
        one.drop_attrs().expand_dims(model=[one.attrs["model"]], stack=[one.attrs["stack"]])
        for one in stacks
    ]
    found = xarray.merge(placed, join="outer", compat="no_conflicts")
    for name in names(found):
        found[name].attrs = attributes(name)
    return found.assign_attrs(stacks=json.dumps(about))


def separate(results: xarray.Dataset) -> list[xarray.Dataset]:
    """The datasets that `combined` took."""
    found = []
    for about in json.loads(results.attrs["stacks"]):
        place = {key: about["attributes"][key] for key in ("model", "stack")}
        one = results[about["variables"]].sel(place, drop=True).sel(about["labels"])
        one.attrs = about["attributes"]
        found.append(one)
    return found


def by_noise(results: xarray.Dataset) -> list[tuple[float | None, xarray.Dataset]]:
    """(level of noise, what was measured at it); (None, itself) where levels are no dimension."""
    if "noise" not in results.dims:
        return [(None, results)]
    levels = results["noise"].values.tolist()
    return [(level, results.sel(noise=level, drop=True)) for level in levels]


def attributes(name: str) -> dict[str, str]:
    """Of a quantity: "units", "long_name" and "source", as far as they are known."""
    units, words, source = _ALONE.get(name, ("", "", ""))
    for change, (what, whose) in _CHANGES.items():
        measure = name.removeprefix(f"{change}_")
        if measure != name and measure in _MEASURES:
            units, of = _MEASURES[measure]
            words, source = f"{of}: {what}", whose
    found = {"units": units, "long_name": words, "source": source}
    return {key: text for key, text in found.items() if text}


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)
