"""`analyse`: a model and some proteins in, measurements with named dimensions out."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.depth import similarity
from protlm_jax.evaluation.depth.batches import ROWS, Asked, Proteins, prepare
from protlm_jax.evaluation.depth.erasure import erasure
from protlm_jax.evaluation.depth.gradients import gradients
from protlm_jax.evaluation.depth.measure import measure
from protlm_jax.evaluation.depth.metrics import (
    METRICS,
    depths_of,
    forwards,
    resolve,
    why_not,
)
from protlm_jax.evaluation.depth.parts import NOTHING, Part
from protlm_jax.evaluation.depth.positions import POSITION_SETS, PositionSet, Stat
from protlm_jax.evaluation.depth.programs import block_sizes
from protlm_jax.evaluation.depth.results import dataset, with_rises
from protlm_jax.evaluation.depth.streaming import arguments, over_batches
from protlm_jax.evaluation.depth.tuned_lens import tuned_lens
from protlm_jax.evaluation.heldout import RATE
from protlm_jax.models.flops import forward_flops_per_token
from protlm_jax.models.identity import identity
from protlm_jax.models.loaded import LoadedModel

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
        loaded: the model.
        sequences: id -> sequence; 15 % of each protein's residues are asked, and hidden where the
            model hides what it predicts.
        metrics: "default", "all", or names out of `metrics.METRICS`.
        positions: see `positions.POSITION_SETS`.
        noise_levels: shares of the residues that are hidden instead, above 0 and at most 1. All is
            then measured at each, and every quantity has "noise" for its first dimension.
        length: tokens in a row; None takes the position table's size, or 256.
        seed: of the choice of hidden residues.
        progress: draw a progress bar on a terminal, with the time that is left.
        folder: keeps partial sums; the same call again goes on from them.

    Returns:
        By stack its results; see `results` for the variables. Attributes: "model", "family",
        "stack", "layers", "positions", "undefined" (JSON: metric -> why), "seconds", "tokens", and
        "one_forward_flops" and "forwards", what it cost.

    Raises:
        ProtlmError: no protein has a residue to hide, a metric does not exist, a level is out of
            range, or the model is not asked by masks in its input and so knows no levels.
    """
    began = time.perf_counter()
    names = resolve(metrics)
    loaded = in_float32(loaded)
    about = "" if folder is None else [identity(loaded), _digest(sequences)]
    at_levels: list[dict[str, xarray.Dataset]] = []
    for rate in (RATE,) if noise_levels is None else checked_levels(loaded, noise_levels):
        proteins = prepare(loaded, sequences, length, seed, rate)
        place = folder if folder is None or noise_levels is None else folder / f"noise-{rate:g}"
        settings = [about, positions, seed, rate, proteins.names, proteins.pieces, proteins.length]
        parts = functools.partial(_part, place, settings)
        at_levels.append(
            {
                stack: measure_stack(
                    loaded, proteins, stack, names, positions, seed=seed, progress=progress,
                    parts=parts,
                )
                for stack in loaded.model.stack_names
            }
        )  # fmt: skip
    found = at_levels[0]
    if noise_levels is not None:
        levels = xarray.DataArray(list(noise_levels), dims="noise", name="noise")
        found = {
            stack: xarray.concat(
                [one[stack] for one in at_levels], levels, data_vars="all", coords="minimal",
                compat="equals", join="exact", combine_attrs="override",
            )
            for stack in found
        }  # fmt: skip
    read = READ[loaded.model.readouts[0].kind]
    cost = {"seconds": time.perf_counter() - began, **_tokens(loaded, proteins)}
    shared = {"model": loaded.name, "family": loaded.config.family, **cost}
    shared["positions"] = f"{read}; {POSITION_SETS[positions]}"
    return {stack: one.assign_attrs(shared) for stack, one in found.items()}


def checked_levels(loaded: LoadedModel, levels: Sequence[float]) -> tuple[float, ...]:
    """The levels of noise, if the model knows such.

    Raises:
        ProtlmError: it does not, or there is none, or one is not a share.
    """
    if (reason := loaded.model.readouts[0].why_no_noise) is not None:
        raise ProtlmError(f"levels of noise are not defined of {loaded.name}: {reason}")
    if not levels or not all(0 < level <= 1 for level in levels):
        shown = ", ".join(f"{level:g}" for level in levels) or "none"
        raise ProtlmError(f"levels of noise are shares above 0 and at most 1; these are {shown}")
    return tuple(levels)


def measure_stack(
    loaded: LoadedModel,
    proteins: Proteins,
    stack: str,
    names: tuple[str, ...],
    positions: PositionSet = "asked",
    *,
    seed: int = 0,
    progress: bool = False,
    parts: Callable[..., Part] = lambda *what: NOTHING,
) -> xarray.Dataset:
    """One stack on all proteins; see `analyse`.

    Args:
        parts: (stack, what is measured, metrics) -> where its sums are kept while batches come in,
            and taken from when a run goes on.
    """
    number, sublayers = _shape(loaded, stack)
    undefined = _undefined(loaded, proteins, stack, number, names)
    defined = tuple(name for name in names if name not in undefined)
    streamed = tuple(name for name in defined if METRICS[name].streamed)
    points = 1 << (-(-POINTS // proteins.batches) - 1).bit_length()  # few shapes to compile for

    def measured(batch: Asked) -> tuple[dict[str, Stat], np.ndarray | None]:
        found, sample = measure_batch(loaded, batch, stack, streamed, positions, points)
        return found, sample["streams"][:, sample["real"]] if sample else None

    part = parts(stack, "", streamed)
    bar = {"progress": progress}
    streams, samples = over_batches(loaded, proteins, measured, stack, part=part, **bar)
    quantities: dict[str, Any] = dict(streams)
    if samples:
        quantities |= similarity.similarities(np.concatenate(samples, axis=1))
    depths = depths_of(number)
    for name, costly in (("erasure", erasure), ("gradients", gradients)):
        if name in defined:
            part = parts(stack, name)
            quantities |= costly(loaded, proteins, stack, depths, positions, part=part, **bar)
    if "tuned_lens" in defined:
        part = parts(stack, "tuned_lens")
        found, _ = tuned_lens(loaded, proteins, stack, positions, seed=seed, part=part, **bar)
        quantities |= found
    labels = {
        "part": ("layer", *sublayers),
        "sublayer": sublayers,
        "size": block_sizes(number),
        "at_depth": depths,
        "protein": proteins.names,
    }
    return dataset(
        with_rises(quantities),
        labels,
        stack=stack,
        layers=number,
        undefined=json.dumps(undefined),
        forwards=forwards(defined, number, len(sublayers)),
    )


def measure_batch(
    loaded: LoadedModel,
    batch: Asked,
    stack: str,
    metrics: tuple[str, ...],
    positions: PositionSet = "asked",
    points: int = 0,
) -> Any:
    """`measure` on one batch, its results on the host. Products are in full float32."""
    with jax.default_matmul_precision("float32"):
        found = measure(
            *arguments(loaded, batch, positions, max(ROWS, len(batch.owners))),
            stack=stack,
            metrics=metrics,
            points=points,
        )
    return jax.device_get(found)


def _digest(sequences: Mapping[str, str]) -> str:
    content = json.dumps(list(sequences.items())).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def in_float32(loaded: LoadedModel) -> LoadedModel:
    """The same model computing in float32: effects of late layers are small differences."""
    if loaded.config.dtype == "float32":
        return loaded
    return loaded.with_config(dtype="float32")


def _part(
    folder: Path | None, settings: list[Any], stack: str, what: str, metrics: Sequence[str] = ()
) -> Part:
    """Where one measurement of a stack is kept."""
    if folder is None:
        return NOTHING
    name = "-".join(filter(None, (stack, what)))
    return Part(folder / f"{name}.nc", [*settings, *metrics])


def _undefined(
    loaded: LoadedModel, proteins: Proteins, stack: str, number: int, names: tuple[str, ...]
) -> dict[str, str]:
    """Metric -> why it is not defined here."""
    reasons = {name: why_not(name, loaded.model, stack, number) for name in names}
    undefined = {name: reason for name, reason in reasons.items() if reason}
    if proteins.batches < 4 and "tuned_lens" in names:
        undefined.setdefault("tuned_lens", "needs four batches of proteins")
    return undefined


def _tokens(loaded: LoadedModel, proteins: Proteins) -> dict[str, float]:
    """Tokens, and operations of one forward over them."""
    tokens = sum(stop - start for _, start, stop in proteins.pieces)
    tokens += len(proteins.pieces) * loaded.vocabulary.num_specials
    flops = forward_flops_per_token(loaded.config, proteins.length) * tokens
    return {"tokens": tokens, "one_forward_flops": flops}


def _shape(loaded: LoadedModel, stack: str) -> tuple[int, tuple[str, ...]]:
    """How many layers run, and the names of a block's sublayers."""
    block, _ = loaded.model.bind({"params": loaded.params}).rows(stack)
    return block.num_layers, block.sublayers
