"""Every number behind the maps, as rows and as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protlm_jax.storage.files import write_atomically


def write_tables(folder: Path, result: Mapping[str, Any]) -> list[Path]:
    """Every number behind the maps as CSV: one file for each of `tables`, whole or not at all.

    Args:
        folder: made where it is missing.
        result: of `draw`.

    Returns:
        The files: map_of_proteins.csv, neighbours.csv, map_of_residues.csv, properties.csv.

    Raises:
        ProtlmError: when the disk does not take them.
    """
    written = []
    for name, rows in tables(result).items():
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        write_atomically(folder / f"{name}.csv", buffer.getvalue())
        written.append(folder / f"{name}.csv")
    return written


def tables(result: Mapping[str, Any]) -> dict[str, list[list[Any]]]:
    """Name -> rows, the first of them the names of the columns."""
    found: dict[str, list[list[Any]]] = {}
    if proteins := result.get("proteins"):
        columns: dict[str, Sequence[Any]] = {"id": proteins["ids"]}
        for title, colour in proteins["colours"].items():
            columns[title] = [colour["classes"][v] if v >= 0 else "" for v in colour["values"]]
        found["map_of_proteins"] = _rows(columns, proteins["methods"])
        fields = ["value", "standard_error", "low", "high", "proteins"]
        found["neighbours"] = [["colour", "of", *fields, "chance", "neighbours"]]
        for title, about in proteins["neighbours"].items():
            for kind in ("model", "random", "difference"):
                numbers = [about[kind][field] for field in fields]
                found["neighbours"].append([title, kind, *numbers, *_last(about, kind)])
    if residues := result.get("residues"):
        columns = {"residue": list(residues["residues"])}
        columns |= {name: about["values"] for name, about in residues["properties"].items()}
        found["map_of_residues"] = _rows(columns, residues["methods"])
        found["properties"] = [["property", "of", "correlation", "p"]] + [
            [name, kind, agreement["correlation"], agreement["p"]]
            for name, about in residues["properties"].items()
            for kind, agreement in about["agreement"].items()
        ]
    return found


def _last(about: Mapping[str, Any], kind: str) -> tuple[Any, Any]:
    """A difference has no chance of its own."""
    return "" if kind == "difference" else about["chance"], about["neighbours"]


def _rows(columns: dict[str, Sequence[Any]], methods: Mapping[str, Any]) -> list[list[Any]]:
    for method, by_kind in methods.items():
        for kind, points in by_kind.items():
            for axis, letter in enumerate("xy"):
                columns[f"{method}_{kind}_{letter}"] = [point[axis] for point in points]
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]
