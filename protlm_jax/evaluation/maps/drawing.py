"""Draws the maps: embeds, projects, and counts, for the model and its re-initialised copy."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.embedding.spec import resolve_layers
from protlm_jax.evaluation.maps.colouring import (
    Colouring,
    colourings,
    residue_properties,
)
from protlm_jax.evaluation.maps.projection import (
    COMPONENTS,
    FEWEST,
    PERMUTATIONS,
    distances,
    installed,
    mantel,
    nearest,
    project,
    standardised,
)
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein, subset
from protlm_jax.evaluation.probes.controls import random_control
from protlm_jax.evaluation.tables import Table
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS

NEIGHBOURS = 10
MOST_PROTEINS = 1500
_ESTIMATE = ("value", "standard_error", "low", "high", "proteins")

Vectors = dict[str, np.ndarray]  # "model" and "random" -> [n, d]


def draw(
    loaded: LoadedModel,
    benchmark: Benchmark,
    *,
    layer: int = -1,
    window: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Both maps, of the 20 residues and, where proteins have classes, of proteins, as plain JSON.

    The proteins are at most 1,500 of the first test set, or of the validation set where more is
    known of them; nothing is trained on either here.

    Args:
        layer: of the proteins' vectors, see `spec.resolve_layers`.
        window: residues read at once; see `embed_sequences`.
        seed: of the draw, the re-initialised copy, t-SNE and UMAP.

    Returns:
        {"residues": `residue_map`, "proteins": `protein_maps`}. Both have "methods" -> method ->
        "model"/"random" -> [n, 2], "explained" -> "model"/"random" -> share of the variance on each
        axis of PCA, and "protocol".

    Raises:
        ProtlmError: without scikit-learn.
    """
    result = {"residues": residue_map(loaded, seed)}
    offered = {}
    for split in dict.fromkeys((next(iter(benchmark.views.values())).split, "valid")):
        proteins = subset(benchmark.splits[split](), MOST_PROTEINS, seed)
        offered[split] = proteins, colourings(benchmark, proteins)
    split = max(offered, key=lambda name: len(offered[name][1]))
    proteins, colours = offered[split]
    if colours and len(proteins) >= FEWEST:
        (depth,) = resolve_layers(loaded, [layer])
        made = protein_maps(loaded, proteins, colours, depth, window, seed, progress)
        titles = {view.split: view.title for view in reversed(list(benchmark.views.values()))}
        named = titles.get(split, "validation")
        result["proteins"] = {**made, "of": len(benchmark.splits[split]()), "set": named}
    return result


def protein_maps(
    loaded: LoadedModel,
    proteins: Sequence[LabelledProtein],
    colours: Sequence[Colouring],
    layer: int,
    window: int | None,
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    """PCA, t-SNE and UMAP of proteins (means over residues), and their neighbours.

    "ids" [n]; "colours" -> title -> `Colouring.to_dict`; "neighbours" -> title -> {"model",
    "random", "difference" (estimates), "chance"}; "left_out".
    """
    from protlm_jax.process.progress import Bar

    sequences = {str(i): p.sequence for i, p in enumerate(proteins)}
    methods, left_out = installed()
    vectors: Vectors = {}
    for kind, model in _both(loaded, seed).items():
        stream = embed_sequences(
            model, sequences, layers=[layer], vectors="mean", window=window, progress=progress
        )
        vectors[kind] = standardised(np.stack([vector for _, vector in stream]))
    with Bar(total=2 * len(methods), desc="maps", show=progress) as bar:
        projected = _projected(vectors, methods, seed, bar)
    orders = {kind: nearest(vectors[kind], seed) for kind in vectors}
    return {
        "model": loaded.name,
        "layer": layer,
        "num_layers": loaded.config.num_layers,
        "ids": [protein.id for protein in proteins],
        "colours": {colour.title: colour.to_dict() for colour in colours},
        **projected,
        "neighbours": {colour.title: _agreement(orders, colour, seed) for colour in colours},
        "left_out": left_out,
        "protocol": f"Means over residues of layer {layer}, standardised by feature; t-SNE and "
        f"UMAP read the first {COMPONENTS} principal components. Neighbours: the {NEIGHBOURS} "
        "nearest by distance between all standardised features, errors by bootstrap over proteins.",
    }


def residue_map(loaded: LoadedModel, seed: int) -> dict[str, Any]:
    """The 20 residues as the model takes them in: layer 0 of each, alone in a protein.

    "residues" (20 letters); "properties" -> name -> `residue_properties`, and "agreement" ->
    "model"/"random" -> `mantel`.
    """
    alone = {letter: letter for letter in AMINO_ACIDS}
    vectors = {
        kind: standardised(
            np.stack([v[0] for _, v in embed_sequences(model, alone, layers=[0], devices=1)])
        )
        for kind, model in _both(loaded, seed).items()
    }
    properties = residue_properties(AMINO_ACIDS)
    for about in properties.values():
        apart = np.abs(np.subtract.outer(about["values"], about["values"]))
        about["agreement"] = {k: mantel(distances(v), apart, seed=seed) for k, v in vectors.items()}
    return {
        "model": loaded.name,
        "residues": AMINO_ACIDS,
        **_projected(vectors, ("pca", "tsne"), seed),
        "properties": properties,
        "protocol": "Layer 0, each residue as a protein of one; standardised by feature. "
        "Correlation: Spearman's, between the 190 distances of two residues and their differences "
        f"in the property; p: share of {PERMUTATIONS + 1:,} relabellings, the right one among "
        "them, that correlate at least as much (Mantel 1967).",
    }


def write_tables(folder: Path, result: Mapping[str, Any]) -> list[Path]:
    """Every number of `draw` as CSV files, in a folder that is made where it is missing.

    map_of_proteins.csv, neighbours.csv, map_of_residues.csv, properties.csv.
    """
    found: dict[str, Table] = {}
    if proteins := result.get("proteins"):
        columns: dict[str, Sequence[Any]] = {"id": proteins["ids"]}
        for title, colour in proteins["colours"].items():
            columns[title] = [colour["classes"][v] if v >= 0 else None for v in colour["values"]]
        found["map_of_proteins"] = _points(columns, proteins["methods"])
        rows = [
            [title, kind, *(about[kind][field] for field in _ESTIMATE),
             None if kind == "difference" else about["chance"], about["neighbours"]]
            for title, about in proteins["neighbours"].items()
            for kind in ("model", "random", "difference")
        ]  # fmt: skip
        found["neighbours"] = Table(("colour", "of", *_ESTIMATE, "chance", "neighbours"), rows)
    if residues := result.get("residues"):
        columns = {"residue": list(residues["residues"])}
        columns |= {name: about["values"] for name, about in residues["properties"].items()}
        found["map_of_residues"] = _points(columns, residues["methods"])
        rows = [
            [name, kind, agreement["correlation"], agreement["p"]]
            for name, about in residues["properties"].items()
            for kind, agreement in about["agreement"].items()
        ]
        found["properties"] = Table(("property", "of", "correlation", "p"), rows)
    return [table.csv(folder / f"{name}.csv") for name, table in found.items()]


def _points(columns: dict[str, Sequence[Any]], methods: Mapping[str, Any]) -> Table:
    for method, by_kind in methods.items():
        for kind, points in by_kind.items():
            for axis, letter in enumerate("xy"):
                columns[f"{method}_{kind}_{letter}"] = [point[axis] for point in points]
    return Table(list(columns), list(zip(*columns.values(), strict=True)))


def _both(loaded: LoadedModel, seed: int) -> dict[str, LoadedModel]:
    # Not the seed of any training run that a user is likely to make.
    return {"model": loaded, "random": random_control(loaded, seed + 7919)}


def _projected(
    vectors: Vectors, methods: Sequence[str], seed: int, bar: Any = None
) -> dict[str, Any]:
    """Rounded points of each method and kind, and what PCA's axes explain."""
    maps: dict[str, dict[str, Any]] = {method: {} for method in methods}
    explained = {}
    for method, (kind, values) in itertools.product(methods, vectors.items()):
        points = project(values, method, seed)
        if method == "pca":
            total = float(values.var(axis=0).sum()) or 1.0
            explained[kind] = [float(v) / total for v in points.var(axis=0)]
        maps[method][kind] = [[float(f"{v:.5g}") for v in point] for point in points]
        if bar is not None:
            bar.update()
    return {"methods": maps, "explained": explained}


def _agreement(orders: Mapping[str, np.ndarray], colour: Colouring, seed: int) -> dict[str, Any]:
    """Share of a protein's nearest neighbours, of those whose class is known, that share its."""
    known = np.flatnonzero(colour.values >= 0)
    near = min(NEIGHBOURS, len(known) - 1)
    shares = {}
    for kind, order in orders.items():
        ranked = order[known]
        there = np.isin(ranked, known)
        first = ranked[there].reshape(len(known), -1)[:, :near]
        shares[kind] = (colour.values[first] == colour.values[known][:, None]).mean(axis=1)
    ones = np.ones(len(known))
    counts = np.bincount(colour.values[known])
    difference = statistics.paired_difference(shares["model"], shares["random"], ones, seed=seed)
    return {
        **{kind: statistics.ratio(s, ones, seed=seed).to_dict() for kind, s in shares.items()},
        "difference": difference.to_dict(),
        "chance": float((counts * (counts - 1)).sum() / (len(known) * (len(known) - 1))),
        "neighbours": near,
    }
