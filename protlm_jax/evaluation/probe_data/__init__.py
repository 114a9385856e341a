"""Labelled proteins: the bundled benchmarks, and the user's own tables and FASTA files."""

from protlm_jax.evaluation.probe_data.base import (
    UNKNOWN,
    Benchmark,
    LabelledProtein,
    PaperRow,
    Target,
    View,
    counts,
    known,
    subset,
)
from protlm_jax.evaluation.probe_data.benchmarks import NAMES, load
from protlm_jax.evaluation.probe_data.user import read as read_own

__all__ = [
    "NAMES", "UNKNOWN", "Benchmark", "LabelledProtein", "PaperRow", "Target", "View", "counts",
    "known", "load", "read_own", "subset",
]  # fmt: skip
