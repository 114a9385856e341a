"""What was measured, as arrays with named dimensions and a sum for each protein."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from protlm_jax.evaluation.depth.positions import Stat

DRAWS = 1000
_ROUNDING = 1e-12  # of float64 sums, relative


@dataclass(frozen=True)
class Quantity:
    """A mean over positions, with what each protein adds to it.

    Attributes:
        dims: names of the axes of `values`.
        totals: [*shape, proteins] float64, sums over positions.
        counts: [*shape, proteins] float64, positions at which it is defined.
        peaks: [*shape, proteins] float64, the largest value; None where that says nothing.
    """

    dims: tuple[str, ...]
    totals: np.ndarray
    counts: np.ndarray
    peaks: np.ndarray | None = None

    @property
    def values(self) -> np.ndarray:
        """The mean over all positions of all proteins, [*shape]; nan where nothing counts."""
        return _ratio(self.totals.sum(axis=-1), self.counts.sum(axis=-1))

    @property
    def largest(self) -> np.ndarray:
        """The largest value at any position, [*shape], as Csordás et al. draw their maps.

        Raises:
            ValueError: of a quantity whose largest value says nothing.
        """
        if self.peaks is None:
            raise ValueError("largest values were not kept of this quantity")
        return self.peaks.max(axis=-1)

    def drawn(self, seed: int = 0, draws: int = DRAWS) -> np.ndarray:
        """The mean over proteins drawn with replacement, [draws, *shape].

        nan where a draw has no value; all of them where fewer than two proteins count, or where
        the proteins are all alike: there is nothing to draw from.
        """
        proteins = self.totals.shape[-1]
        generator = np.random.default_rng(seed)
        weights = generator.multinomial(proteins, np.full(proteins, 1 / proteins), draws)
        totals, counts = (
            np.moveaxis(x @ weights.T.astype(np.float64), -1, 0) for x in (self.totals, self.counts)
        )
        several = ((self.counts > 0).sum(axis=-1) > 1) & (not self._alike)
        return np.where(several, _ratio(totals, counts), np.nan)

    def interval(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The 2.5 and 97.5 % quantiles of `drawn`, [*shape] each.

        nan where a draw has no value, or all have the same: that is no interval.
        """
        drawn = self.drawn(seed)
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        same = np.ptp(drawn, axis=0) <= _ROUNDING * np.abs(drawn).max(axis=0)
        return np.where(same, np.nan, low), np.where(same, np.nan, high)

    @property
    def _alike(self) -> bool:
        """Whether all proteins add the same, as copies of one do."""
        return all(np.allclose(x, x[..., :1], 1e-6, 0.0) for x in (self.totals, self.counts))


@dataclass(frozen=True)
class Estimate:
    """A quantity that is no mean over positions, such as a similarity of all points.

    Attributes:
        dims: names of the axes.
        values: [*shape] float64.
    """

    dims: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class Measured:
    """One stack of one model.

    Attributes:
        stack: its name.
        num_layers: N.
        quantities: by name; index the object itself for them.
        coords: labels of the entries of those dimensions that are no layer or depth.
        undefined: metric -> why it is not defined here.
    """

    stack: str
    num_layers: int
    quantities: dict[str, Quantity | Estimate]
    coords: dict[str, tuple[Any, ...]]
    undefined: dict[str, str]

    def __getitem__(self, name: str) -> Quantity | Estimate:
        return self.quantities[name]

    def __contains__(self, name: str) -> bool:
        return name in self.quantities

    def at(self, dim: str, index: int) -> Measured:
        """One entry of a leading dimension alone, as of "noise", without that dimension."""
        found: dict[str, Quantity | Estimate] = {}
        for name, x in self.quantities.items():
            if x.dims[:1] != (dim,):
                found[name] = x
                continue
            fields = ("values",) if isinstance(x, Estimate) else ("totals", "counts", "peaks")
            mine = {f: array[index] for f in fields if (array := getattr(x, f)) is not None}
            found[name] = dataclasses.replace(x, dims=x.dims[1:], **mine)
        coords = {name: labels for name, labels in self.coords.items() if name != dim}
        return dataclasses.replace(self, quantities=found, coords=coords)

    def values(self, name: str) -> np.ndarray | None:
        """Means by name; None where they were not measured or are not defined."""
        return self.quantities[name].values if name in self.quantities else None


@dataclass(frozen=True)
class Analysis:
    """What `analyse` found.

    Attributes:
        model: its name.
        positions: which positions were edited and read, in words.
        proteins: their names, in the order of the last axis of sums.
        stacks: by name.
        cost: seconds, tokens, and operations of one forward over them.
    """

    model: str
    positions: str
    proteins: list[str]
    stacks: dict[str, Measured]
    cost: dict[str, float] = field(default_factory=dict)


class Totals:
    """Sums of all proteins while batches come in."""

    def __init__(self, proteins: int) -> None:
        self.proteins = proteins
        self.quantities: dict[str, Quantity] = {}

    def add(self, found: dict[str, Stat], owners: list[int] | np.ndarray) -> None:
        """Adds a batch's sums to their proteins; slots beyond the owners hold nothing.

        Args:
            owners: index of the protein in each slot of the last axis; one may occur twice.
        """
        for name, stat in found.items():
            if name not in self.quantities:
                self.quantities[name] = self._empty(stat)
            mine = self.quantities[name]
            places: Any = (..., np.asarray(owners, int))
            used = len(owners)
            np.add.at(mine.totals, places, np.asarray(stat.total, np.float64)[..., :used])
            np.add.at(mine.counts, places, np.asarray(stat.count, np.float64)[..., :used])
            if mine.peaks is not None:
                np.maximum.at(mine.peaks, places, np.asarray(stat.peak, np.float64)[..., :used])

    def arrays(self) -> dict[str, np.ndarray]:
        """All sums, as `restore` takes them back."""
        found = {}
        for name, quantity in self.quantities.items():
            found[f"{name}/dims"] = np.array(quantity.dims, np.str_)
            for field_ in ("totals", "counts", "peaks"):
                if (array := getattr(quantity, field_)) is not None:
                    found[f"{name}/{field_}"] = array
        return found

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes sums over from `arrays`."""
        for name in (key.removesuffix("/dims") for key in arrays if key.endswith("/dims")):
            dims = tuple(str(dim) for dim in arrays[f"{name}/dims"])
            sums = (arrays.get(f"{name}/{field_}") for field_ in ("totals", "counts", "peaks"))
            self.quantities[name] = Quantity(dims, *sums)  # type: ignore[arg-type]

    def _empty(self, stat: Stat) -> Quantity:
        shape = (*stat.total.shape[:-1], self.proteins)
        peaks = None if stat.peak is None else np.zeros(shape)
        return Quantity(stat.dims, np.zeros(shape), np.zeros(shape), peaks)


def stacked(dim: str, found: Sequence[dict[str, Quantity | Estimate]]) -> dict[str, Any]:
    """Quantities of several runs over the same proteins, with a new leading dimension."""
    result: dict[str, Any] = {}
    for name, first in found[0].items():
        each: list[Any] = [one[name] for one in found]
        dims = (dim, *first.dims)
        if isinstance(first, Estimate):
            result[name] = Estimate(dims, np.stack([x.values for x in each]))
            continue
        peaks = None if first.peaks is None else np.stack([x.peaks for x in each])
        totals, counts = (np.stack([getattr(x, f) for x in each]) for f in ("totals", "counts"))
        result[name] = Quantity(dims, totals, counts, peaks)
    return result


def by_noise(measured: Measured) -> list[tuple[float | str, Measured]]:
    """(level, what was measured at it); ("", itself) where levels of noise are no dimension."""
    levels = measured.coords.get("noise")
    if levels is None:
        return [("", measured)]
    return [(level, measured.at("noise", i)) for i, level in enumerate(levels)]


def minus(first: Quantity, second: Quantity) -> Quantity:
    """The difference of two quantities of the same positions, protein by protein."""
    return dataclasses.replace(first, totals=first.totals - second.totals, peaks=None)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)
