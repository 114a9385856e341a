"""Figures, tables and numbers of the depth study for the documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.evaluation.tables import Table
from protlm_jax.report.charts import curves, heat_maps, intervals
from protlm_jax.report.page import caption, document, heading, picture, section, table
from protlm_jax.report.picture import Picture
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
    """Writes results.json, figures and report.html, and the tables into README.md."""
    write_atomically(folder / "results.json", json.dumps(_rounded(results), indent=1) + "\n")
    figures = pictures(results)
    for name, (title, chart) in figures.items():
        chart.titled(title).save(folder / f"{name}.svg")
    write_atomically(folder / "report.html", html(results, figures))
    readme = folder / "README.md"
    text = readme.read_text() if readme.exists() else f"{BEGIN}\n{END}\n"
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    markdown = "\n\n".join(map(_markdown, tables(results)))
    made = f"{BEGIN}\n\n{markdown}\n\n{END}"
    write_atomically(readme, pattern.sub(lambda _: made, text))


def tables(results: Results) -> list[Table]:
    """The arms, the losses, depth, and the differences of the arms."""
    return [_arms(results), _baselines(results), _measured(results), _pairs(results)]


def html(results: Results, figures: Mapping[str, tuple[str, Picture]]) -> str:
    """The report: every table and figure, with the numbers of each figure under it."""
    titles = ("What was trained", "Test losses", "Depth", "Differences of the arms")
    made = tables(results)
    parts = [section(titles[0], table(made[0].columns, made[0].cells(), kind="views wrap"))]
    loss, *others = figures.values()
    parts.append(
        section(titles[1], picture(loss[1]), table(made[1].columns, made[1].cells(), kind="views"))
    )
    parts += [
        section(title, table(one.columns, one.cells(), kind="views"))
        for title, one in zip(titles[2:], made[2:], strict=True)
    ]
    drawn = [part for title, chart in others for part in (heading(title), picture(chart))]
    words = "Curves are means over seeds, whiskers their standard deviations. Layers count from 0."
    parts.append(section("Layer by layer", caption(words), *drawn))
    counts = results["proteins"]
    lead = f"{counts['test']:,} test proteins, {counts['depth']:,} for the depth"
    return document("A study of depth", lead, [], parts)


def pictures(results: Results) -> dict[str, tuple[str, Picture]]:
    """By file name (title, chart): loss, skips, lens, and map-NAME of every arm and model."""
    rows = [{"label": name, **e} for name, e in _losses(results)]
    found = {"loss": ("Test loss", intervals(rows, x="nats per hidden residue"))}
    for key, name, title, unit in (
        ("skip_delta_nll", "skips", "What the answer loses without a layer", "rise of loss, nats"),
        ("lens_nll", "lens", "Loss if the answer were read early", "nats per residue"),
        ("relative_contribution", "contributions", "Size of what a layer adds", "norm / stream"),
    ):
        rows = [row for arm, one in results["arms"].items() for row in _curve(arm, one, key)]
        found[name] = (title, curves(rows, x="relative depth", y=unit, whiskers=True))
    models = {name: list(arm["seeds"].values()) for name, arm in results["arms"].items()}
    models |= {name: [one] for name, one in results["outside"].items()}
    for name, seeds in models.items():
        for which in ("trained", "control"):
            maps = np.array([seed[which]["skip_map"] for seed in seeds], float)
            found[f"map-{name}-{which}"] = _map(maps.mean(axis=0), f"{name}, {which}")
    return found


def _arms(results: Results) -> Table:
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
    return Table(header, rows)


def _baselines(results: Results) -> Table:
    rows = [
        (name, f"{e['value']:.4f}", f"{e['low']:.4f} to {e['high']:.4f}")
        for name, e in _losses(results)
    ]
    return Table(("test proteins", "nats per hidden residue", "95 %"), rows)


def _measured(results: Results) -> Table:
    header = ("model", *(heading for heading, _ in QUANTITIES.values()))
    rows = []
    for name, arm in results["arms"].items():
        rows += [(f"{name}, {which}", *_cells(arm[which])) for which in ROWS]
    for name, found in results["outside"].items():
        for which in ("trained", "control"):
            numbers = found[which]["numbers"]
            cells = (_decimal(numbers[key], digits) for key, (_, digits) in QUANTITIES.items())
            rows.append((f"{name}, {which}", *cells))
    return Table(header, rows)


def _pairs(results: Results) -> Table:
    header = ("paired by seed", *(heading for heading, _ in QUANTITIES.values()))
    rows = [(name, *_cells(found)) for name, found in results["differences"].items()]
    return Table(header, rows)


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
    return [{"series": name, "x": x, "y": y, "low": y - e, "high": y + e} for x, y, e in points]


def _map(matrix: np.ndarray, title: str) -> tuple[str, Picture]:
    cells = [
        {"row": row, "column": column, "value": float(value)}
        for (row, column), value in np.ndenumerate(matrix)
    ]
    chart = heat_maps({title: cells}, row="layer left out", column="later layer")
    return f"{title}, largest {np.nanmax(matrix):.2f}", chart


def _cells(found: Results) -> list[str]:
    cells = []
    for key, (_, digits) in QUANTITIES.items():
        e = found[key]
        cells.append("-" if e is None else f"{e['mean']:.{digits}f} ± {e['half']:.{digits}f}")
    return cells


def _decimal(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _markdown(made: Table) -> str:
    lines = [made.columns, ["---"] * len(made.columns), *made.cells()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _rounded(tree: Any) -> Any:
    """Numbers to five digits: what is left of them is noise."""
    if isinstance(tree, dict):
        return {key: _rounded(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_rounded(value) for value in tree]
    return float(f"{tree:.5g}") if isinstance(tree, float) else tree
