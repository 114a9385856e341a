"""Labelled proteins to probe a model with: benchmarks, and the user's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data import (
    from_folder,
    gb1,
    localization,
    pairs,
    secondary_structure,
)
from protlm_jax.evaluation.probe_data.base import (
    UNKNOWN,
    Benchmark,
    LabelledProtein,
    PaperRow,
    Target,
    View,
    known,
    scored,
    subset,
)
from protlm_jax.evaluation.probe_data.describe import counts, describe
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
    "describe",
    "known",
    "load",
    "read_own",
    "scored",
    "subset",
]

_BUNDLED: dict[str, Callable[[], Benchmark]] = {
    "secondary_structure": secondary_structure.load,
    "localization": localization.load,
    **{name: partial(gb1.load, name) for name in gb1.SPLITS},
    "contacts": pairs.load,
}
_FROM_FOLDER: dict[str, Callable[[Path], Benchmark]] = {
    "stability": from_folder.stability,
    "remote_homology": from_folder.remote_homology,
    "conservation": from_folder.conservation,
}
NAMES = (*_BUNDLED, *_FROM_FOLDER)


def load(name: str, data_dir: Path | None = None) -> Benchmark:
    """One of NAMES; its proteins are read when a split is called.

    Args:
        name: of the benchmark.
        data_dir: where the files of those lie that do not ship with the package.

    Raises:
        ProtlmError: there is no such benchmark, or its files are not there.
    """
    if name in _BUNDLED:
        return _BUNDLED[name]()
    if name not in _FROM_FOLDER:
        raise ProtlmError(f"no benchmark {name!r}; there is {', '.join(NAMES)}")
    return _FROM_FOLDER[name](from_folder.existing(name, data_dir))
