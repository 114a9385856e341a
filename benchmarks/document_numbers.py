"""Numbers of the documents that came from runs, written from results in docs/results.

    python benchmarks/document_numbers.py     # writes every marked number anew
    python benchmarks/document_numbers.py --add NAME FOLDER COMMAND    # keeps a probe's scores
    python benchmarks/document_numbers.py --quickstart FOLDER          # keeps those of quickstart

A mark in Markdown, which pages do not show, names a result:

    <!--=esm2_8m:cnn/model/q3/cb513:1%-->75.2 ± 0.3<!--/-->

is entry cnn/model/q3/cb513 of docs/results/esm2_8m.json (of docs/study/results.json for `study`),
in percent with one decimal. Further formats: `4` four decimals, `+1%` with a sign, `,` thousands.
tests/test_numbers.py compares.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.results import read
from protlm_jax.evaluation.statistics import written
from protlm_jax.storage.files import write_atomically
from protlm_jax.storage.json_files import read_json, write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))
MARK = re.compile(r"<!--=([\w.]+):([^:]+?):([+,]?\d*%?)-->(.*?)<!--/-->")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--add", nargs=3, metavar=("NAME", "FOLDER", "COMMAND"))
    parser.add_argument("--quickstart", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.add:
        name, folder, command = arguments.add
        write_json(RESULTS / f"{name}.json", {"command": command, **scores(Path(folder))})
    if arguments.quickstart:
        found = quickstart(arguments.quickstart / "results")
        write_json(RESULTS / "quickstart.json", {"command": "protlm quickstart", **found})
    for document in DOCUMENTS:
        write_atomically(document, renewed(document.read_text()))


def renewed(text: str) -> str:
    """A document with every marked number as its result says."""

    def one(mark: re.Match[str]) -> str:
        name, path, form, _ = mark.groups()
        return f"<!--={name}:{path}:{form}-->{formatted(found(name, path), form)}<!--/-->"

    return MARK.sub(one, text)


def found(name: str, path: str) -> Any:
    """An entry of a file of results; ProtlmError where there is none."""
    entry: Any = _results(name)
    for key in path.split("/"):
        if not isinstance(entry, Mapping) or key not in entry:
            raise ProtlmError(f"{name}:{path}: no {key!r} in the results; run the command again")
        entry = entry[key]
    return entry


@cache
def _results(name: str) -> dict[str, Any]:
    return read_json(
        ROOT / "docs/study/results.json" if name == "study" else RESULTS / f"{name}.json"
    )


def formatted(entry: Any, form: str) -> str:
    """A number, an estimate with its standard error, or a mean with half of its interval."""
    if isinstance(entry, str):
        return entry
    if form == ",":
        return f"{entry:,.0f}"
    if not isinstance(entry, Mapping):
        entry = {"value": entry, "standard_error": None}
    elif "half" in entry:
        entry = {"value": entry["mean"], "standard_error": entry["half"]}
    sign, digits = form[:1].strip("0123456789%"), int(form.strip("+%"))
    return written(entry, digits, scale=100 if form.endswith("%") else 1, sign=sign)


def scores(folder: Path) -> dict[str, Any]:
    """head -> input -> target -> view -> estimate with n and proteins, of the chosen layers.

    "seeds" is the difference between the best and the worst seed.
    """
    by_seed = read(folder / "results.nc")["by_seed"]
    spread = by_seed.max("seed") - by_seed.min("seed")
    tree: dict[str, Any] = {}
    with (folder / "scores.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["chosen"] == "True" and row["metric"] in ("accuracy", "spearman"):
                place = tree
                for key in (row["head"], row["input"], row["target"]):
                    place = place.setdefault(key, {})
                numbers = ("value", "standard_error", "low", "high", "n", "proteins")
                entry = {k: float(row[k]) if row[k] else None for k in numbers}
                if "minus" not in row["input"]:
                    at = {k: row[k] for k in ("head", "input", "view", "target")}
                    entry["seeds"] = float(spread.sel(at))
                place[row["view"]] = entry
    return tree


def quickstart(folder: Path) -> dict[str, Any]:
    """Held-out nats of the model and the baselines; head -> input -> view -> accuracy of Q3."""
    heldout = read_json(folder / "heldout.json")
    tree = {"heldout": {n: entry["nll"] for n, entry in heldout["baselines"].items()}}
    tree["heldout"]["model"] = heldout["model"]["nll"]
    probed = read(folder / "probe.nc")["score"].sel(metric="pooled", target="q3")
    for place, entry in probed.stack(place=("head", "input", "view")).groupby("place"):
        head, own, view = place
        numbers = {k: entry.sel(estimate=k).item() for k in ("value", "standard_error")}
        tree.setdefault(head, {}).setdefault(own, {})[view] = numbers
    return tree


if __name__ == "__main__":
    main()
