"""`analyse`: a model and some proteins in, measurements with named dimensions out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.evaluation.depth import similarity
from protlm_jax.evaluation.depth.batches import Asked, Proteins, prepare
from protlm_jax.evaluation.depth.erasure import erasure
from protlm_jax.evaluation.depth.gradients import gradients
from protlm_jax.evaluation.depth.measure import measure
from protlm_jax.evaluation.depth.metrics import METRICS, depths_of, resolve, why_not
from protlm_jax.evaluation.depth.partial import Partial
from protlm_jax.evaluation.depth.positions import POSITION_SETS, PositionSet
from protlm_jax.evaluation.depth.programs import block_sizes
from protlm_jax.evaluation.depth.results import Analysis, Estimate, Measured, Totals
from protlm_jax.evaluation.depth.tuned_lens import tuned_lens
from protlm_jax.models.build import build
from protlm_jax.models.flops import forward_flops_per_token
from protlm_jax.models.loaded import LoadedModel

POINTS = 1024  # positions on which similarities are estimated


def analyse(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    *,
    metrics: str | Iterable[str] = "default",
    positions: PositionSet = "asked",
    length: int | None = None,
    seed: int = 0,
    progress: bool = False,
    folder: Path | None = None,
) -> Analysis:
    """Measures every stack of a model on some proteins, in float32.

        found = analyse(load_model("runs/mine"), {"a": "MKTAYIAKQR..."})
        found.stacks["encoder"]["skip_effect"].values      # [skipped, affected]

    Args:
        loaded: the model.
        sequences: id -> sequence; 15 % of each protein's residues are asked, and hidden where the
            model hides what it predicts.
        metrics: "default", "all", or names out of `metrics.METRICS`.
        positions: see `positions.POSITION_SETS`.
        length: tokens in a row; None takes the position table's size, or 256.
        seed: of the choice of hidden residues.
        progress: draw a progress bar on a terminal.
        folder: keeps partial sums; the same call again goes on from them.

    Raises:
        ProtlmError: no protein has a residue to hide, or a metric does not exist.
    """
    began = time.perf_counter()
    names = resolve(metrics)
    loaded = in_float32(loaded)
    proteins = prepare(loaded, sequences, length, seed)
    stacks = {}
    for stack in loaded.model.stack_names:
        keep = None
        if folder is not None:
            settings = [names, positions, seed, proteins.names, proteins.pieces, proteins.length]
            keep = Partial(folder / f"{stack}.npz", loaded, settings)
        stacks[stack] = measure_stack(
            loaded, proteins, stack, names, positions, seed=seed, progress=progress, keep=keep
        )
    tokens = sum(stop - start for _, start, stop in proteins.pieces)
    tokens += len(proteins.pieces) * loaded.vocabulary.num_specials
    flops = forward_flops_per_token(loaded.config, proteins.length) * tokens
    cost = {"seconds": time.perf_counter() - began, "tokens": tokens, "one_forward_flops": flops}
    return Analysis(loaded.name, POSITION_SETS[positions], proteins.names, stacks, cost)


def measure_stack(
    loaded: LoadedModel,
    proteins: Proteins,
    stack: str,
    names: tuple[str, ...],
    positions: PositionSet = "asked",
    *,
    seed: int = 0,
    progress: bool = False,
    keep: Partial | None = None,
) -> Measured:
    """One stack on all proteins; see `analyse`.

    Args:
        keep: where sums are kept while batches come in, and taken from when a run goes on.
    """
    from tqdm import tqdm

    number, sublayers = _shape(loaded, stack)
    reasons = {name: why_not(name, loaded.model, stack, number) for name in names}
    undefined = {name: reason for name, reason in reasons.items() if reason}
    if proteins.batches < 4 and "tuned_lens" in names:
        undefined.setdefault("tuned_lens", "needs four batches of proteins")
    defined = tuple(name for name in names if name not in undefined)
    streamed = tuple(name for name in defined if METRICS[name].streamed)
    points = 1 << (-(-POINTS // proteins.batches) - 1).bit_length()  # few shapes to compile for
    totals, samples = Totals(len(proteins.names)), list[np.ndarray]()
    done = 0 if keep is None else keep.load(totals, samples)
    quiet = None if progress else True
    for index in tqdm(
        range(done, proteins.batches), stack, proteins.batches, initial=done, disable=quiet
    ):
        batch = proteins.batch(loaded, index)
        found, sample = measure_batch(loaded, batch, stack, streamed, positions, points)
        totals.add(found, list(batch.owners))
        if sample:
            samples.append(sample["streams"][:, sample["real"]])
        if keep is not None:
            keep.save(totals, samples, index + 1)
    quantities: dict[str, Any] = dict(totals.quantities)
    if samples:
        similar = similarity.similarities(np.concatenate(samples, axis=1))
        quantities |= {name: Estimate(*named) for name, named in similar.items()}
    depths = depths_of(number)
    if "erasure" in defined:
        quantities |= erasure(loaded, proteins, stack, depths)
    if "gradients" in defined:
        quantities |= gradients(loaded, proteins, stack, depths)
    if "tuned_lens" in defined:
        quantities |= tuned_lens(loaded, proteins, stack, seed)[0]
    coords = {
        "part": ("layer", *sublayers),
        "sublayer": sublayers,
        "size": block_sizes(number),
        "at_depth": depths,
    }
    return Measured(stack, number, quantities, coords, undefined)


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
            loaded.model,
            loaded.params,
            batch.features,
            batch.true,
            batch.positions(positions, loaded.model.readouts[0], max(8, len(batch.owners))),
            jnp.asarray(loaded.vocabulary.amino_acid_ids),
            stack=stack,
            metrics=metrics,
            points=points,
        )
    return jax.device_get(found)


def in_float32(loaded: LoadedModel) -> LoadedModel:
    """The same model computing in float32: effects of late layers are small differences."""
    if loaded.config.dtype == "float32":
        return loaded
    return dataclasses.replace(loaded, model=build(loaded.config.replace(dtype="float32")))


def _shape(loaded: LoadedModel, stack: str) -> tuple[int, tuple[str, ...]]:
    """How many layers run, and the names of a block's sublayers."""
    block, _ = loaded.model.bind({"params": loaded.params}).rows(stack)
    return block.num_layers, block.sublayers
