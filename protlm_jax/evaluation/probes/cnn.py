"""The ProtTrans paper's head: two convolutions of width 7 over frozen residue features.

d -> 32, ReLU, dropout 0.25, then 32 -> 3 (Q3) and 32 -> 8 (Q8) side by side (Elnaggar et al. 2021,
doi:10.1109/TPAMI.2021.3095381). How the paper trained it is not published; here Adam, and the epoch
that is best on validation proteins.

Proteins are laid end to end in batches of one length, with a gap as wide as the kernel reaches, and
gaps are zeroed before both convolutions: a protein gets the logits that it would get alone.

Letters: T tokens of a batch, D features, W width of the kernel, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from protlm_jax.evaluation.datasets import Q3, Q8
from protlm_jax.evaluation.probes.inputs import Proteins

WIDTH = 7
CHANNELS = 32
DROPOUT = 0.25
LEARNING_RATE = 1e-3
TOKENS = 4096
MAX_EPOCHS = 10
PATIENCE = 2


class Convolution(nn.Module):
    """[T, D] -> [T, channels], zero beyond the ends: one matrix product, then shifted sums."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        length, width = x.shape
        shape = (width, WIDTH, self.channels)
        init = nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,))
        products = jnp.einsum("TD,DWC->TWC", x, kernel)
        reach = WIDTH // 2
        products = jnp.pad(products, ((reach, reach), (0, 0), (0, 0)))
        return sum(products[w : w + length, w] for w in range(WIDTH)) + bias[None, :]


class Head(nn.Module):
    """features [T, D], inside [T] bool -> Q3 logits [T, 3], Q8 logits [T, 8]."""

    @nn.compact
    def __call__(
        self, x: jax.Array, inside: jax.Array, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        keep = inside[:, None].astype(x.dtype)
        hidden = nn.relu(Convolution(CHANNELS, name="shared")(x * keep))
        hidden = nn.Dropout(DROPOUT)(hidden, deterministic=deterministic) * keep
        return Convolution(len(Q3), name="q3")(hidden), Convolution(len(Q8), name="q8")(hidden)


@dataclass(frozen=True)
class CnnProbe:
    """A trained head.

    Attributes:
        params: of `Head`.
        epochs: passes over the training proteins until it stopped.
        best_epoch: the pass whose parameters these are, counted from 1.
        valid_q3: fraction of validation residues right after that pass.
    """

    params: Any
    epochs: int
    best_epoch: int
    valid_q3: float

    def predict(self, features: np.ndarray, proteins: Proteins) -> tuple[np.ndarray, np.ndarray]:
        """[residues] int32 Q3 and Q8 classes of standardised features [residues, features]."""
        x = jnp.asarray(features)
        q3, q8 = np.empty((2, len(features)), np.int32)
        for index in packed(proteins.offsets, np.arange(len(proteins.members))):
            inside = index >= 0
            for out, answer in zip((q3, q8), _predict(self.params, x, index), strict=True):
                out[index[inside]] = np.asarray(answer)[inside]
        return q3, q8


def packed(offsets: np.ndarray, order: np.ndarray, tokens: int = TOKENS) -> Iterator[np.ndarray]:
    """Batches [T] int32 of residue indices, -1 in gaps; proteins whole and in the given order.

    T is `tokens`, or the longest protein if that is longer: one shape for all batches.
    """
    lengths = np.diff(offsets)
    size = max(tokens, int(lengths.max()))
    index, end = np.full(size, -1, np.int32), 0
    for protein in order:
        if end + lengths[protein] > size:
            yield index
            index, end = np.full(size, -1, np.int32), 0
        index[end : end + lengths[protein]] = np.arange(offsets[protein], offsets[protein + 1])
        end += lengths[protein] + WIDTH // 2
    yield index


def fit(
    features: np.ndarray,
    train: Proteins,
    valid_features: np.ndarray,
    valid: Proteins,
    *,
    seed: int,
    max_epochs: int = MAX_EPOCHS,
    progress: bool = False,
) -> CnnProbe:
    """Trains a head; stops when validation Q3 has not improved for PATIENCE epochs.

    Args:
        features: [residues, features] float32 of `train`, standardised.
        train: proteins learned from.
        valid_features: the same of `valid`.
        valid: proteins that choose the epoch.
        seed: of initialisation, order and dropout.
        max_epochs: passes at most.
        progress: draw a progress bar on a terminal.
    """
    from tqdm import tqdm

    x, q3, q8 = jnp.asarray(features), jnp.asarray(train.q3), jnp.asarray(train.q8)
    key, init = jax.random.split(jax.random.key(seed))
    params = jax.jit(Head().init)(init, x[:WIDTH], jnp.ones(WIDTH, bool))["params"]
    state = _OPTIMIZER.init(params)
    generator = np.random.default_rng(seed)
    best = CnnProbe(params, 0, 0, -1.0)
    step = epoch = 0
    for epoch in tqdm(range(1, max_epochs + 1), "cnn", disable=None if progress else True):
        for index in packed(train.offsets, generator.permutation(len(train.members))):
            rng = jax.random.fold_in(key, step)
            params, state = _step(params, state, x, q3, q8, index, rng)
            step += 1
        answer, _ = CnnProbe(params, epoch, epoch, 0.0).predict(valid_features, valid)
        right = float(np.mean((answer == valid.q3)[valid.q3 >= 0]))
        if right > best.valid_q3:
            best = CnnProbe(params, epoch, epoch, right)
        elif epoch - best.best_epoch >= PATIENCE:
            break
    return CnnProbe(best.params, epoch, best.best_epoch, best.valid_q3)


_OPTIMIZER = optax.adam(LEARNING_RATE)


@jax.jit
def _step(
    params: Any,
    state: Any,
    x: jax.Array,
    q3: jax.Array,
    q8: jax.Array,
    index: jax.Array,
    rng: jax.Array,
) -> tuple[Any, Any]:
    """One Adam step on the mean Q3 loss plus the mean Q8 loss of a batch."""

    def loss(params: Any) -> jax.Array:
        inside = index >= 0
        logits = Head().apply(
            {"params": params}, x[index], inside, deterministic=False, rngs={"dropout": rng}
        )
        first, second = (jnp.where(inside, q[index], -1) for q in (q3, q8))
        return _cross_entropy(logits[0], first) + _cross_entropy(logits[1], second)

    updates, state = _OPTIMIZER.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over labels >= 0; 0 where a batch has none."""
    asked = labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.sum(losses * asked) / jnp.maximum(jnp.sum(asked), 1)


@jax.jit
def _predict(params: Any, x: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = Head().apply({"params": params}, x[index], index >= 0)
    return jnp.argmax(logits[0], axis=-1), jnp.argmax(logits[1], axis=-1)
