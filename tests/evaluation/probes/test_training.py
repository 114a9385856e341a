"""Training: the optimum where there is one, chance where there is nothing, and no influence of
masked rows, of gaps, or of the other heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_sources import ArraySource

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import Target
from protlm_jax.evaluation.probes import linear as linear_heads
from protlm_jax.evaluation.probes import moments, trained, training
from protlm_jax.evaluation.probes.features import FeatureBatch
from protlm_jax.evaluation.probes.saved import load_heads, save_heads
from protlm_jax.evaluation.probes.trained import TrainedHeads
from protlm_jax.evaluation.probes.training import train

Q3 = Target("q3", "classes", ("H", "E", "C"))
Q8 = Target("q8", "classes", tuple("GHIBESTC"))
WIDTH = 8


def made(seed: int, proteins: int = 60, rows: int = 1024) -> ArraySource:
    """Three inputs: noise; features that decide Q3 and Q8; the same, mixed and far from zero."""
    generator = np.random.default_rng(seed)
    offsets = np.cumsum([0, *generator.integers(20, 100, proteins)])
    x = generator.normal(size=(3, offsets[-1], WIDTH)).astype(np.float32)
    fixed = np.random.default_rng(99)
    mix = fixed.normal(size=(WIDTH, WIDTH)) * np.logspace(0, -1.5, WIDTH)[:, None]
    x[2] = 3.0 + x[1] @ mix
    labels = {}
    for target, unknown in ((Q3, 10), (Q8, 7)):
        scores = x[1] @ fixed.normal(size=(WIDTH, len(target.classes)))
        y = np.argmax(scores + generator.gumbel(size=scores.shape), axis=1).astype(np.int8)
        y[::unknown] = -1
        labels[target.name] = y
    return ArraySource(x, offsets, labels, "residue", rows)


@pytest.fixture(scope="module")
def source() -> ArraySource:
    return made(0)


@pytest.fixture(scope="module")
def valid() -> ArraySource:
    return made(1, 20)


@pytest.fixture(scope="module")
def linear(source: ArraySource, valid: ArraySource) -> TrainedHeads:
    return train("linear", (Q3, Q8), source, valid, seeds=(3, 4))


def predictions(heads: TrainedHeads, source: ArraySource) -> Iterator[dict[str, np.ndarray]]:
    """Answers for the rows of proteins, batch by batch in order."""
    for batch in source.batches(None):
        there = batch.protein >= 0
        yield {name: values[:, :, there] for name, values in heads.predict(batch).items()}


@pytest.mark.parametrize("head", ["linear", "cnn"])
def test_heads_multiply_in_float32(
    head: str, source: ArraySource, valid: ArraySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the default is TensorFloat32, on a TPU bfloat16."""
    programs: list[str] = []

    def traced(module: Any, run: Any, static: int | tuple[int, ...]) -> None:
        def call(*arguments: Any) -> Any:
            programs.append(str(jax.make_jaxpr(run, static_argnums=static)(*arguments)))
            return run(*arguments)

        monkeypatch.setattr(module, run.__name__, call)

    traced(training, training.step, (0, 1))
    traced(linear_heads, linear_heads._cross_entropy, ())
    traced(trained, trained.answer, (0, 5))
    traced(moments, moments._sums, 3)
    train(head, (Q3,), source, valid, max_epochs=1)
    assert len(programs) >= 3
    text = "".join(programs)
    products = text.count("dot_general[") + text.count("conv_general_dilated[")
    assert 0 < products == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")


def test_noise_is_at_chance_and_signal_is_not(linear: TrainedHeads, valid: ArraySource) -> None:
    answers = np.concatenate([p["q3"] for p in predictions(linear, valid)], axis=2)
    np.testing.assert_allclose(answers.sum(-1), 1.0, atol=1e-5)
    y = valid.labels["q3"]
    noise, *signals = np.mean((answers[0].argmax(-1) == y)[:, y >= 0], axis=1)
    majority = np.bincount(y[y >= 0]).max() / (y >= 0).sum()
    assert noise < majority + 0.03 and min(signals) > majority + 0.2


@dataclasses.dataclass(frozen=True)
class Spoiled:
    """A source with anything at all where there is no protein."""

    source: ArraySource

    @property
    def num_inputs(self) -> int:
        return self.source.num_inputs

    @property
    def width(self) -> int:
        return self.source.width

    @property
    def sizes(self) -> np.ndarray:
        return self.source.sizes

    def batches(self, epoch_seed: int | None) -> Iterator[FeatureBatch]:
        for batch in self.source.batches(epoch_seed):
            features = batch.features.copy()
            features[:, batch.protein < 0] = np.nan
            yield dataclasses.replace(batch, features=features)


@pytest.fixture(scope="module")
def cnn(source: ArraySource, valid: ArraySource) -> TrainedHeads:
    return train("cnn", (Q3, Q8), source, valid, seeds=(0, 1), max_epochs=3)


def test_what_is_not_a_protein_changes_nothing(
    cnn: TrainedHeads, source: ArraySource, valid: ArraySource
) -> None:
    again = train("cnn", (Q3, Q8), Spoiled(source), Spoiled(valid), seeds=(0, 1), max_epochs=3)
    jax.tree.map(np.testing.assert_array_equal, again.variables, cnn.variables)
    jax.tree.map(np.testing.assert_array_equal, dict(again.valid), dict(cnn.valid))


def test_seeds_differ(cnn: TrainedHeads) -> None:
    first, second = cnn.variables["params"]["shared"]["kernel"]
    assert not np.allclose(first, second)


def test_a_head_does_not_depend_on_its_company(
    cnn: TrainedHeads, source: ArraySource, valid: ArraySource
) -> None:
    one, two = (dataclasses.replace(s, features=s.features[1:2]) for s in (source, valid))
    alone = train("cnn", (Q3, Q8), one, two, seeds=(0,), max_epochs=3)
    ours = cnn.select(1)
    assert alone.best_epoch[0, 0] == ours.best_epoch[0, 0]
    for a, b in zip(jax.tree.leaves(alone.variables), jax.tree.leaves(ours.variables), strict=True):
        np.testing.assert_allclose(a[0, 0], b[0, 0], atol=1e-4)


def test_masks_of_targets_are_their_own(
    linear: TrainedHeads, source: ArraySource, valid: ArraySource
) -> None:
    few = np.full(source.offsets[-1], -1, np.int8)
    few[5:50] = source.labels["q8"][5:50]
    masked = dataclasses.replace(source, labels={"q3": source.labels["q3"], "q8": few})
    changed = train("linear", (Q3, Q8), Spoiled(masked), Spoiled(valid))
    for part in ("q3_kernel", "q3_bias"):
        first, second = (h.variables["params"]["readout"][part] for h in (linear, changed))
        np.testing.assert_allclose(first, second, atol=1e-3 * np.abs(first).max())
    q8 = [h.variables["params"]["readout"]["q8_kernel"] for h in (linear, changed)]
    assert not np.allclose(*q8, atol=1e-2)


def test_what_is_not_labelled_adds_nothing_to_the_loss() -> None:
    targets = (Q3, Target("depth", "number"))
    generator = np.random.default_rng(0)
    answers = {"q3": generator.normal(size=(6, 3)), "depth": generator.normal(size=(6, 1))}
    labels = {
        "q3": jnp.array([0, -1, 2, -1, 1, 1]),
        "depth": jnp.array([np.nan, 0.5, np.nan, -1.0, 2.0, np.nan]),
    }
    slope = jax.grad(lambda a: training.losses(targets, a, labels, {"q3": 4.0, "depth": 3.0}))
    for name, unknown in (("q3", [1, 3]), ("depth", [0, 2, 5])):
        found = np.asarray(slope(answers)[name])
        assert np.isfinite(found).all() and (found[unknown] == 0).all()
        assert (np.delete(found, unknown, axis=0) != 0).all()


def test_each_head_stops_at_its_lowest_validation_loss(
    source: ArraySource, valid: ArraySource
) -> None:
    curves = np.array(
        [[0.9, 0.5, 0.6, 0.6, 0.1], [0.9, 0.8, 0.8, 0.7, 0.7], [0.1, 0.3, 0.8, 0.7, 1]]
    )

    def at(epoch: int) -> tuple[dict[str, np.ndarray], Any, Any]:
        losses = {"q3": curves[None, :, epoch] + 0.05, "q8": curves[None, :, epoch] - 0.05}
        rising = {name: 1 + 0 * of_one + epoch for name, of_one in losses.items()}  # not looked at
        return {"kernel": np.full((1, 3, 2), float(epoch))}, rising, losses

    stopping = training.EarlyStopping(*at(0), patience=2)
    for epoch in range(1, 5):
        stopping.update(*at(epoch), epoch)
    # the first never sees its 0.1: it had stopped after epoch 3
    assert stopping.epochs.tolist() == [[3, 4, 3]] and stopping.best_epoch.tolist() == [[1, 3, 1]]
    assert stopping.running.tolist() == [[False, True, False]]
    np.testing.assert_array_equal(stopping.best["kernel"][0, :, 0], [1.0, 3.0, 1.0])
    np.testing.assert_allclose(stopping.losses["q3"], [[0.55, 0.75, 0.35]])
    np.testing.assert_array_equal(stopping.valid["q8"], [[2.0, 4.0, 2.0]])
    found = train("cnn", (Q3,), source, valid, max_epochs=30, patience=1, learning_rate=1e-2)
    assert (found.epochs - found.best_epoch == 1).all()
    assert len(set(found.epochs[0])) > 1  # they did not stop together


def pooled(seed: int, count: int) -> ArraySource:
    """Proteins with a number far from zero, and a membrane where it is high."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(1, count, WIDTH)).astype(np.float32)
    number = (50 + 10 * x[0, :, 0]).astype(np.float32)
    number[::5] = np.nan
    membrane = (x[0, :, 0] > 0).astype(np.int8)
    labels = {"melting": number, "membrane": membrane}
    return ArraySource(x, np.arange(count + 1), labels, "protein", rows=128)


def test_numbers_come_in_their_own_units(tmp_path: Path) -> None:
    targets = (Target("melting", "number"), Target("membrane", "classes", ("no", "yes"), "SM"))
    source, valid = pooled(0, 600), pooled(1, 100)
    found = train("fnn", targets, source, valid, max_epochs=10, learning_rate=1e-2)
    batch = next(valid.batches(None))
    answers = found.predict(batch)
    assert answers["melting"].shape == (1, 1, 100, 1)
    known = np.isfinite(batch.labels["melting"])
    error = np.abs(answers["melting"][0, 0, :, 0] - batch.labels["melting"])[known]
    assert error.mean() < 4.0 and found.valid["melting"][0, 0] > 0.9
    assert found.valid["membrane"][0, 0] > 0.85
    save_heads(found, tmp_path)
    again = load_heads(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.predict(batch), answers)
    assert again.targets == targets and again.seeds == (0,) and again.units == found.units
    np.testing.assert_array_equal(again.best_epoch, found.best_epoch)
    (tmp_path / "heads.npz").unlink()
    with pytest.raises(ProtlmError, match="cannot read trained heads"):
        load_heads(tmp_path)


def test_heads_that_do_not_fit_into_memory_are_refused(
    source: ArraySource, valid: ArraySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.memory, "device_memory", lambda: 100_000)
    with pytest.raises(ProtlmError, match="heads of 3 layers and 2 seeds need"):
        train("cnn", (Q3,), source, valid, seeds=(0, 1))


def test_what_cannot_be_learned_is_an_error(source: ArraySource, valid: ArraySource) -> None:
    unlabelled = dataclasses.replace(valid, labels={"q3": valid.labels["q3"] * 0 - 1})
    with pytest.raises(ProtlmError, match="no training label of 'q3'"):
        train("linear", (Q3,), unlabelled, valid)
    with pytest.raises(ProtlmError, match="no validation label of 'q3'"):
        train("linear", (Q3,), source, unlabelled)
    wrong = dataclasses.replace(source, features=source.features * np.float32(np.inf))
    with pytest.raises(ProtlmError, match="the features of 'p0' are not finite"):
        train("linear", (Q3,), wrong, valid)
    of_proteins = pooled(0, 50)
    residues = dataclasses.replace(of_proteins, offsets=np.arange(0, 51, 2))
    residues.labels["membrane"][25:] = -1
    wrong = dataclasses.replace(residues, labels={"membrane": residues.labels["membrane"][:25]})
    membrane = (Target("membrane", "classes", ("no", "yes")),)
    with pytest.raises(ProtlmError, match="reads single rows needs a label for each"):
        train("linear", membrane, wrong, wrong, max_epochs=1)
