"""Maps: proteins and the 20 residues in two dimensions, beside a re-initialised copy's.

A map shows what there is to be seen and proves nothing, t-SNE and UMAP least of all: they make
clusters of noise. So each comes with a number taken in the full space, before any projection:

proteins    of a protein's ten nearest neighbours, how many share its class (error over proteins)
residues    whether distances go with differences in charge, size and hydrophobicity (Mantel 1967)

    result = draw(loaded, benchmark, progress=True)
    write_tables(Path("maps"), result)  # every number behind the pictures, as CSV
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.colouring import PROPERTIES, Colouring, colourings
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.embedding.wanted import resolve_layers
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein, subset
from protlm_jax.evaluation.probes.controls import random_control
from protlm_jax.files import write_atomically
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS

METHODS = ("pca", "tsne", "umap")
NEIGHBOURS = 10
MOST_PROTEINS = 1500
_FEWEST = 4
_COMPONENTS = 50  # what t-SNE and UMAP are given of larger vectors, as is usual
_PERMUTATIONS = 1999

Vectors = dict[str, np.ndarray]  # "model" and "random" -> [n, d]


@dataclass(frozen=True)
class _Bar:
    """Says what is being drawn, on a terminal."""

    bar: Any

    def step(self, words: str) -> None:
        self.bar.set_postfix_str(words)
        self.bar.update()


def draw(
    loaded: LoadedModel,
    benchmark: Benchmark,
    *,
    layer: int = -1,
    window: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Both maps: of the 20 residues, and of proteins where they have classes.

    The proteins are those of the first test set, or of the validation set where more is known of
    them; nothing is trained on either here.

    Args:
        loaded: the model.
        benchmark: at most 1,500 proteins of one split are drawn.
        layer: of the proteins' vectors, see `wanted.resolve_layers`.
        window: residues read at once; see `embed_sequences`.
        seed: of the draw, the re-initialised copy, t-SNE and UMAP.
        progress: draw progress bars on a terminal.

    Returns:
        {"residues": `residue_map`, "proteins": `protein_maps`}, the latter where there is something
        to colour by.
    """
    result = {"residues": residue_map(loaded, seed=seed)}
    offered = {}
    for split in dict.fromkeys((next(iter(benchmark.views.values())).split, "valid")):
        proteins = subset(benchmark.splits[split](), MOST_PROTEINS, seed)
        offered[split] = proteins, colourings(benchmark, proteins)
    split = max(offered, key=lambda name: len(offered[name][1]))
    proteins, colours = offered[split]
    if colours and len(proteins) >= _FEWEST:
        made = protein_maps(
            loaded, proteins, colours, layer=layer, window=window, seed=seed, progress=progress
        )
        titles = {view.split: view.title for view in reversed(list(benchmark.views.values()))}
        named = titles.get(split, "validation")
        result["proteins"] = {**made, "of": len(benchmark.splits[split]()), "set": named}
    return result


def protein_maps(
    loaded: LoadedModel,
    proteins: Sequence[LabelledProtein],
    colours: Sequence[Colouring],
    *,
    layer: int = -1,
    window: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """PCA, t-SNE and UMAP of proteins (means over residues), model and re-initialised copy.

    Args:
        loaded: the model.
        proteins: n of them, at least 4.
        colours: their classes in each respect.
        layer, window, seed, progress: as in `draw`.

    Returns:
        Plain JSON: "ids" [n]; "colours" -> title -> {"classes", "counts", "values" [n] (-1
        unknown), "ordered"}; "methods" -> method -> "model"/"random" -> [n, 2]; "explained" ->
        "model"/"random" -> share of the variance on each axis of PCA; "neighbours" -> title ->
        {"model", "random", "difference" (estimates), "chance"}; "left_out", "protocol".

    Raises:
        ProtlmError: for fewer than 4 proteins, or without scikit-learn.
    """
    from tqdm import tqdm

    if len(proteins) < _FEWEST:
        raise ProtlmError(f"a map needs at least {_FEWEST} proteins, not {len(proteins)}")
    (depth,) = resolve_layers(loaded, [layer])
    sequences = {str(i): p.sequence for i, p in enumerate(proteins)}
    methods, left_out = _installed()
    vectors: Vectors = {}
    for kind, model in _both(loaded, seed).items():
        stream = embed_sequences(
            model, sequences, layers=[depth], vectors="mean", window=window, progress=progress
        )
        vectors[kind] = _standardised(np.stack([vector for _, vector in stream]))
    total = 2 * len(methods) + len(colours)
    with tqdm(total=total, desc="maps", disable=None if progress else True) as drawn:
        projected = _projected(vectors, methods, seed, _Bar(drawn))
        nearest = {kind: _nearest(vectors[kind], seed) for kind in vectors}
        neighbours = {}
        for colour in colours:
            neighbours[colour.title] = _agreement(nearest, colour, seed)
            _Bar(drawn).step(colour.title)
    return {
        "model": loaded.name,
        "layer": depth,
        "num_layers": loaded.config.num_layers,
        "ids": [protein.id for protein in proteins],
        "colours": {colour.title: colour.to_dict() for colour in colours},
        **projected,
        "neighbours": neighbours,
        "left_out": left_out,
        "protocol": f"Means over residues of layer {depth}, standardised by feature; t-SNE and "
        f"UMAP read the first {_COMPONENTS} principal components. Neighbours: the {NEIGHBOURS} "
        "nearest by distance between all standardised features, errors by bootstrap over proteins.",
    }


def residue_map(loaded: LoadedModel, *, seed: int = 0) -> dict[str, Any]:
    """The 20 residues as the model takes them in: layer 0 of each, alone in a protein.

    Returns:
        Plain JSON: "residues" (20 letters), "methods" -> method -> "model"/"random" -> [20, 2],
        "explained", "properties" -> name -> {"values" [20], "unit", "source", "classes", "groups"
        [20], "agreement" -> "model"/"random" -> {"correlation", "p"}}, "protocol".

    Raises:
        ProtlmError: without scikit-learn.
    """
    alone = {letter: letter for letter in AMINO_ACIDS}
    vectors = {
        kind: _standardised(
            np.stack([v[0] for _, v in embed_sequences(model, alone, layers=[0], devices=1)])
        )
        for kind, model in _both(loaded, seed).items()
    }
    distances = {kind: _distances(vectors[kind]) for kind in vectors}
    properties = {}
    for name, values in PROPERTIES.items():
        numbers = np.array([values.of[letter] for letter in AMINO_ACIDS])
        differences = np.abs(numbers[:, None] - numbers[None])
        properties[name] = {
            **values.to_dict(AMINO_ACIDS),
            "agreement": {
                kind: mantel(distances[kind], differences, seed=seed) for kind in distances
            },
        }
    return {
        "model": loaded.name,
        "residues": AMINO_ACIDS,
        **_projected(vectors, ("pca", "tsne"), seed, None),
        "properties": properties,
        "protocol": "Layer 0, each residue as a protein of one; standardised by feature. "
        "Correlation: Spearman's, between the 190 distances of two residues and their differences "
        f"in the property; p: share of {_PERMUTATIONS + 1:,} relabellings, the right one among "
        "them, that correlate at least as much (Mantel 1967).",
    }


def project(vectors: np.ndarray, method: str, seed: int) -> np.ndarray:
    """Two dimensions of many.

    Args:
        vectors: [n, d] of any scale, n at least 4.
        method: of METHODS.
        seed: of t-SNE and UMAP; PCA has none.

    Returns:
        [n, 2] float64, centred.

    Raises:
        ProtlmError: for an unknown method, vectors that are not finite, or a missing package.
    """
    if method not in METHODS:
        raise ProtlmError(f"no map {method!r}: there is {', '.join(METHODS)}")
    if len(vectors) < _FEWEST or not np.isfinite(vectors).all():
        raise ProtlmError(f"a map needs at least {_FEWEST} finite vectors; got {vectors.shape}")
    _require("sklearn", "scikit-learn")
    from sklearn.decomposition import PCA

    wide = np.asarray(vectors, np.float64)
    most = min(_COMPONENTS if method != "pca" else 2, *wide.shape)
    with np.errstate(invalid="ignore"):  # shares of no variance at all, where all are equal
        points = PCA(most, svd_solver="full").fit_transform(wide)
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(wide) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    elif method == "umap":
        _require("umap", "umap-learn")
        # Late and here alone: it imports TensorFlow wherever that is installed.
        from umap import UMAP

        near = min(15, len(wide) - 1)
        points = UMAP(n_neighbors=near, random_state=seed, n_jobs=1).fit_transform(points)
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 1)))
    return np.asarray(points, np.float64) - points.mean(axis=0)


def mantel(first: np.ndarray, second: np.ndarray, *, seed: int) -> dict[str, float | None]:
    """Spearman's correlation of two tables of distances [n, n], and its chance by relabelling.

    Returns:
        "correlation" and "p" (one-sided); None where a table is constant.
    """
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    upper = np.triu_indices(len(first), 1)
    observed = statistics.spearman(first[upper], second[upper])
    if observed is None:
        return {"correlation": None, "p": None}
    # A relabelling moves ranks about and changes none, so what is left is a sum of products.
    ranks = np.zeros(first.shape)
    ranks[upper] = rankdata(first[upper])
    ranks += ranks.T
    other = rankdata(second[upper])
    generator = np.random.default_rng(seed)
    orders = (generator.permutation(len(first)) for _ in range(_PERMUTATIONS))
    found = np.array([ranks[np.ix_(o, o)][upper] @ other for o in orders])
    as_much = int((found >= ranks[upper] @ other - 1e-6).sum())
    return {"correlation": observed, "p": (as_much + 1) / (_PERMUTATIONS + 1)}


def write_tables(folder: Path, result: Mapping[str, Any]) -> list[Path]:
    """Every number behind the maps, as proteins.csv and residues.csv, each whole or not at all.

    Args:
        folder: made where it is missing.
        result: of `draw`.

    Raises:
        ProtlmError: when the disk does not take them.
    """
    written = []
    for name, rows in tables(result).items():
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        write_atomically(folder / f"map_of_{name}.csv", buffer.getvalue())
        written.append(folder / f"map_of_{name}.csv")
    return written


def tables(result: Mapping[str, Any]) -> dict[str, list[list[Any]]]:
    """ "proteins" and "residues" -> rows, the first of them the names of the columns."""
    found = {}
    if proteins := result.get("proteins"):
        columns: dict[str, Sequence[Any]] = {"id": proteins["ids"]}
        for title, colour in proteins["colours"].items():
            columns[title] = [colour["classes"][v] if v >= 0 else "" for v in colour["values"]]
        found["proteins"] = _rows(columns, proteins["methods"])
    if residues := result.get("residues"):
        columns = {"residue": list(residues["residues"])}
        columns |= {name: about["values"] for name, about in residues["properties"].items()}
        found["residues"] = _rows(columns, residues["methods"])
    return found


def _rows(columns: dict[str, Sequence[Any]], methods: Mapping[str, Any]) -> list[list[Any]]:
    for method, by_kind in methods.items():
        for kind, points in by_kind.items():
            for axis, letter in enumerate("xy"):
                columns[f"{method}_{kind}_{letter}"] = [point[axis] for point in points]
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


def _both(loaded: LoadedModel, seed: int) -> dict[str, LoadedModel]:
    # Not the seed of any training run that a user is likely to make.
    return {"model": loaded, "random": random_control(loaded, seed + 7919)}


def _projected(
    vectors: Vectors, methods: Sequence[str], seed: int, bar: _Bar | None
) -> dict[str, Any]:
    """Rounded points of each method and kind, and what PCA's axes explain."""
    maps: dict[str, dict[str, Any]] = {}
    explained = {}
    for method in methods:
        maps[method] = {}
        for kind, values in vectors.items():
            points = project(values, method, seed)
            if method == "pca":
                total = float(values.var(axis=0).sum()) or 1.0
                explained[kind] = [float(v) / total for v in points.var(axis=0)]
            maps[method][kind] = [[float(f"{v:.5g}") for v in point] for point in points]
            if bar:
                bar.step(f"{method}, {kind}")
    return {"methods": maps, "explained": explained}


def _standardised(vectors: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 by feature; a constant feature becomes 0."""
    values = vectors.astype(np.float64)
    values -= values.mean(axis=0)
    scale = values.std(axis=0)
    constant = scale < 1e-6 * np.maximum(1.0, np.abs(vectors).max(axis=0))
    return np.asarray(values / np.where(constant, np.inf, scale))


def _distances(vectors: np.ndarray) -> np.ndarray:
    """[n, n] Euclidean."""
    return np.asarray(np.sqrt(((vectors[:, None] - vectors[None]) ** 2).sum(axis=-1)))


def _nearest(vectors: np.ndarray, seed: int) -> np.ndarray:
    """[n, n - 1] the others, nearest first; equally near ones in an order that is drawn."""
    squares = (vectors**2).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * vectors @ vectors.T
    np.fill_diagonal(distances, np.inf)
    shuffle = np.random.default_rng(seed).permutation(len(vectors))
    order = np.argsort(distances[:, shuffle], axis=1, kind="stable")
    return shuffle[order[:, :-1]]


def _agreement(nearest: Mapping[str, np.ndarray], colour: Colouring, seed: int) -> dict[str, Any]:
    """Share of a protein's nearest neighbours, of those whose class is known, that share its."""
    known = np.flatnonzero(colour.values >= 0)
    near = min(NEIGHBOURS, len(known) - 1)
    shares = {}
    for kind, order in nearest.items():
        ranked = order[known]
        there = np.isin(ranked, known)
        first = ranked[there].reshape(len(known), -1)[:, :near]
        shares[kind] = (colour.values[first] == colour.values[known][:, None]).mean(axis=1)
    ones = np.ones(len(known))
    counts = np.bincount(colour.values[known])
    chance = float((counts * (counts - 1)).sum() / (len(known) * (len(known) - 1)))
    difference = statistics.paired_difference(shares["model"], shares["random"], ones, seed=seed)
    return {
        **{kind: statistics.ratio(s, ones, seed=seed).to_dict() for kind, s in shares.items()},
        "difference": difference.to_dict(),
        "chance": chance,
        "neighbours": near,
    }


def _installed() -> tuple[tuple[str, ...], str]:
    """The methods that can be drawn, and why another is not."""
    if importlib.util.find_spec("umap"):
        return METHODS, ""
    return METHODS[:2], "UMAP is left out: pip install 'protlm-jax[probe]' brings umap-learn."


def _require(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ProtlmError(f"maps need the package {package}: pip install 'protlm-jax[probe]'")
