"""One self-contained HTML page about a model: it opens offline and loads nothing.

The results are plain dicts, every section optional:

    run       free-form: command, config, machine, versions, timings
    training  list of lines of metrics.jsonl ("step", "hidden/nll", "heldout/nll",
              "layers/<stack>/grad_norm" as a list, one number a layer)
    heldout   result of evaluation.heldout.evaluate
    probe     result of evaluation.probes.run
    contacts  result of evaluation.contacts.run.run
    maps      result of evaluation.maps.draw
    depth     result of evaluation.depth.plain.plain, of one model
    depths    result of evaluation.depth.study.study, of several
    export    free-form: what was checked on the exported folder
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protlm_jax.evaluation.report import sections
from protlm_jax.evaluation.report.contacts import contacts
from protlm_jax.evaluation.report.depth import depth
from protlm_jax.evaluation.report.depth import leads as depth_leads
from protlm_jax.evaluation.report.depth_study import depths
from protlm_jax.evaluation.report.maps import maps
from protlm_jax.evaluation.report.page import page
from protlm_jax.evaluation.report.probe import probe
from protlm_jax.evaluation.report.verdict import leads
from protlm_jax.storage.files import write_atomically


def write(path: str | Path, results: Mapping[str, Any]) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: the HTML file.
        results: see the module; sections that are absent or empty are left out.

    Raises:
        ProtlmError: when the file cannot be written.
    """
    # Character references instead of other letters: right whatever the machine's encoding is.
    text = render(results).encode("ascii", "xmlcharrefreplace").decode("ascii")
    write_atomically(Path(path), text)


def render(results: Mapping[str, Any]) -> str:
    """The page as text."""
    about, scored = results.get("run") or {}, results.get("heldout") or {}
    parts = []
    if lines := results.get("training"):
        parts.append(sections.training(lines, scored.get("entropy_of_training_frequencies")))
    for key, draw in (
        ("heldout", sections.heldout),
        ("probe", probe),
        ("contacts", contacts),
        ("maps", maps),
        ("depth", depth),
        ("depths", depths),
        ("export", sections.export),
        ("run", sections.run),
    ):
        if result := results.get(key):
            parts.append(draw(result))
    title = about.get("title") or about.get("command") or "Protein language model"
    return page(str(title), _lead(results), _figures(results), "".join(parts))


def _lead(results: Mapping[str, Any]) -> str:
    """One line: how far the training went, and how long everything took."""
    words = []
    if lines := results.get("training"):
        words.append(f"{lines[-1]['step']:,} steps of training")
    seconds = (results.get("run") or {}).get("seconds")
    if seconds:
        words.append(f"{seconds / 60:.1f} minutes in all")
    return ", ".join(words)


def _figures(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The few numbers that a reader should see first."""
    figures = []
    if scored := results.get("heldout"):
        figures.append((f"{scored['model']['nll']['value']:.3f}", "nats per hidden residue"))
        lead = scored["model_minus"]["own_composition"]["value"]
        figures.append((f"{lead:+.3f}", "nats against the protein's own composition"))
    if probed := results.get("probe"):
        figures += leads(probed)
    if study := results.get("depths"):
        figures += depth_leads(study)
    return figures
