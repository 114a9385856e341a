"""Heads against torch, and that nothing beside a protein changes what is said of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import Target
from protlm_jax.evaluation.probes import heads

TARGETS = (Target("q3", "classes", ("H", "E", "C")), Target("depth", "number"))
WIDTH = 6
LENGTHS = (9, 1, 12, 3)
OWNER = np.repeat(np.arange(len(LENGTHS)), LENGTHS).astype(np.int32)


def rows(seed: int, count: int = len(OWNER)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def variables(name: str) -> tuple[Any, Any]:
    """A head, and parameters none of which is zero."""
    module = heads.kind(name).module(TARGETS)
    tree = module.init(jax.random.key(0), rows(0), OWNER, len(LENGTHS), False)
    flat, shape = jax.tree.flatten(tree)
    generator = np.random.default_rng(1)
    noisy = [p + 0.2 * generator.random(p.shape, np.float32) for p in flat]
    return module, jax.tree.unflatten(shape, noisy)


def tensor(array: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(array))


def convolve(params: Any, x: torch.Tensor) -> torch.Tensor:
    """[T, D] -> [T, channels] by torch."""
    kernel, bias = tensor(params["kernel"]).permute(2, 0, 1), tensor(params["bias"])
    padding = kernel.shape[2] // 2
    return torch.nn.functional.conv1d(x.T[None], kernel, bias, padding=padding)[0].T


def squeeze(tree: Any, x: torch.Tensor, train: bool) -> tuple[dict[str, torch.Tensor], Any]:
    """The FNN by torch, and its BatchNorm after."""
    params, running = tree["params"]["squeeze"], tree["batch_stats"]["squeeze"]["norm"]
    norm = torch.nn.BatchNorm1d(heads.CHANNELS)
    norm.weight.data = tensor(params["norm"]["scale"])
    norm.bias.data = tensor(params["norm"]["bias"])
    norm.running_mean, norm.running_var = tensor(running["mean"]), tensor(running["var"])
    hidden = torch.relu(x @ tensor(params["hidden"]["kernel"]) + tensor(params["hidden"]["bias"]))
    normed = norm.train(train)(hidden)
    readout = params["readout"]
    return {
        t.name: normed @ tensor(readout[f"{t.name}_kernel"]) + tensor(readout[f"{t.name}_bias"])
        for t in TARGETS
    }, norm


def check(found: Any, expected: dict[str, torch.Tensor], at: Any = slice(None)) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(found[name][at], values.detach().numpy(), atol=2e-5)


def test_cnn_is_the_papers_on_each_protein() -> None:
    module, tree = variables("cnn")
    x = rows(2)
    found = module.apply(tree, x, OWNER, 4, False)
    for protein in range(len(LENGTHS)):
        at = protein == OWNER
        hidden = torch.relu(convolve(tree["params"]["shared"], tensor(x[at])))
        check(found, {t.name: convolve(tree["params"][t.name], hidden) for t in TARGETS}, at)
    assert tree["params"]["shared"]["kernel"].shape == (WIDTH, 7, 32)


def test_fnn_is_the_papers_and_counts_real_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "DROPOUT", 0.0)
    module, tree = variables("fnn")
    x = rows(3, 12)
    there = np.where(np.arange(12) < 9, np.arange(12), -1).astype(np.int32)
    check(module.apply(tree, x, there, 12, False), squeeze(tree, tensor(x), False)[0])
    found, changed = module.apply(tree, x, there, 12, True, mutable="batch_stats")
    expected, norm = squeeze(tree, tensor(x[:9]), True)
    check(found, expected, slice(9))
    after = changed["batch_stats"]["squeeze"]["norm"]
    np.testing.assert_allclose(after["mean"], norm.running_mean, atol=1e-5)
    # torch keeps the unbiased variance of 9 rows, we the one that it divided by
    before = tree["batch_stats"]["squeeze"]["norm"]["var"]
    biased = 0.9 * before + (norm.running_var.numpy() - 0.9 * before) * 8 / 9
    np.testing.assert_allclose(after["var"], biased, atol=1e-5)


def test_light_attention_is_the_papers_on_each_protein() -> None:
    module, tree = variables("light_attention")
    x = rows(4)
    found = module.apply(tree, x, OWNER, len(LENGTHS) + 2, False)
    pooled = []
    for protein in range(len(LENGTHS)):
        own = tensor(x[protein == OWNER])
        values = convolve(tree["params"]["values"], own)
        weights = torch.softmax(convolve(tree["params"]["attention"], own), dim=0)
        pooled.append(torch.cat([(weights * values).sum(0), values.max(0).values]))
    check(found, squeeze(tree, torch.stack(pooled), False)[0], slice(len(LENGTHS)))
    assert all(np.isfinite(values).all() for values in found.values())  # of empty slots, too


@pytest.mark.parametrize("name", heads.NAMES)
@pytest.mark.parametrize("train", [False, True])
def test_what_lies_beside_a_protein_changes_nothing(
    name: str, train: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "DROPOUT", 0.0)
    module, tree = variables(name)
    place = np.concatenate([np.arange(10), np.arange(12, 27)])  # a gap, and padding at the end
    owner = np.full(30, -1, np.int32)
    owner[place] = OWNER
    x = np.zeros((30, WIDTH), np.float32)
    x[place] = rows(5)
    noise = np.where(owner[:, None] < 0, 1e3, 0.0).astype(np.float32)

    def answers(x: np.ndarray, owner: np.ndarray) -> Any:
        return module.apply(tree, x, owner, 5, train, mutable=["batch_stats"])

    (first, before), (second, after) = answers(x, owner), answers(x + noise, owner)
    real = np.arange(5) < 4 if heads.kind(name).pools else owner >= 0
    for target in TARGETS:
        np.testing.assert_array_equal(first[target.name][real], second[target.name][real])
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_readout_of_several_targets_is_one_for_each() -> None:
    module, tree = variables("linear")
    x = rows(6)
    together = module.apply(tree, x, OWNER, 4, False)
    for target in TARGETS:
        alone = heads.Linear((target,)).apply(tree, x, OWNER, 4, False)
        np.testing.assert_allclose(together[target.name], alone[target.name], atol=1e-6)
    assert jnp.shape(together["q3"]) == (25, 3) and jnp.shape(together["depth"]) == (25, 1)


def test_unknown_head_is_an_error() -> None:
    with pytest.raises(ProtlmError, match="no probe head 'mlp'; there is linear, cnn"):
        heads.kind("mlp")
