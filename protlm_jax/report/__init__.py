"""One self-contained HTML page about a model: it opens offline and loads nothing.

Charts are drawn by Vega-Lite, which the page brings (of Altair, Plotly and Bokeh the only one below
a megabyte). Under every chart are its numbers, as a table and as CSV.

The results are plain dicts (depth: xarray datasets), every section optional:

    run       free-form: command, config, machine, versions, timings
    training  list of lines of metrics.jsonl ("step", "hidden/nll", "heldout/nll",
              "layers/<stack>/grad_norm" as a list, one number a layer)
    heldout   result of evaluation.heldout.evaluate
    probe     result of evaluation.probes.run
    contacts  result of evaluation.contacts.run.run
    maps      result of evaluation.maps.draw
    depth     list of what evaluation.depth.analyse gives: the stacks of one model or several
    export    free-form: what was checked on the exported folder
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """The page as text.

    Raises:
        ModuleNotFoundError: the packages that draw charts are missing.
    """
    from protlm_jax.report.document import render as rendered

    return rendered(results)
