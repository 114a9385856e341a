"""Heads: small networks that read frozen features.

A head is written for one input: features [T, D] and `protein` [T], see `Batch`. `training` makes
one program of all seeds and all inputs of it.

Letters: T rows, D features, P protein slots, C classes of a target (1 for a number).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import Target

Answers = dict[str, jax.Array]
"""Target -> logits [T or P, C], or standardised numbers [T or P, 1]."""


def outputs(target: Target) -> int:
    """C."""
    return len(target.classes) if target.kind == "classes" else 1


class Readout(nn.Module):
    """x [rows, D] -> {target: [rows, C]}: one matrix for each target, in one product."""

    targets: tuple[Target, ...]
    init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> Answers:
        sizes = [outputs(target) for target in self.targets]
        kernels, biases = [], []
        for target, size in zip(self.targets, sizes, strict=True):
            kernels.append(self.param(f"{target.name}_kernel", self.init, (x.shape[1], size)))
            zeros = nn.initializers.zeros_init()
            biases.append(self.param(f"{target.name}_bias", zeros, (size,)))
        together = x @ jnp.concatenate(kernels, axis=1) + jnp.concatenate(biases)[None, :]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        parts = jnp.split(together, ends, axis=1)
        return {target.name: part for target, part in zip(self.targets, parts, strict=True)}


class Linear(nn.Module):
    """Logistic regression on single rows (numbers: linear regression)."""

    targets: tuple[Target, ...]

    @nn.compact
    def __call__(self, x: jax.Array, protein: jax.Array, slots: int, train: bool) -> Answers:
        return Readout(self.targets, nn.initializers.zeros_init(), name="readout")(x)


@dataclass(frozen=True)
class Kind:
    """A kind of head and how it is trained unless told otherwise.

    Attributes:
        module: targets -> the network; called with x [T, D] (0 where there is no protein),
            protein [T], slots P and train (dropout, statistics of the batch).
        pools: whether it reads a protein's rows and answers for slots, not for rows.
        seeded: whether it has random parts; if not, one seed stands for all.
        whitened: whether the features' covariance shapes its steps (linear heads only).
        penalty: L2, half of which times the squared kernels is added to the loss.
        learning_rate: of Adam.
        max_epochs: passes over the training proteins at most.
        patience: passes without a better validation score after which a head stops.
    """

    module: Callable[[tuple[Target, ...]], Any]
    pools: bool
    seeded: bool
    whitened: bool
    penalty: float
    learning_rate: float
    max_epochs: int
    patience: int


KINDS = {
    "linear": Kind(
        Linear,
        pools=False,
        seeded=False,
        whitened=True,
        penalty=1e-4,
        learning_rate=3e-3,
        max_epochs=20,
        patience=3,
    ),
}
NAMES = tuple(KINDS)


def kind(name: str) -> Kind:
    """The kind of this name.

    Raises:
        ProtlmError: when there is none.
    """
    if name not in KINDS:
        raise ProtlmError(f"no probe head {name!r}; there is {', '.join(KINDS)}")
    return KINDS[name]
