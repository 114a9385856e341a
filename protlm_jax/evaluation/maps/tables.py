"""Every number behind the maps, as tables and CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protlm_jax.evaluation.tables import Table

_ESTIMATE = ("value", "standard_error", "low", "high", "proteins")


def write_tables(folder: Path, result: Mapping[str, Any]) -> list[Path]:
    """Every number behind the maps as CSV, one file for each of `tables`.

    Args:
        folder: made where it is missing.
        result: of `draw`.

    Returns:
        The files: map_of_proteins.csv, neighbours.csv, map_of_residues.csv, properties.csv.

    Raises:
        ProtlmError: when the disk does not take them.
    """
    return [table.csv(folder / f"{name}.csv") for name, table in tables(result).items()]


def tables(result: Mapping[str, Any]) -> dict[str, Table]:
    """Name -> table."""
    found: dict[str, Table] = {}
    if proteins := result.get("proteins"):
        columns: dict[str, Sequence[Any]] = {"id": proteins["ids"]}
        for title, colour in proteins["colours"].items():
            columns[title] = [colour["classes"][v] if v >= 0 else None for v in colour["values"]]
        found["map_of_proteins"] = _points(columns, proteins["methods"])
        rows = [
            [title, kind, *(about[kind][field] for field in _ESTIMATE),
             None if kind == "difference" else about["chance"], about["neighbours"]]
            for title, about in proteins["neighbours"].items()
            for kind in ("model", "random", "difference")
        ]  # fmt: skip
        found["neighbours"] = Table(("colour", "of", *_ESTIMATE, "chance", "neighbours"), rows)
    if residues := result.get("residues"):
        columns = {"residue": list(residues["residues"])}
        columns |= {name: about["values"] for name, about in residues["properties"].items()}
        found["map_of_residues"] = _points(columns, residues["methods"])
        rows = [
            [name, kind, agreement["correlation"], agreement["p"]]
            for name, about in residues["properties"].items()
            for kind, agreement in about["agreement"].items()
        ]
        found["properties"] = Table(("property", "of", "correlation", "p"), rows)
    return found


def _points(columns: dict[str, Sequence[Any]], methods: Mapping[str, Any]) -> Table:
    for method, by_kind in methods.items():
        for kind, points in by_kind.items():
            for axis, letter in enumerate("xy"):
                columns[f"{method}_{kind}_{letter}"] = [point[axis] for point in points]
    return Table(list(columns), list(zip(*columns.values(), strict=True)))
