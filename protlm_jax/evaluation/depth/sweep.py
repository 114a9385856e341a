"""A sweep of one stack of a model over proteins: batch after batch, with sums for each protein."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import xarray

from protlm_jax.evaluation.depth.batches import ROWS, DepthBatch, Proteins
from protlm_jax.evaluation.depth.positions import Positions, PositionSet, Stat
from protlm_jax.evaluation.depth.results import Quantity, Totals
from protlm_jax.evaluation.depth.subject import observe
from protlm_jax.evaluation.finite import first_not_finite, not_finite
from protlm_jax.evaluation.results import read, save
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.partitioning import on_mesh, replicated
from protlm_jax.storage.parts import finish, finished

PART_SECONDS = 30.0  # between two savings of unfinished sums


class Shown(NamedTuple):
    """What `observe` takes of a batch."""

    features: dict[str, Any]
    true: Any  # [B, L] int32
    positions: Positions
    amino_acids: Any  # [20, tokens] int32 ids


@dataclass(frozen=True)
class Sweep:
    """One stack of a model, the proteins that it is shown, and where it is edited and read."""

    loaded: LoadedModel
    proteins: Proteins
    stack: str
    positions: PositionSet = "asked"  # a name of `positions.POSITION_SETS`
    seed: int = 0  # of what is fitted
    folder: Path | None = None  # of unfinished sums; None keeps none
    settings: Any = None  # JSON of all that decides the sums
    progress: bool = False  # whether a bar is drawn on a terminal

    @functools.cached_property
    def shape(self) -> tuple[int, tuple[str, ...]]:
        """How many layers run, and the names of a block's sublayers."""
        block, _ = self.loaded.model.bind({"params": self.loaded.params}).rows(self.stack)
        return block.num_layers, block.sublayers

    @property
    def depths(self) -> tuple[int, ...]:
        return depths_of(self.shape[0])

    def shown(self, batch: DepthBatch) -> Shown:
        """A batch as compiled measurements take it."""
        slots = max(ROWS, len(batch.owners))
        where = batch.positions(self.positions, self.loaded.model.readouts[0], slots)
        amino_acids = jnp.asarray(self.loaded.vocabulary.amino_acid_columns)
        return Shown(batch.features, batch.true, where, amino_acids)

    def run(self, measure: Callable[..., Any], shown: Shown, *arrays: Any, **fixed: Any) -> Any:
        """measure(subject, *arrays, **fixed), compiled, in full float32; results on the host."""
        model, params = self.loaded.model, self.loaded.params
        static, mesh = tuple(fixed.items()), self.loaded.mesh
        if mesh is not None:
            arrays = jax.device_put(arrays, replicated(mesh))
        with jax.default_matmul_precision("float32"), on_mesh(mesh) if mesh else nullcontext():
            return jax.device_get(
                compiled(measure, static, model, self.stack, params, shown, arrays)
            )

    def sums(
        self, measure: Callable[[DepthBatch], tuple[dict[str, Stat], np.ndarray | None]],
        what: str = "", *settings: Any,
    ) -> tuple[dict[str, Quantity], list[np.ndarray]]:  # fmt: skip
        """Sums over all batches; those that an earlier call kept are taken over.

        Args:
            measure: of a batch its quantities, and points [depths, points, width] or None.
            what: names the part, and the bar.
            settings: what else decides the sums.

        Returns:
            Quantities by name, and the points in some arrays.

        Raises:
            NotFinite: the model gives NaN or infinity for a protein.
        """
        part = self.part(what, *settings)
        done, kept = part.load()
        points = [kept["points"].values] if "points" in kept else []
        totals = Totals(len(self.proteins.names), kept)
        for index in self.bar(range(done, self.proteins.batches), what):
            batch = self.proteins.batch(self.loaded, index)
            found, some = measure(batch)
            finite = some is None or bool(np.isfinite(some).all())
            require_finite(self.loaded, self.proteins, batch, finite, found)
            totals.add(found, batch.owners)
            if some is not None and some.size:
                points.append(some)
            if part.due:
                results = totals.dataset()
                if points:
                    axes = ("points_depth", "point", "width")
                    results["points"] = (axes, np.concatenate(points, axis=1))
                part.save(index + 1, results)
        return totals.quantities, points

    def bar(self, steps: range, what: str) -> Any:
        """The steps, with a progress bar that shows the time that is left."""
        from protlm_jax.process.progress import Bar

        title = ", ".join(filter(None, (self.stack, what)))
        return Bar(steps, title, steps.stop, initial=steps.start, show=self.progress)

    def part(self, what: str, *settings: Any) -> Part:
        """Where unfinished results are kept."""
        note = self.folder and self.folder / f"{'-'.join(filter(None, (self.stack, what)))}.json"
        return Part(note, [self.settings, *settings])


class Part:
    """The unfinished results of one measurement, in a part of `storage.parts`; None keeps none."""

    def __init__(self, note: Path | None, settings: Any = None) -> None:
        self.note, self.settings = note, json.loads(json.dumps(settings))
        self.saved = time.monotonic()

    @property
    def due(self) -> bool:
        return self.note is not None and time.monotonic() - self.saved >= PART_SECONDS

    def load(self) -> tuple[int, xarray.Dataset]:
        """How many steps were done, and their results; 0 and nothing where none fit."""
        remedy = "it is measured from the beginning"
        about = finished(self.note, remedy=remedy) if self.note else None
        if not self.note or about is None or about.get("settings") != self.settings:
            return 0, xarray.Dataset()
        (file,) = about["files"]
        return about["steps"], read(self.note.with_name(file))

    def save(self, steps: int, results: xarray.Dataset) -> None:
        """Keeps the results of so many steps."""
        if self.note:
            file = save(results, self.note.with_name(f"{self.note.stem}-{steps}.nc"))
            finish(self.note, [file], settings=self.settings, steps=steps)
            self.saved = time.monotonic()


def depths_of(num_layers: int) -> tuple[int, ...]:
    """The depths at which costly measurements look: at most eight, evenly spaced, 0 among them."""
    return tuple(sorted({num_layers * i // 8 for i in range(8)}))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def compiled(
    measure: Callable[..., Any], static: tuple[tuple[str, Any], ...], model: nn.Module, stack: str,
    params: Any, shown: Shown, arrays: tuple[Any, ...],
) -> Any:  # fmt: skip
    """A measurement of one batch after one base pass."""
    return measure(observe(model, params, *shown, stack), *arrays, **dict(static))


def require_finite(
    loaded: LoadedModel,
    proteins: Proteins,
    batch: DepthBatch,
    finite: bool,
    found: Mapping[str, Stat] = MappingProxyType({}),
) -> None:
    """Raises NotFinite for the first protein of a batch whose measurements are not finite.

    `finite` says it of what is not known by protein; `found` is known by protein.
    """
    count = len(batch.owners)
    slots: Any = np.zeros(count, bool)
    for stat in found.values():
        wrong = ~np.isfinite(np.asarray(stat.total)[..., :count])
        slots = slots | wrong.reshape(-1, count).any(axis=0)
    if not finite:
        slots = slots | ~slots.any()
    if slots.any():
        bad = [proteins.hidden[batch.owners[slot]] for slot in np.flatnonzero(slots).tolist()]
        first = next((p for p in bad if first_not_finite(loaded, p.sequence)), bad[0])
        raise not_finite(loaded, first.sequence, first.name, "what is measured")
