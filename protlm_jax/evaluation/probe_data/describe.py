"""What is in a benchmark, counted, for people and for results."""

from __future__ import annotations

import textwrap
from typing import Any

from protlm_jax.evaluation.probe_data.base import Benchmark, known, scored

_WIDTH = 100


def counts(benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """Split -> {"proteins", "residues", "labelled": {target: labels}}; reads every split.

    At pair level a target's labels are its pairs.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, read in benchmark.splits.items():
        proteins = read()
        labelled = {
            t.name: sum(
                len(p.labels[t.name])
                if benchmark.level == "pair"
                else int(known(t, p.labels[t.name]).sum())
                for p in proteins
            )
            for t in benchmark.targets
        }
        residues = sum(len(p.sequence) for p in proteins)
        found[name] = {"proteins": len(proteins), "residues": residues, "labelled": labelled}
    return found


def describe(benchmark: Benchmark) -> str:
    """Targets, splits and views with their counts, licence, source and notes, for the terminal."""
    lines = [f"{benchmark.title} ({benchmark.name}), labels by {benchmark.level}"]
    for target in benchmark.targets:
        what = ", ".join(target.classes[:12]) if target.kind == "classes" else "a number"
        more = len(target.classes) - 12
        lines += _folded(f"{target.name}: {what}" + (f" and {more} more" if more > 0 else ""))
    names = [t.name for t in benchmark.targets]
    width = max(map(len, (*benchmark.splits, *benchmark.views)))
    lines.append(_row("split", ["proteins", "residues", *names], width))
    for split, found in counts(benchmark).items():
        cells = [found["proteins"], found["residues"], *found["labelled"].values()]
        lines.append(_row(split, [f"{n:,}" for n in cells], width))
    marked = {name: view for name, view in benchmark.views.items() if view.mark}
    for name, view in marked.items():
        masks = [
            [scored(p, t, view) for t in benchmark.targets] for p in benchmark.splits[view.split]()
        ]
        cells = [sum(any(m.any() for m in of_one) for of_one in masks)]
        totals = [sum(int(of_one[i].sum()) for of_one in masks) for i in range(len(names))]
        lines.append(_row(name, [f"{cells[0]:,}", "", *(f"{n:,}" for n in totals)], width))
    lines += _folded(f"Licence: {benchmark.licence}") + _folded(f"Source: {benchmark.source}")
    notes = (*benchmark.notes, *(view.note for view in benchmark.views.values() if view.note))
    for note in notes:
        lines += _folded(note)
    return "\n".join(lines)


def _row(name: str, cells: list[str], width: int) -> str:
    return f"  {name:{width}}" + "".join(f"{cell:>14}" for cell in cells)


def _folded(text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False
    )
