"""Which depth of one model is a linear function of which depth of another (M15).

Csordás et al. 2025 fit such maps between a shallow and a deep model of one family and find them
best at equal relative depth; their training code was not at hand, so that the fit here, a ridge
regression in closed form, is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
import xarray

from protlm_jax.evaluation.depth.batches import DepthBatch, Proteins, prepare
from protlm_jax.evaluation.depth.subject import Subject
from protlm_jax.evaluation.depth.sweep import Sweep, require_finite
from protlm_jax.models.loaded import LoadedModel

PENALTY = 1e-3  # ridge, as a share of the mean variance of the streams that are mapped
Moments = dict[str, np.ndarray]
"""Sums over points of x [I, D] and y [J, E]: "n" [], "x", "y", "xx" [I, D, D], "xy" [I, J, D, E]
and "yy" [J], of y . y."""


def linear_maps(
    first: LoadedModel,
    second: LoadedModel,
    sequences: Mapping[str, str],
    *,
    length: int | None = None,
    seed: int = 0,
    depths: Sequence[int] | None = None,
    other_depths: Sequence[int] | None = None,
) -> xarray.DataArray:
    """R^2 of h_j(second) predicted linearly from h_i(first), on proteins that were not fitted.

        W = (Sxx + penalty I)^-1 Sxy,   R^2 = 1 - |y - W^T x|^2 / |y - mean|^2

    from moments over residues, streamed: nothing grows with the number of proteins. The first stack
    of each model is read, at every residue, the asked ones hidden from both alike. Every other
    batch is held out.

    Args:
        length: tokens in a row of the first model.
        depths, other_depths: of the first and of the second model; None takes all. The moments take
            8 bytes for each pair of depths and pair of their widths.

    Returns:
        dims ("depth", "other_depth"). Cost: one forward of each, and the moments.

    Raises:
        ProtlmError: no protein has a residue to hide, or a model gives NaN or infinity.
        ValueError: fewer than two batches of proteins.
    """
    proteins = prepare(first, sequences, length, seed)
    if proteins.batches < 2:
        raise ValueError("half of the batches are held out: more proteins are needed")
    others = proteins.fitting(second, first)
    halves: list[Moments] = [{}, {}]
    shift: tuple[np.ndarray, np.ndarray] | None = None
    for index in range(proteins.batches):
        x, y = (
            streams_of(loaded, each, each.batch(loaded, index), of)
            for loaded, each, of in ((first, proteins, depths), (second, others, other_depths))
        )
        shift = shift or (x.mean(axis=1), y.mean(axis=1))
        _add(halves[index % 2], x - shift[0][:, None], y - shift[1][:, None])
    return xarray.DataArray(
        explained(halves[0], halves[1]), dims=("depth", "other_depth"), attrs={"units": "1"}
    )


def explained(fitted: Moments, held_out: Moments, penalty: float = PENALTY) -> np.ndarray:
    """R^2 [I, J] on one set of moments of the ridge regression fitted to another.

    nan where what is predicted is the same at all points.
    """
    pairs, others = fitted["xy"].shape[:2]
    result = np.empty((pairs, others))
    n, m = float(fitted["n"]), float(held_out["n"])
    for i in range(pairs):
        mean = fitted["x"][i] / n
        xx = fitted["xx"][i] / n - np.outer(mean, mean)
        ridge = penalty * np.trace(xx) / len(xx) + 1e-12
        test_x = held_out["x"][i] / m
        test_xx = _about(held_out["xx"][i] / m, test_x, test_x, mean, mean)
        for j in range(others):
            mean_y = fitted["y"][j] / n
            xy = fitted["xy"][i, j] / n - np.outer(mean, mean_y)
            weights = np.linalg.solve(xx + ridge * np.eye(len(xx)), xy)
            test_y = held_out["y"][j] / m
            test_xy = _about(held_out["xy"][i, j] / m, test_x, test_y, mean, mean_y)
            square = held_out["yy"][j] / m - 2 * test_y @ mean_y + mean_y @ mean_y
            error = square - 2 * (weights * test_xy).sum()
            error += np.einsum("de,dc,ce->", weights, test_xx, weights)
            spread = held_out["yy"][j] / m - test_y @ test_y
            varies = spread > 1e-12 * held_out["yy"][j] / m
            result[i, j] = 1 - error / spread if varies else np.nan
    return result


def streams_of(
    loaded: LoadedModel, proteins: Proteins, batch: DepthBatch, depths: Sequence[int] | None
) -> np.ndarray:
    """The first stack's streams at the residues of a batch, row by row: [depths, residues, D]."""
    sweep = Sweep(loaded, proteins, loaded.model.stack_names[0])
    streams = sweep.run(_streams, sweep.shown(batch))
    chosen = streams if depths is None else streams[list(depths)]
    found = chosen[:, batch.residues].astype(np.float64)
    require_finite(loaded, proteins, batch, bool(np.isfinite(found).all()))
    return found


def _streams(subject: Subject) -> jax.Array:
    return subject.streams


def _add(moments: Moments, x: np.ndarray, y: np.ndarray) -> None:
    """Adds points x [I, n, D] and y [J, n, E]."""
    found = {
        "n": np.float64(x.shape[1]),
        "x": x.sum(axis=1),
        "y": y.sum(axis=1),
        "xx": x.transpose(0, 2, 1) @ x,
        "xy": x.transpose(0, 2, 1)[:, None] @ y[None],
        "yy": (y**2).sum(axis=(1, 2)),
    }
    for name, value in found.items():
        moments[name] = moments.get(name, 0.0) + value


def _about(
    second: np.ndarray, x: np.ndarray, y: np.ndarray, at_x: np.ndarray, at_y: np.ndarray
) -> np.ndarray:
    """Mean of (x - a)(y - b)^T from the mean of x y^T and the means of both."""
    return second - np.outer(x, at_y) - np.outer(at_x, y) + np.outer(at_x, at_y)
