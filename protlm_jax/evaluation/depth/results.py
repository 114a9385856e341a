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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.depth.quantities import attributes

if TYPE_CHECKING:
    from protlm_jax.evaluation.depth.positions import Stat

PARTS = ("total", "count", "peak")
Values = tuple[tuple[str, ...], np.ndarray]  # dimensions, and values without a bootstrap


@dataclass(frozen=True)
class Quantity:
    """What each protein adds to a mean over positions.

    Attributes:
        dims: names of the axes before that of proteins.
        total, count: [*shape, proteins] float64.
        peak: the same; None where the largest value says nothing.
    """

    dims: tuple[str, ...]
    total: np.ndarray
    count: np.ndarray
    peak: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """Over all positions of all proteins, [*shape]."""
        return _ratio(self.total.sum(axis=-1), self.count.sum(axis=-1))


class Totals:
    """Sums of all proteins while batches come in.

    Args:
        proteins: how many there are.
        kept: what `dataset` gave, to go on from.
    """

    def __init__(self, proteins: int, kept: xarray.Dataset | None = None) -> None:
        self.proteins = proteins
        self.quantities = {} if kept is None else dict(_quantities(kept))

    def add(self, found: Mapping[str, Stat], owners: Sequence[int]) -> None:
        """Adds a batch's sums to their proteins; slots beyond the owners hold nothing.

        Args:
            owners: index of the protein in each slot of the last axis; one may occur twice.
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
    """One stack's results.

    Args:
        quantities: by name.
        labels: of the entries of each dimension, "protein" among them; others count from 0.
        attributes_: of the dataset.
    """
    sums = {name: x for name, x in quantities.items() if isinstance(x, Quantity)}
    totals = Totals(len(labels["protein"]))
    totals.quantities = sums
    found = totals.dataset()
    for name, x in quantities.items():
        dims, values = (x.dims, x.mean) if isinstance(x, Quantity) else x
        found[name] = (dims, values, attributes(name))
    places = {
        dim: list(labels[dim]) if dim in labels else np.arange(size)
        for dim, size in zip(map(str, found.sizes), found.sizes.values(), strict=True)
    }
    places["protein"] = list(labels["protein"])
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


def _quantities(sums: xarray.Dataset) -> Iterator[tuple[str, Quantity]]:
    for key in map(str, sums.data_vars):
        name = key.removesuffix("_total")
        if name != key:
            found = quantity(sums, name)
            assert found is not None
            yield name, found


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)
