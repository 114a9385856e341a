"""Labelled proteins to probe a model with: benchmarks, and the user's own."""

from __future__ import annotations

from protlm_jax.evaluation.probe_data.base import (
    UNKNOWN,
    Benchmark,
    LabelledProtein,
    PaperRow,
    Target,
    View,
    subset,
)

__all__ = ["UNKNOWN", "Benchmark", "LabelledProtein", "PaperRow", "Target", "View", "subset"]
