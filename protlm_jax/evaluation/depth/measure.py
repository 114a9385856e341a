"""The compiled program: everything that is asked of one stack on one batch, after one base pass."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax

from protlm_jax.evaluation.depth import answers, programs, similarity, skips
from protlm_jax.evaluation.depth.metrics import METRICS
from protlm_jax.evaluation.depth.positions import Positions, Stat
from protlm_jax.evaluation.depth.subject import observe


@functools.partial(jax.jit, static_argnames=("model", "stack", "metrics", "points"))
def measure(
    model: nn.Module,
    params: Any,
    features: dict[str, jax.Array],
    true: jax.Array,
    positions: Positions,
    amino_acids: jax.Array,
    *,
    stack: str,
    metrics: tuple[str, ...],
    points: int = 0,
) -> tuple[dict[str, Stat], dict[str, jax.Array]]:
    """Measures one batch.

    Args:
        model, params: any family.
        features: what the model is shown, residues hidden.
        true: [B, L] int32, the tokens as they are.
        positions: where layers are edited and effects read.
        amino_acids: [20] int32 ids.
        stack: which of the model's stacks is measured.
        metrics: names out of METRICS that are defined on it; see `metrics.why_not`.
        points: how many positions "similarity" takes of this batch.

    Returns:
        Quantities by name, and the sample of streams ({} without "similarity").
    """
    subject = observe(model, params, features, true, positions, amino_acids, stack)
    answered = model.readouts[0].reads_stream
    found = answers.own(subject) if answered else {}
    for name in metrics:
        if (metric := METRICS[name].measure) is not None:
            found |= metric(subject)
    layers, sublayers = ("skips" in metrics), ("sublayer_skips" in metrics)
    if layers or sublayers:
        found |= skips.skips(subject, answered, layers, sublayers)
    if kinds := [name for name in metrics if name in programs.FAMILIES]:
        found |= programs.perturbations(subject, kinds)
    return found, similarity.sample(subject, points) if "similarity" in metrics else {}
