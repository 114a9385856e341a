"""Projections of vectors to two dimensions, and distances between all of them.

Vectors are [n, d] float64 throughout, standardised by feature.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics

METHODS = ("pca", "tsne", "umap")
FEWEST = 4
COMPONENTS = 50  # that t-SNE and UMAP read of larger vectors, as is usual
PERMUTATIONS = 1999
_FEW = 500


def project(vectors: np.ndarray, method: str, seed: int) -> np.ndarray:
    """[n, 2] float64, centred, of vectors [n, d] of any scale; the seed is of t-SNE and UMAP.

    Raises:
        ProtlmError: for an unknown method, fewer than 4 vectors, vectors that are not finite, or a
            missing package.
    """
    if method not in METHODS:
        raise ProtlmError(f"no map {method!r}: there is {', '.join(METHODS)}")
    if len(vectors) < FEWEST or not np.isfinite(vectors).all():
        raise ProtlmError(f"a map needs at least {FEWEST} finite vectors; got {vectors.shape}")
    require_packages()
    from sklearn.decomposition import PCA

    wide = np.asarray(vectors, np.float64)
    most = min(COMPONENTS if method != "pca" else 2, *wide.shape)
    with np.errstate(invalid="ignore"):  # shares of no variance at all, where all are equal
        points = PCA(most, svd_solver="full").fit_transform(wide)
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(wide) - 1) / 3)
        with _threads(len(wide)):
            tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
            points = tsne.fit_transform(points)
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
    """Spearman's "correlation" of two tables of distances [n, n], and "p" by relabelling.

    p is one-sided; both are None where a table is constant.
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
    orders = (generator.permutation(len(first)) for _ in range(PERMUTATIONS))
    found = np.array([ranks[np.ix_(o, o)][upper] @ other for o in orders])
    as_much = int((found >= ranks[upper] @ other - 1e-6).sum())
    return {"correlation": observed, "p": (as_much + 1) / (PERMUTATIONS + 1)}


def standardised(vectors: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 by feature; a constant feature becomes 0."""
    values = vectors.astype(np.float64)
    values -= values.mean(axis=0)
    scale = values.std(axis=0)
    constant = scale < 1e-6 * np.maximum(1.0, np.abs(vectors).max(axis=0))
    return np.asarray(values / np.where(constant, np.inf, scale))


def distances(vectors: np.ndarray) -> np.ndarray:
    """[n, n] Euclidean."""
    return np.asarray(np.sqrt(((vectors[:, None] - vectors[None]) ** 2).sum(axis=-1)))


def nearest(vectors: np.ndarray, seed: int) -> np.ndarray:
    """[n, n - 1] the others, nearest first; equally near ones in an order that is drawn."""
    squares = (vectors**2).sum(axis=1)
    apart = squares[:, None] + squares[None] - 2 * vectors @ vectors.T
    np.fill_diagonal(apart, np.inf)
    shuffle = np.random.default_rng(seed).permutation(len(vectors))
    order = np.argsort(apart[:, shuffle], axis=1, kind="stable")
    return shuffle[order[:, :-1]]


def installed() -> tuple[tuple[str, ...], str]:
    """The methods whose packages are there, and a sentence about another."""
    if importlib.util.find_spec("umap"):
        return METHODS, ""
    return METHODS[:2], "UMAP is left out: pip install 'protlm-jax[probe]' brings umap-learn."


def require_packages() -> None:
    """Raises ProtlmError where scikit-learn is missing; for use before long work."""
    _require("sklearn", "scikit-learn")


def _require(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ProtlmError(f"maps need the package {package}: pip install 'protlm-jax[probe]'")


@contextlib.contextmanager
def _threads(points: int) -> Iterator[None]:
    """One thread for few points: several would wait for each other."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1 if points < _FEW else None):
        yield
