"""What can be read from frozen representations, and what the same heads read from controls."""

from __future__ import annotations

from protlm_jax.evaluation.probes.secondary_structure import run

__all__ = ["run"]
