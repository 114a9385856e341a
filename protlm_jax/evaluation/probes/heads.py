"""Heads: small networks that read frozen features.

A head is written for one input: features [T, D] and `protein` [T], see `FeatureBatch`. `training`
makes one program of all its seeds and inputs.

Letters: T rows, D features, P protein slots, C classes of a target (1 for a number).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import Target

CHANNELS = 32
DROPOUT = 0.25

Answers = dict[str, jax.Array]
"""Target -> logits [T or P, C], or standardised numbers [T or P, 1]."""

_TAKEN = ("shared", "Dropout_0")  # modules of `Cnn` beside its targets


def key(name: str) -> str:
    """The name of a target among parameters, whose names slashes join: percent-encoded.

    Raises:
        ProtlmError: the name is empty.
    """
    if not name:
        raise ProtlmError("a column of labels has no name: write one into the table's header")
    quoted = quote(name, safe="")
    return f"%{ord(quoted[0]):02X}{quoted[1:]}" if quoted in _TAKEN else quoted


def outputs(target: Target) -> int:
    return len(target.classes) if target.kind == "classes" else 1


def by_part(targets: tuple[Target, ...], value: Callable[[Target, str], Any]) -> dict[str, Any]:
    """A tree like the parameters of `LinearReadout`: q3_kernel, q3_bias."""
    return {f"{key(t.name)}_{part}": value(t, part) for t in targets for part in ("kernel", "bias")}


class LinearReadout(nn.Module):
    """x [rows, D] -> {target: [rows, C]}: one matrix for each target, in one product."""

    targets: tuple[Target, ...]
    init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> Answers:
        sizes = [outputs(target) for target in self.targets]
        kernels, biases = [], []
        for target, size in zip(self.targets, sizes, strict=True):
            kernels.append(self.param(f"{key(target.name)}_kernel", self.init, (x.shape[1], size)))
            zeros = nn.initializers.zeros_init()
            biases.append(self.param(f"{key(target.name)}_bias", zeros, (size,)))
        together = x @ jnp.concatenate(kernels, axis=1) + jnp.concatenate(biases)[None, :]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        parts = jnp.split(together, ends, axis=1)
        return {target.name: part for target, part in zip(self.targets, parts, strict=True)}


class Linear(nn.Module):
    """Logistic regression on single rows (numbers: linear regression)."""

    targets: tuple[Target, ...]

    @nn.compact
    def __call__(self, x: jax.Array, protein: jax.Array, slots: int, train: bool) -> Answers:
        return LinearReadout(self.targets, nn.initializers.zeros_init(), name="readout")(x)


class Convolution(nn.Module):
    """x [T, D] -> [T, channels], each row from its neighbours in its own protein, zeros beyond.

    One matrix product for all places of the kernel, then shifted sums: D is much larger than the
    number of channels.
    """

    channels: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array, protein: jax.Array) -> jax.Array:
        shape = (x.shape[1], self.width, self.channels)
        init = nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,))
        reach = self.width // 2
        products = (x @ kernel.reshape(x.shape[1], -1)).reshape(len(x), self.width, -1)
        products = jnp.pad(products, ((reach, reach), (0, 0), (0, 0)))
        owner = jnp.pad(protein, (reach, reach), constant_values=-1)
        total = jnp.broadcast_to(bias[None, :], (len(x), self.channels))
        for place in range(self.width):
            at = slice(place, place + len(x))
            same = (owner[at] == protein)[:, None]
            total += jnp.where(same, products[at, place], 0.0)
        return total


class Cnn(nn.Module):
    """The ProtTrans paper's head for residues (Elnaggar 2021, doi:10.1109/TPAMI.2021.3095381).

    A convolution of width 7 to 32 channels, ReLU, dropout 0.25, then one of width 7 for each target
    side by side.
    """

    targets: tuple[Target, ...]

    @nn.compact
    def __call__(self, x: jax.Array, protein: jax.Array, slots: int, train: bool) -> Answers:
        hidden = nn.relu(Convolution(CHANNELS, 7, name="shared")(x, protein))
        hidden = nn.Dropout(DROPOUT)(hidden, deterministic=not train)
        return {
            target.name: Convolution(outputs(target), 7, name=key(target.name))(hidden, protein)
            for target in self.targets
        }


class Squeeze(nn.Module):
    """x [rows, D] -> {target: [rows, C]}: to 32, dropout 0.25, ReLU, BatchNorm, outputs.

    Statistics are of real rows alone; running ones move by a tenth, as in PyTorch.
    """

    targets: tuple[Target, ...]

    @nn.compact
    def __call__(self, x: jax.Array, there: jax.Array, train: bool) -> Answers:
        hidden = nn.Dense(CHANNELS, name="hidden")(x)
        hidden = nn.relu(nn.Dropout(DROPOUT)(hidden, deterministic=not train))
        norm = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name="norm")
        return LinearReadout(self.targets, name="readout")(norm(hidden, mask=there[:, None]))


class Fnn(nn.Module):
    """The ProtTrans paper's head for proteins, on features pooled over residues."""

    targets: tuple[Target, ...]

    @nn.compact
    def __call__(self, x: jax.Array, protein: jax.Array, slots: int, train: bool) -> Answers:
        return Squeeze(self.targets, name="squeeze")(x, protein >= 0, train)


class LightAttention(nn.Module):
    """Light Attention (Stärk et al. 2021, doi:10.1093/bioadv/vbab035): residues to proteins.

    Two convolutions of width 9 that keep the number of features: values, with dropout 0.25, and
    attention, a softmax over the residues of a protein in each channel. The weighted sum and the
    maximum of the values go through the paper's perceptron, whose middle is that of the FNN.
    """

    targets: tuple[Target, ...]

    @nn.compact
    def __call__(self, x: jax.Array, protein: jax.Array, slots: int, train: bool) -> Answers:
        values = Convolution(x.shape[1], 9, name="values")(x, protein)
        values = nn.Dropout(DROPOUT)(values, deterministic=not train)
        attention = Convolution(x.shape[1], 9, name="attention")(x, protein)
        owner = jnp.where(protein >= 0, protein, slots)  # rows of no protein: one slot more

        def pool(reduce: Callable[..., jax.Array], rows: jax.Array) -> jax.Array:
            return reduce(rows, owner, slots + 1)

        top = jax.lax.stop_gradient(pool(jax.ops.segment_max, attention))
        weights = jnp.exp(attention - top[owner])
        total = pool(jax.ops.segment_sum, weights * values)[:slots]
        mean = total / jnp.maximum(pool(jax.ops.segment_sum, weights)[:slots], 1e-30)
        there = pool(jax.ops.segment_sum, jnp.ones_like(owner))[:slots] > 0
        highest = jnp.where(there[:, None], pool(jax.ops.segment_max, values)[:slots], 0.0)
        pooled = jnp.concatenate([mean, highest], axis=1)
        return Squeeze(self.targets, name="squeeze")(pooled, there, train)


@dataclass(frozen=True)
class Kind:
    """A kind of head and the defaults of its training.

    Attributes:
        module: targets -> the network; called with x [T, D] (0 where there is no protein),
            protein [T], slots P and train (dropout, statistics of the batch).
        learning_rate, max_epochs: of Adam; unused by linear heads, as `patience`.
        patience: epochs without a lower validation loss after which a head stops; docs/probes.md
            has the measurements.
        pools: whether it reads a protein's rows and answers for slots, not for rows.
        linear: whether its loss is convex: `linear` finds its one optimum, whatever the seed.
    """

    module: Callable[[tuple[Target, ...]], Any]
    learning_rate: float = 0.0
    max_epochs: int = 0
    patience: int = 0
    pools: bool = False
    linear: bool = False


KINDS = {
    "linear": Kind(Linear, linear=True),
    "cnn": Kind(Cnn, 1e-3, 20, 3),
    "fnn": Kind(Fnn, 1e-3, 100, 10),
    "light_attention": Kind(LightAttention, 1e-4, 50, 8, pools=True),
}
NAMES = tuple(KINDS)


def kind(name: str) -> Kind:
    """The kind of this name; ProtlmError if there is none."""
    if name not in KINDS:
        raise ProtlmError(f"no probe head {name!r}; there is {', '.join(KINDS)}")
    return KINDS[name]
