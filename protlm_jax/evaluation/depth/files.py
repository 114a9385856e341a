"""The files and tables of `protlm depth`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xarray

from protlm_jax.evaluation import results as files
from protlm_jax.evaluation.depth import claims
from protlm_jax.evaluation.depth.results import by_noise, combined, names, records
from protlm_jax.evaluation.tables import Table

COLUMNS = (
    *("model", "stack", "quantity", "noise", "part", "size", "layer", "other", "relative"),
    *("value", "low", "high", "largest", "positions"),
)
# Which column of the table a dimension goes to.
_COLUMN = {
    **dict.fromkeys(("part", "sublayer"), "part"),
    **dict.fromkeys(("layer", "first", "depth", "skipped", "at_depth"), "layer"),
    **dict.fromkeys(("affected", "other_depth"), "other"),
}
_DEPTHS = {"depth", "at_depth"}  # 0 to N, where layers are 0 to N - 1


def write(stacks: Sequence[xarray.Dataset], folder: Path) -> list[Path]:
    """Writes all stacks of all models: results.nc, noise.nc, depth.csv and claims.csv.

    Args:
        stacks: of `analyse`, with "model" naming each model; those by level of noise among them.

    Raises:
        ProtlmError: the folder cannot be written.
    """
    by_level = [one for one in stacks if "noise" in one.dims]
    plain = [one for one in stacks if "noise" not in one.dims]
    written = [files.save(combined(plain), folder / "results.nc")]
    if by_level:
        written.append(files.save(combined(by_level), folder / "noise.nc"))
    rows = [row for one in stacks for row in _rows(one)]
    written.append(Table.of(rows, COLUMNS).csv(folder / "depth.csv"))
    keys = ("model", "family", "control_of", "stack", "layers")
    claimed = [
        {**{key: one.attrs.get(key, "") for key in keys}, "proteins": one.sizes["protein"]}
        | vars(claim)
        for one in plain
        for claim in claims.claims(one, control_of(one, plain))
    ]
    return [*written, Table.of(claimed).csv(folder / "claims.csv")]


def control_of(results: xarray.Dataset, stacks: Sequence[xarray.Dataset]) -> xarray.Dataset | None:
    """The same stack of the model's re-initialised copy; None where it was not measured."""
    mine = (results.attrs["model"], results.attrs["stack"])
    return next((x for x in stacks if (x.attrs.get("control_of"), x.attrs["stack"]) == mine), None)


def text(results: xarray.Dataset) -> str:
    """One stack for a terminal: its layers, and what can be claimed."""
    proteins = results.sizes["protein"]
    lines = [f"{results.attrs['stack']}, {proteins} proteins", by_layer(results).text()]
    if rows := claims.claims(results):
        lines += ["", claims.table(rows).text()]
    if proteins < claims.FEW:
        lines.append(few(proteins))
    if "base_nll" not in results:
        lines.append(f"effects on the answer: not defined ({results.attrs['positions']})")
    return "\n".join(lines)


def few(proteins: int) -> str:
    """The warning about intervals from few proteins."""
    if proteins == 1:
        return "only one protein: there are no intervals"
    return f"only {proteins} proteins: intervals from fewer than {claims.FEW} are mostly too narrow"


def by_layer(results: xarray.Dataset) -> Table:
    """What each layer adds, and what is lost without it."""
    columns: dict[str, Any] = {"layer": range(int(results.attrs["layers"]))}
    for title, name in (
        ("|c|/|h|", "relative_contribution"),
        ("cos(c, h)", "cosine"),
        ("skip: KL", "skip_kl"),
        ("skip: dNLL", "skip_delta_nll"),
        ("skip: top-1", "skip_top1_agreement"),
        ("lens NLL", "lens_nll"),
    ):
        if name in results:
            x = results[name]
            columns[title] = (x.sel(part="layer") if "part" in x.dims else x).values.tolist()
    rows = zip(*columns.values(), strict=False)  # a lens has one entry more, the model's own
    return Table(list(columns), [[None if x != x else x for x in row] for row in rows])


def _rows(results: xarray.Dataset) -> Iterator[dict[str, Any]]:
    """One for each entry that has a value, and one for each headline, which has no layer."""
    about = {key: results.attrs[key] for key in ("model", "stack")}
    for name in names(results):
        last = int(results.attrs["layers"]) - (not _DEPTHS & set(results[name].dims))
        for entry in records(results, name):
            row = about | {"quantity": name}
            row |= {_COLUMN.get(key, key): value for key, value in entry.items()}
            if "layer" in row and last:
                row["relative"] = round(row["layer"] / last, 6)
            if row["value"] is not None:
                yield row
    for level, one in by_noise(results):
        for name, head in claims.headlines(one).items():
            numbers = {"value": head.value, "low": None, "high": None}
            if (found := head.estimate()) is not None:
                numbers |= {"low": found.low, "high": found.high}
            yield {**about, "quantity": name, "noise": level, **numbers}
