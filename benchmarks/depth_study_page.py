"""Figures, tables and numbers of the depth study for the documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.report.charts import curves, intervals
from protlm_jax.report.grids import heat_maps
from protlm_jax.storage.files import write_atomically

QUANTITIES = {  # name -> heading, decimals
    "nll": ("test loss, nats", 4),
    "lead": ("below training frequencies", 4),
    "depth_score": ("depth score", 3),
    "output_depth_score": ("its output version", 3),
    "idle_share": ("idle layers", 2),
    "exit_depth": ("exit depth", 2),
}
ROWS = ("trained", "control", "trained - control")
BEGIN, END = "<!-- tables, written by benchmarks/depth_study.py -->", "<!-- end of tables -->"
Results = Mapping[str, Any]


def write_page(results: Results, folder: Path) -> None:
    """Writes results.json and figures, and the tables into README.md where it has a place."""
    write_atomically(folder / "results.json", json.dumps(_rounded(results), indent=1) + "\n")
    figures(results, folder)
    page = folder / "README.md"
    text = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    made = f"{BEGIN}\n\n{tables(results)}\n\n{END}"
    write_atomically(page, pattern.sub(lambda _: made, text))


def tables(results: Results) -> str:
    """Markdown."""
    return "\n\n".join([_arms(results), _baselines(results), _measured(results), _pairs(results)])


def figures(results: Results, folder: Path) -> None:
    """loss.svg, skips.svg, lens.svg, and map-NAME.svg of every arm and outside model."""
    rows = [{"label": name, **e} for name, e in _losses(results)]
    chart = intervals(rows, x="nats per hidden residue")
    chart.titled("Test loss").save(folder / "loss.svg")
    for key, name, title, unit in (
        ("skip_delta_nll", "skips", "What the answer loses without a layer", "rise of loss, nats"),
        ("lens_nll", "lens", "Loss if the answer were read early", "nats per residue"),
        ("relative_contribution", "contributions", "Size of what a layer adds", "norm / stream"),
    ):
        rows = [row for arm, found in results["arms"].items() for row in _curve(arm, found, key)]
        chart = curves(rows, x="relative depth", y=unit)
        chart.titled(title).save(folder / f"{name}.svg")
    for name, found in results["arms"].items():
        for which in ("trained", "control"):
            maps = [_matrix(seed[which]["skip_map"]) for seed in found["seeds"].values()]
            _save_map(np.mean(maps, axis=0), f"{name}, {which}", folder, f"{name}-{which}")
    for name, found in results["outside"].items():
        for which in ("trained", "control"):
            matrix = _matrix(found[which]["skip_map"])
            _save_map(matrix, f"{name}, {which}", folder, f"{name}-{which}")


def _arms(results: Results) -> str:
    header = ("arm", "layers", "width", "parameters", "rows", "tokens in all",
              "GFLOP an update", "learning rate", "validation loss by learning rate")  # fmt: skip
    rows = []
    for name, arm in results["arms"].items():
        tuning = ", ".join(f"{rate}: {loss:.4f}" for rate, loss in arm["tuning"].items())
        rows.append(
            (name, arm["layers"], arm["d_model"], f"{arm['parameters']:,}", arm["rows"],
             f"{arm['tokens']:,}", f"{arm['flops_per_update'] / 1e9:.2f}",
             f"{arm['learning_rate']:g}", tuning)
        )  # fmt: skip
    return _table(header, rows)


def _baselines(results: Results) -> str:
    rows = [
        (name, f"{e['value']:.4f}", f"{e['low']:.4f} to {e['high']:.4f}")
        for name, e in _losses(results)
    ]
    return _table(("test proteins", "nats per hidden residue", "95 %"), rows)


def _measured(results: Results) -> str:
    header = ("model", *(heading for heading, _ in QUANTITIES.values()))
    rows = []
    for name, arm in results["arms"].items():
        rows += [(f"{name}, {which}", *_cells(arm[which])) for which in ROWS]
    for name, found in results["outside"].items():
        for which in ("trained", "control"):
            numbers = found[which]["numbers"]
            cells = (_decimal(numbers[key], digits) for key, (_, digits) in QUANTITIES.items())
            rows.append((f"{name}, {which}", *cells))
    return _table(header, rows)


def _pairs(results: Results) -> str:
    header = ("paired by seed", *(heading for heading, _ in QUANTITIES.values()))
    rows = [(name, *_cells(found)) for name, found in results["differences"].items()]
    return _table(header, rows)


def _losses(results: Results) -> list[tuple[str, dict[str, float]]]:
    """Losses with intervals: of what counts, over proteins; of the arms, over seeds."""
    first = next(iter(next(iter(results["arms"].values()))["seeds"].values()))
    frequencies = first["trained"]["heldout"]["baselines"]["training_frequencies"]["nll"]
    counted = {label: results["baselines"][key] for key, label in _COUNTED.items()}
    rows = [("training frequencies", frequencies), *counted.items()]
    for name, arm in results["arms"].items():
        nll = arm["trained"]["nll"]
        low, high = nll["mean"] - nll["half"], nll["mean"] + nll["half"]
        rows.append((name, {"value": nll["mean"], "low": low, "high": high}))
    for name, found in results["outside"].items():
        rows.append((name, found["trained"]["heldout"]["model"]["nll"]))
    return rows


_COUNTED = {
    "bigram": "bigram",
    "both_neighbours": "both neighbours",
    "composition": "composition",
    "composition_and_neighbours": "composition, neighbours",
}


def _curve(name: str, arm: Results, key: str) -> list[dict[str, Any]]:
    """Mean over seeds and its standard deviation, by relative depth; gaps left out."""
    values = np.array([seed["trained"][key] for seed in arm["seeds"].values()], float)
    there = np.isfinite(values).all(axis=0)
    places = np.linspace(0, 1, values.shape[1])[there]
    mean, sd = values[:, there].mean(axis=0), values[:, there].std(axis=0, ddof=1)
    points = zip(places.tolist(), mean.tolist(), sd.tolist(), strict=True)
    return [{"series": name, "x": x, "y": y, "error": error} for x, y, error in points]


def _matrix(rows: list[list[float | None]]) -> np.ndarray:
    return np.array(rows, float)


def _save_map(matrix: np.ndarray, title: str, folder: Path, name: str) -> None:
    cells = [
        {"row": row, "column": column, "value": float(value)}
        for (row, column), value in np.ndenumerate(matrix)
    ]
    chart = heat_maps({title: cells}, row="layer left out", column="later layer")
    chart.titled(f"{title}, largest {np.nanmax(matrix):.2f}").save(folder / f"map-{name}.svg")


def _cells(found: Results) -> list[str]:
    cells = []
    for key, (_, digits) in QUANTITIES.items():
        e = found[key]
        cells.append("-" if e is None else f"{e['mean']:.{digits}f} ± {e['half']:.{digits}f}")
    return cells


def _decimal(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(header: tuple[Any, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _rounded(tree: Any) -> Any:
    """Numbers to five digits: what is left of them is noise."""
    if isinstance(tree, dict):
        return {key: _rounded(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_rounded(value) for value in tree]
    return float(f"{tree:.5g}") if isinstance(tree, float) else tree
