"""The CNN head: torch's convolutions, no leak between proteins, and a signal it must find."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from protlm_jax.evaluation.datasets import StructuredProtein
from protlm_jax.evaluation.probes import cnn
from protlm_jax.evaluation.probes.inputs import Proteins


def proteins(lengths: list[int], seed: int = 0) -> tuple[Proteins, np.ndarray]:
    """Proteins whose class depends on the neighbour three residues on, and their features."""
    generator = np.random.default_rng(seed)
    members, rows = [], []
    for length in lengths:
        x = generator.normal(size=(length, 6)).astype(np.float32)
        ahead = np.concatenate([x[3:, 0], np.zeros(min(3, length), np.float32)])[:length]
        q3 = np.digitize(ahead, [-0.4, 0.4]).astype(np.int8)
        q3[generator.random(length) < 0.1] = -1
        members.append(StructuredProtein("p", "A" * length, q3, np.where(q3 < 0, -1, q3 + 2)))
        rows.append(x)
    return Proteins(members), np.concatenate(rows)


@functools.cache
def init(seed: int) -> Any:
    x = jnp.zeros((7, 6))
    return jax.jit(cnn.Head().init)(jax.random.key(seed), x, jnp.ones(7, bool))["params"]


@jax.jit
def logits(params: Any, x: jax.Array, inside: jax.Array) -> tuple[jax.Array, jax.Array]:
    return cnn.Head().apply({"params": params}, x, inside)


def test_equals_torch_convolutions() -> None:
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    params = init(0)
    ours = logits(params, x, np.ones(40, bool))

    def convolve(name: str, inputs: torch.Tensor) -> torch.Tensor:
        kernel = torch.tensor(np.asarray(params[name]["kernel"])).permute(2, 0, 1)
        bias = torch.tensor(np.asarray(params[name]["bias"]))
        return torch.nn.functional.conv1d(inputs, kernel, bias, padding=3)

    hidden = torch.relu(convolve("shared", torch.tensor(x).T[None]))
    for name, answer in zip(("q3", "q8"), ours, strict=True):
        expected = convolve(name, hidden)[0].T.numpy()
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_a_protein_among_others_gets_its_own_logits() -> None:
    group, x = proteins([30, 9, 30, 1, 9])
    params = init(1)
    params = jax.tree.map(lambda p: p + 0.1, params)  # biases that would leak through gaps
    index = next(cnn.packed(group.offsets, np.array([2, 0, 4, 3, 1]), tokens=160))
    together = logits(params, x[index], index >= 0)[0]
    for start, stop in itertools.pairwise(group.offsets):
        alone = logits(params, x[start:stop], np.ones(stop - start, bool))[0]
        where = np.flatnonzero((index >= start) & (index < stop))
        np.testing.assert_allclose(np.asarray(together)[where], alone, atol=1e-5)


def test_packing_holds_every_residue_once_with_gaps() -> None:
    group, _ = proteins([30, 9, 50, 100, 22, 7])
    batches = list(cnn.packed(group.offsets, np.array([3, 1, 0, 2, 5, 4]), tokens=64))
    assert {len(b) for b in batches} == {100}  # the longest protein decides
    inside = np.concatenate([b[b >= 0] for b in batches])
    assert sorted(inside) == list(range(group.offsets[-1]))
    owner = np.searchsorted(group.offsets, np.arange(group.offsets[-1]), side="right")
    for batch in batches:
        for left, right in itertools.pairwise(batch):
            assert left < 0 or right < 0 or owner[left] == owner[right]


def test_learns_from_neighbours_and_keeps_the_best_epoch() -> None:
    train, x = proteins([60] * 80)
    valid, valid_x = proteins([60] * 10, seed=1)
    probe = cnn.fit(x, train, valid_x, valid, seed=0, max_epochs=60)
    answer, _ = probe.predict(valid_x, valid)
    right = np.mean((answer == valid.q3)[valid.q3 >= 0])
    assert right > 0.6  # chance is 0.34; without neighbours no head gets above it
    assert right == probe.valid_q3 and 1 <= probe.best_epoch <= probe.epochs
    again = cnn.fit(x, train, valid_x, valid, seed=0, max_epochs=60)
    assert again.valid_q3 == probe.valid_q3
