"""`analyse`: a model and some proteins in, measurements with named dimensions out."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.depth import similarity
from protlm_jax.evaluation.depth.ablation import block_sizes
from protlm_jax.evaluation.depth.batches import DepthBatch, Proteins, in_float32, prepare
from protlm_jax.evaluation.depth.metrics import METRICS, forwards, measure, resolve, why_not
from protlm_jax.evaluation.depth.positions import POSITION_SETS, PositionSet, Stat
from protlm_jax.evaluation.depth.results import dataset, with_rises
from protlm_jax.evaluation.depth.sweep import Sweep
from protlm_jax.evaluation.heldout import RATE
from protlm_jax.models.flops import forward_flops_per_token
from protlm_jax.models.identity import identity
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.storage.digests import digest_of_data

POINTS = 1024  # positions on which similarities are estimated

# Which residues are read, by the kind of a family's readout.
READ = {
    "masked": "residues shown as the mask token; softmax over the 20 amino acids",
    "denoising": "residues shown to the encoder as the mask token; softmax over the 20 amino acids",
    "causal": "positions before the chosen residues, which they predict; softmax over the 20 amino "
    "acids",
    "query": "chosen residues of the content stream, all in sight; the answer is given by the "
    "query stream, so that effects on it are not defined here",
    "detection": "chosen residues, all in sight; the model gives no distribution over residues, so "
    "that effects on the answer are not defined",
    "none": "chosen residues, all in sight; the model has no head, so that effects on the answer "
    "are not defined",
}


def analyse(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    *,
    metrics: str | Iterable[str] = "default",
    positions: PositionSet = "asked",
    noise_levels: Sequence[float] | None = None,
    length: int | None = None,
    seed: int = 0,
    progress: bool = False,
    folder: Path | None = None,
) -> dict[str, xarray.Dataset]:
    """Measures every stack of a model on some proteins, in float32.

        found = analyse(load_model("runs/mine"), {"a": "MKTAYIAKQR..."})
        found["encoder"]["skip_effect"]     # [skipped, affected]

    Args:
        sequences: id -> sequence; 15 % of each protein's residues are asked, and hidden where the
            model hides what it predicts.
        metrics: "default", "all", or names out of `metrics.METRICS`.
        positions: see `positions.POSITION_SETS`.
        noise_levels: shares of the residues that are hidden instead, above 0 and at most 1. All is
            then measured at each, and every quantity has "noise" for its first dimension.
        length: tokens in a row; None takes the position table's size, or 256.
        seed: of the choice of hidden residues.
        progress: draw a progress bar on a terminal, with the time that is left.
        folder: keeps unfinished sums; the same call again goes on from them.

    Returns:
        By stack its results; see `results` for the variables, and "undefined" (JSON: metric ->
        why) among the attributes.

    Raises:
        ProtlmError: no protein has a residue to hide, a metric does not exist, a level is out of
            range, or the model is not asked by masks in its input and so has no levels.
    """
    began = time.perf_counter()
    names, loaded = resolve(metrics), in_float32(loaded)
    levels = (RATE,) if noise_levels is None else checked_levels(loaded, noise_levels)
    content = digest_of_data(json.dumps(list(sequences.items())).encode())
    source = folder and [identity(loaded), content]
    at_levels: list[dict[str, xarray.Dataset]] = []
    for rate in levels:
        proteins = prepare(loaded, sequences, length, seed, rate)
        place = folder and (folder if noise_levels is None else folder / f"noise-{rate:g}")
        settings = [source, positions, seed, rate, proteins.names, proteins.pieces, proteins.length]
        sweep = Sweep(loaded, proteins, "", positions, seed, place, settings, progress)
        stacks = {one: dataclasses.replace(sweep, stack=one) for one in loaded.model.stack_names}
        at_levels.append({name: measure_stack(one, names) for name, one in stacks.items()})
    found = at_levels[0] if noise_levels is None else _by_level(at_levels, levels)
    about = _about(loaded, proteins, positions) | {"seconds": time.perf_counter() - began}
    return {stack: one.assign_attrs(about) for stack, one in found.items()}


def _about(loaded: LoadedModel, proteins: Proteins, positions: PositionSet) -> dict[str, Any]:
    """Attributes of the results of every stack."""
    specials = loaded.vocabulary.num_specials
    tokens = sum(stop - start + specials for _, start, stop in proteins.pieces)
    return {
        "model": loaded.name,
        "family": loaded.config.family,
        "tokens": tokens,
        "one_forward_flops": forward_flops_per_token(loaded.config, proteins.length) * tokens,
        "positions": f"{READ[loaded.model.readouts[0].kind]}; {POSITION_SETS[positions]}",
    }


def _by_level(
    found: Sequence[Mapping[str, xarray.Dataset]], levels: Sequence[float]
) -> dict[str, xarray.Dataset]:
    noise = xarray.DataArray(list(levels), dims="noise", name="noise")
    return {
        stack: xarray.concat(
            [one[stack] for one in found], noise, data_vars="all", coords="minimal",
            compat="equals", join="exact", combine_attrs="override",
        )
        for stack in found[0]
    }  # fmt: skip


def checked_levels(loaded: LoadedModel, levels: Sequence[float]) -> tuple[float, ...]:
    """The levels of noise.

    Raises:
        ProtlmError: the model has none, or there is none, or one is not a share.
    """
    if (reason := loaded.model.readouts[0].why_no_noise) is not None:
        raise ProtlmError(f"levels of noise are not defined of {loaded.name}: {reason}")
    if not levels or not all(0 < level <= 1 for level in levels):
        shown = ", ".join(f"{level:g}" for level in levels) or "none"
        raise ProtlmError(f"levels of noise are shares above 0 and at most 1; these are {shown}")
    return tuple(levels)


def measure_stack(sweep: Sweep, names: Sequence[str]) -> xarray.Dataset:
    """One stack on all proteins."""
    loaded, proteins = sweep.loaded, sweep.proteins
    number, sublayers = sweep.shape
    reasons = {name: why_not(name, loaded.model, sweep.stack, number) for name in names}
    undefined = {name: reason for name, reason in reasons.items() if reason}
    if proteins.batches < 4 and "tuned_lens" in names:
        undefined.setdefault("tuned_lens", "needs four batches of proteins")
    defined = tuple(name for name in names if name not in undefined)
    by_batch = tuple(name for name in defined if METRICS[name].how != "sweep")
    points = 1 << (-(-POINTS // proteins.batches) - 1).bit_length()  # few shapes to compile for

    def measured(batch: DepthBatch) -> tuple[dict[str, Stat], np.ndarray | None]:
        found, sample = sweep.run(measure, sweep.shown(batch), metrics=by_batch, points=points)
        return found, sample["streams"][:, sample["real"]] if sample else None

    sums, samples = sweep.sums(measured, "", *by_batch)
    quantities: dict[str, Any] = dict(sums)
    if samples:
        quantities |= similarity.similarities(np.concatenate(samples, axis=1))
    for name in METRICS:
        if name in defined and METRICS[name].how == "sweep":
            quantities |= METRICS[name].measure(sweep)
    labels = {
        "part": ("layer", *sublayers),
        "sublayer": sublayers,
        "size": block_sizes(number),
        "at_depth": sweep.depths,
        "protein": proteins.names,
    }
    return dataset(
        with_rises(quantities),
        labels,
        stack=sweep.stack,
        layers=number,
        undefined=json.dumps(undefined),
        forwards=forwards(defined, number, len(sublayers)),
    )
