"""`analyse`: a model and some proteins in, measurements with named dimensions out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.evaluation.depth import similarity
from protlm_jax.evaluation.depth.batches import Asked, Proteins, prepare
from protlm_jax.evaluation.depth.measure import measure
from protlm_jax.evaluation.depth.metrics import resolve, why_not
from protlm_jax.evaluation.depth.positions import POSITION_SETS, PositionSet
from protlm_jax.evaluation.depth.programs import block_sizes
from protlm_jax.evaluation.depth.results import Analysis, Estimate, Measured, Totals
from protlm_jax.models.build import build, count_tokens
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

    Raises:
        ProtlmError: no protein has a residue to hide, or a metric does not exist.
    """
    began = time.perf_counter()
    names = resolve(metrics)
    loaded = in_float32(loaded)
    proteins = prepare(loaded, sequences, length, seed)
    stacks = {
        stack: measure_stack(loaded, proteins, stack, names, positions, progress)
        for stack in loaded.model.stack_names
    }
    tokens = sum(count_tokens(b.features) for b in proteins.all_batches(loaded))
    flops = forward_flops_per_token(loaded.config, proteins.length) * tokens
    cost = {"seconds": time.perf_counter() - began, "tokens": tokens, "one_forward_flops": flops}
    return Analysis(loaded.name, POSITION_SETS[positions], proteins.names, stacks, cost)


def measure_stack(
    loaded: LoadedModel,
    proteins: Proteins,
    stack: str,
    names: tuple[str, ...],
    positions: PositionSet = "asked",
    progress: bool = False,
) -> Measured:
    """One stack on all proteins; see `analyse`."""
    from tqdm import tqdm

    undefined = _undefined(loaded, stack, names)
    defined = tuple(name for name in names if name not in undefined)
    points = 1 << (-(-POINTS // proteins.batches) - 1).bit_length()  # few shapes to compile for
    totals, samples = Totals(len(proteins.names)), []
    quiet = None if progress else True
    batches = tqdm(proteins.all_batches(loaded), stack, proteins.batches, disable=quiet)
    for batch in batches:
        found, sample = measure_batch(loaded, batch, stack, defined, positions, points)
        totals.add(found, list(batch.owners))
        if sample:
            samples.append(sample["streams"][:, sample["real"]])
    quantities: dict[str, Any] = dict(totals.quantities)
    if samples:
        similar = similarity.similarities(np.concatenate(samples, axis=1))
        quantities |= {name: Estimate(*named) for name, named in similar.items()}
    block, number = _shape(loaded, stack)
    coords = {
        "part": ("layer", *block),
        "sublayer": block,
        "size": block_sizes(number),
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


def _undefined(loaded: LoadedModel, stack: str, names: tuple[str, ...]) -> dict[str, str]:
    _, number = _shape(loaded, stack)
    reasons = {name: why_not(name, loaded.model, stack, number) for name in names}
    return {name: reason for name, reason in reasons.items() if reason}


def _shape(loaded: LoadedModel, stack: str) -> tuple[tuple[str, ...], int]:
    """Names of a block's sublayers, and how many layers run."""
    block, _ = loaded.model.bind({"params": loaded.params}).rows(stack)
    return block.sublayers, block.num_layers
