"""One self-contained HTML page about a model: it opens offline and loads nothing.

Charts are drawn by Vega-Lite, which the page brings (of Altair, Plotly and Bokeh the only one below
a megabyte). Under every chart are its numbers, as a table and as CSV.

The results are a dict, every entry optional:

    run       free-form: command, config, machine, versions, timings
    training  list of lines of metrics.jsonl ("step", "hidden/nll", "heldout/nll",
              "layers/<stack>/grad_norm" as a list, one number a layer)
    heldout   result of evaluation.heldout.evaluate
    probe     the dataset of evaluation.probes.run, or a dict that has it as "dataset"
    contacts  the dataset of evaluation.contacts.run.run
    maps      result of evaluation.maps.draw
    depth     list of datasets of evaluation.depth.analyse: the stacks of one model or several
    export    free-form: what was checked on the exported folder
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.files import write_atomically


def write(path: str | Path, results: Mapping[str, Any]) -> None:
    """Writes the report, whole or not at all; called last, when all numbers are on disk.

    Args:
        path: the HTML file.
        results: see the module; sections that are absent or empty are left out.

    Raises:
        ProtlmError: the file cannot be written, or the packages that draw charts are missing.
    """
    try:
        text = render(results)
    except ModuleNotFoundError as error:
        raise ProtlmError(
            f"the numbers are written, but {path} is not: the package {error.name} is missing. "
            f"pip install 'protlm-jax[report]', and run the same command again"
        ) from error
    write_atomically(Path(path), text)


def render(results: Mapping[str, Any]) -> str:
    """The page as text: the first numbers, and a section for each kind of result.

    Raises:
        ModuleNotFoundError: the packages that draw charts are missing.
    """
    from protlm_jax.evaluation.probes.results import ProbeResult
    from protlm_jax.report import contacts, depth, maps, page, probe, sections

    found = {key: result for key, result in results.items() if result is not None and len(result)}
    if "probe" in found:
        found["probe"] = ProbeResult(found["probe"].get("dataset", found["probe"]))
    run, lines, scored = found.get("run", {}), found.get("training", []), found.get("heldout", {})
    entropy = scored.get("entropy_of_training_frequencies")
    drawers: dict[str, Callable[[Any], page.Piece]] = {
        "training": lambda lines: sections.training(lines, entropy),
        "heldout": sections.heldout,
        "probe": probe.probe,
        "contacts": contacts.contacts,
        "maps": maps.maps,
        "depth": depth.depth,
        "export": sections.export,
        "run": sections.run,
    }
    lead = [f"{lines[-1]['step']:,} steps of training"] if lines else []
    if run.get("seconds"):
        lead.append(f"{run['seconds'] / 60:.1f} minutes in all")
    figures = sections.first_numbers(scored) if scored else []
    figures += probe.first_numbers(found["probe"]) if "probe" in found else []
    figures += depth.first_numbers(found["depth"]) if "depth" in found else []
    title = run.get("title") or run.get("command") or "Protein language model"
    parts = [draw(found[key]) for key, draw in drawers.items() if key in found]
    return page.document(str(title), ", ".join(lead), figures, parts)
