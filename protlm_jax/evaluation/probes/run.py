"""One probe from beginning to end: proteins, features, heads, scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.spec import Dtype, Vectors, resolve_layers
from protlm_jax.evaluation.engine import normalised
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein, load, subset
from protlm_jax.evaluation.probes.dataset import assemble
from protlm_jax.evaluation.probes.features import memory_budget
from protlm_jax.evaluation.probes.fit import Settings, fit
from protlm_jax.evaluation.probes.trained import TrainedHeads
from protlm_jax.models.loaded import LoadedModel

if TYPE_CHECKING:
    import xarray

HEADS = {"residue": ("linear", "cnn"), "protein": ("linear", "fnn", "light_attention")}
DEFAULT_HEADS = {"residue": ("linear", "cnn"), "protein": ("linear", "fnn")}
TRAIN_PROTEINS = 2500
SEEDS = 3


@dataclass(frozen=True)
class Probed:
    """A probe's numbers and heads.

    Attributes:
        result: of `dataset.assemble`; `results.ProbeResult` reads it.
        heads: head -> the model's trained heads at the layer that validation chose (one input).
        rows: head -> what a row is to it, "residues" or "mean".
        compute: dtype in which the model computed.
    """

    result: xarray.Dataset
    heads: dict[str, TrainedHeads]
    rows: dict[str, Vectors]
    compute: Dtype


def run(
    loaded: LoadedModel,
    benchmark: Benchmark,
    *,
    heads: Sequence[str] | None = None,
    layers: str | Sequence[int] = "last",
    seeds: int = SEEDS,
    train_proteins: int | None = TRAIN_PROTEINS,
    valid_proteins: int | None = None,
    views: Sequence[str] | None = None,
    controls: Sequence[str] | None = None,
    window: int | None = None,
    compute: Dtype = "float32",
    budget: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> Probed:
    """Trains heads on frozen features, chooses on validation, and scores the tests once.

    Args:
        heads: of HEADS at the benchmark's level; None: those of DEFAULT_HEADS.
        layers: "last", "all" or numbers; one pass of the model reads all of them.
        train_proteins, valid_proteins: how many are drawn; None takes all, of validation a tenth of
            the training proteins, at least 200.
        views, controls: of the benchmark and of `controls`; None takes all.
        window: residues read at once; see `embedder.resolve_window`.
        budget: bytes of features in memory; the model runs again in each epoch for the others.
        seed: of draws of proteins, the random control, heads and the bootstrap.
        say: takes lines of text.

    Raises:
        ProtlmError: for a head, view, control, layer or window that does not exist, a split without
            proteins or labels, or proteins that the model's policy refuses.
    """
    began = time.perf_counter()
    if benchmark.level not in HEADS:
        raise ProtlmError(f"{benchmark.title}: no head reads these; see `contacts.run` for pairs")
    names = _chosen("head", heads, HEADS[benchmark.level], DEFAULT_HEADS[benchmark.level])
    shown = _chosen("view", views, tuple(benchmark.views), tuple(benchmark.views))
    splits = _drawn(benchmark, shown, train_proteins, valid_proteins, seed)
    drawn = ((p.id, p.sequence) for proteins in splits.values() for p in proteins)
    normalised(drawn, loaded.policy)  # refused now, if at all
    settings = Settings(
        *(benchmark, splits, shown, names, resolve_layers(loaded, layers)),
        seeds=tuple(range(seed, seed + seeds)),
        window=window,
        compute=compute,
        budget=memory_budget() if budget is None else budget,
        seed=seed,
        progress=progress,
        say=say,
    )
    known = tuple(dict.fromkeys(c for head in names for c in settings.controls(head)))
    kinds = ("model", *_chosen("control", controls, known, known))
    fitted = {kind: fit(kind, loaded, settings) for kind in kinds}
    result = assemble(loaded, settings, fitted)
    result.attrs["seconds"] = round(time.perf_counter() - began, 1)
    model = fitted["model"]
    best = {head: trained.select(model.best(head)) for head, trained in model.trained.items()}
    return Probed(result, best, {head: settings.rows(head) for head in names}, compute)


def probe(
    loaded: LoadedModel, benchmark: str, *, data_dir: Path | None = None, **options: Any
) -> Probed:
    """`run`, with its options, on a benchmark of `probe_data.NAMES`.

    `data_dir` has the files of benchmarks that do not ship.
    """
    return run(loaded, load(benchmark, data_dir), **options)


def _chosen(
    what: str, names: Sequence[str] | None, known: tuple[str, ...], default: tuple[str, ...]
) -> tuple[str, ...]:
    """The names, each once; ProtlmError for one that is not known."""
    if names is None:
        return default
    if wrong := [name for name in names if name not in known]:
        there = ", ".join(known) or "none"
        raise ProtlmError(f"no {what} {wrong[0]!r} for these data; there is {there}")
    return tuple(dict.fromkeys(names))


def _drawn(
    benchmark: Benchmark, views: Sequence[str], train: int | None, valid: int | None, seed: int
) -> dict[str, list[LabelledProtein]]:
    """The proteins of training, validation and the tests that are reported."""
    if valid is None and train is not None:
        valid = max(200, train // 10)
    splits = {
        "train": subset(benchmark.splits["train"](), train, seed),
        "valid": subset(benchmark.splits["valid"](), valid, seed),
    }
    for view in views:
        split = benchmark.views[view].split
        splits.setdefault(split, benchmark.splits[split]())
    for split, proteins in splits.items():
        if not proteins:
            raise ProtlmError(f"{benchmark.title}: there is no protein in the split {split!r}")
    return splits
