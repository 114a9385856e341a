"""How alike the streams of two depths are, and how many directions they use (M16).

On a sample of positions, drawn evenly from the batches, since some thousand points are enough for
these estimates. NumPy over arrays [points, width], in float64.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.evaluation.depth.subject import Subject

DISCARDED = 0.1  # share of the largest ratios that TwoNN leaves out, as its authors do


def sample(subject: Subject, points: int) -> dict[str, jax.Array]:
    """Streams of the first target places: "streams" [N + 1, points, D] and "real" [points] bool."""
    target = subject.positions.target.reshape(-1)
    (places,) = jnp.nonzero(target, size=points, fill_value=-1)
    flat = subject.seen.reshape(subject.num_layers + 1, target.size, -1)
    return {"streams": flat[:, places].astype(jnp.float32), "real": places >= 0}


def similarities(streams: np.ndarray) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Name -> (dims, values) of all measures, of streams [depths, points, width]."""
    return {
        "cka": (("depth", "other_depth"), linear_cka(streams)),
        "effective_rank": (("depth",), np.array([effective_rank(x) for x in streams])),
        "intrinsic_dimension": (("depth",), np.array([intrinsic_dimension(x) for x in streams])),
    }


def linear_cka(streams: np.ndarray) -> np.ndarray:
    """Linear centred kernel alignment of all pairs (Kornblith et al. 2019, arXiv 1905.00414).

        CKA(X, Y) = ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F),   columns centred

    [depths, depths] in [0, 1]; nan where a stream is the same at all points. It is not corrected
    for few points: with fewer than some times the width, unlike streams look alike.
    """
    grams = [(x @ x.T).ravel() for x in map(_centred, streams)]
    products = np.array([[a @ b for b in grams] for a in grams])
    size = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        return products / np.outer(size, size)


def effective_rank(x: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007), in dimensions.

    Between 1 and the smaller of the two sizes; nan where all points are the same.
    """
    singular = np.linalg.svd(_centred(x), compute_uv=False)
    if not singular.sum():
        return float("nan")
    share = singular / singular.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def _centred(x: np.ndarray) -> np.ndarray:
    """[points, width] float64 about the mean of all points; 0 where only rounding is left."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    return np.where(np.abs(centred) <= 1e-12 * np.abs(wide).max(axis=0), 0.0, centred)


def intrinsic_dimension(x: np.ndarray) -> float:
    """TwoNN (Facco et al. 2017): from the ratio mu of the distances to the two nearest points.

    log mu is exponential with rate d: the slope through the origin of -log(1 - F(mu)) on log mu,
    F being the empirical distribution, without the tenth of largest ratios. Points that coincide
    with another are left out; nan with fewer than three points that differ.
    """
    x = np.unique(x.astype(np.float64), axis=0)
    if len(x) < 3:
        return float("nan")
    x = x - x.mean(axis=0)  # smaller numbers, less cancellation
    squares = (x**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * x @ x.T, 0.0)
    np.fill_diagonal(distances, np.inf)
    nearest = np.sqrt(np.partition(distances, 1, axis=1)[:, :2])
    nearest = nearest[nearest[:, 0] > 0]
    log_mu = np.sort(np.log(nearest[:, 1] / nearest[:, 0]))
    if len(log_mu) < 2:
        return float("nan")
    kept = log_mu[
        : max(1, int(len(log_mu) * (1 - DISCARDED)))
    ]  # fewer than all: log 0 is not asked
    survival = -np.log(1 - np.arange(1, len(kept) + 1) / len(log_mu))
    return float((kept @ survival) / (kept @ kept)) if kept.any() else float("nan")
