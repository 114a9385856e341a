"""Results on disk: arrays with named dimensions, and one tidy table."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.evaluation.depth.headlines import headlines
from protlm_jax.evaluation.depth.results import Analysis, Estimate, Measured, Quantity, by_noise
from protlm_jax.storage.files import write_atomically

COLUMNS = (
    *("model", "stack", "quantity", "noise", "part", "size", "layer", "other", "relative"),
    *("value", "low", "high", "largest", "positions"),
)
# Which column of the table a dimension goes to.
_COLUMN = {
    **dict.fromkeys(("part", "sublayer"), "part"),
    "noise": "noise",
    "size": "size",
    **dict.fromkeys(("layer", "depth", "skipped", "at_depth"), "layer"),
    **dict.fromkeys(("affected", "other_depth"), "other"),
}


def write(analyses: dict[str, Analysis], folder: Path) -> list[Path]:
    """Writes `<model>.npz` and `<model>.json` for each model, and `depth.csv` for all.

    An .npz has "<stack>/<quantity>" with the mean, "<stack>/<quantity>/totals" and ".../counts" by
    protein ([*dims, proteins] float64) and ".../largest"; a mean of nothing is nan. The .json
    beside it names the dimensions, their labels, the proteins, and what is not defined and why.

    Args:
        analyses: by a name that can be a file's.

    Raises:
        ProtlmError: the folder cannot be written.
    """
    written = []
    for name, analysis in analyses.items():
        arrays: dict[str, np.ndarray] = {}
        for stack, quantity, x in _quantities(analysis):
            arrays[f"{stack.stack}/{quantity}"] = x.values
            if isinstance(x, Quantity):
                arrays[f"{stack.stack}/{quantity}/totals"] = x.totals
                arrays[f"{stack.stack}/{quantity}/counts"] = x.counts
                if x.peaks is not None:
                    arrays[f"{stack.stack}/{quantity}/largest"] = x.largest
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        about = json.dumps(_about(analysis), indent=1, allow_nan=False) + "\n"
        for suffix, content in ((".npz", buffer.getvalue()), (".json", about.encode())):
            write_atomically(folder / f"{name}{suffix}", content)
            written.append(folder / f"{name}{suffix}")
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, restval="")
    writer.writeheader()
    for name, analysis in analyses.items():
        writer.writerows({"model": name, **row} for row in rows(analysis))
        writer.writerows({"model": name, **row} for row in _headlines(analysis))
    write_atomically(folder / "depth.csv", table.getvalue())
    return [*written, folder / "depth.csv"]


def rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """One row for each entry that is defined; "relative" is its layer or depth from 0 to 1."""
    for stack, name, x in _quantities(analysis):
        low = high = largest = None
        if isinstance(x, Quantity):
            low, high = x.interval()
            largest = x.largest if x.peaks is not None else None
        last = stack.num_layers - ("depth" not in x.dims and "at_depth" not in x.dims)
        for index in itertools.product(*(range(size) for size in x.values.shape)):
            if np.isnan(x.values[index]):
                continue
            row: dict[str, Any] = {"stack": stack.stack, "quantity": name}
            for dim, i in zip(x.dims, index, strict=True):
                row[_COLUMN[dim]] = stack.coords[dim][i] if dim in stack.coords else i
            if "layer" in row and last:
                row["relative"] = round(row["layer"] / last, 6)
            row["value"] = float(x.values[index])
            if isinstance(x, Quantity):
                if not np.isnan(low[index]):  # type: ignore[index]
                    row |= {"low": float(low[index]), "high": float(high[index])}  # type: ignore[index]
                row["positions"] = int(x.counts[index].sum())
                if largest is not None:
                    row["largest"] = float(largest[index])
            yield row


def _headlines(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """One row for each number that sums up a stack: no layer, and the interval."""
    for stack in analysis.stacks.values():
        for level, one in by_noise(stack):
            for name, found in headlines(one).items():
                row = {"stack": stack.stack, "quantity": name, "noise": level}
                yield {**row, **found.numbers()}


def _about(analysis: Analysis) -> dict[str, Any]:
    return {
        "model": analysis.model,
        "positions": analysis.positions,
        "proteins": analysis.proteins,
        "cost": analysis.cost,
        "stacks": {
            name: {
                "layers": stack.num_layers,
                "dims": {key: x.dims for key, x in stack.quantities.items()},
                "coords": stack.coords,
                "undefined": stack.undefined,
            }
            for name, stack in analysis.stacks.items()
        },
    }


def _quantities(analysis: Analysis) -> Iterator[tuple[Measured, str, Quantity | Estimate]]:
    for stack in analysis.stacks.values():
        for name, x in stack.quantities.items():
            yield stack, name, x
