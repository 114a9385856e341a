"""The page as text: a section for each kind of result, and the first numbers above them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protlm_jax.report import sections
from protlm_jax.report.contacts import contacts
from protlm_jax.report.depth import depth
from protlm_jax.report.depth import leads as depth_leads
from protlm_jax.report.maps import maps
from protlm_jax.report.page import page
from protlm_jax.report.probe import probe
from protlm_jax.report.verdict import leads


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
        ("export", sections.export),
        ("run", sections.run),
    ):
        if result := results.get(key):
            parts.append(draw(result))
    title = about.get("title") or about.get("command") or "Protein language model"
    return page(str(title), _lead(results), _figures(results), parts)


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
    if stacks := results.get("depth"):
        figures += depth_leads(stacks)
    return figures
