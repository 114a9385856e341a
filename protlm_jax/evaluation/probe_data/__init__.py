"""Labelled proteins to probe a model with: benchmarks, and the user's own."""

from protlm_jax.evaluation.probe_data.base import (
    UNKNOWN,
    Benchmark,
    LabelledProtein,
    PaperRow,
    Target,
    View,
    counts,
    known,
    scored,
    subset,
)
from protlm_jax.evaluation.probe_data.benchmarks import NAMES, load
from protlm_jax.evaluation.probe_data.user import read as read_own

__all__ = [
    "NAMES",
    "UNKNOWN",
    "Benchmark",
    "LabelledProtein",
    "PaperRow",
    "Target",
    "View",
    "counts",
    "known",
    "load",
    "read_own",
    "scored",
    "subset",
]
