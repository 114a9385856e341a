"""Where a model that gives NaN or infinity is broken."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from zoo import KINDS, ZOO, loaded

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import contacts, detection, finite, heldout, noise
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.finite import NotFinite, first_not_finite
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein, Target
from protlm_jax.evaluation.probe_data.base import View
from protlm_jax.evaluation.probes import run
from protlm_jax.evaluation.probes.controls import TableReader
from protlm_jax.evaluation.probes.features import FeatureSource, Store
from protlm_jax.models import LoadedModel

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"
WEIGHT = ("encoder", "mlp", "wo", "kernel")


def with_weight(model: LoadedModel, path: tuple[str, ...], layer: int, value: float) -> LoadedModel:
    """The model with one number of one layer's parameter set."""
    params = jax.tree.map(np.array, model.params)
    leaf = params
    for name in path:
        leaf = leaf[name]
    leaf[layer].flat[0] = value
    return dataclasses.replace(model, params=params)


@pytest.mark.parametrize("family", [*KINDS, "albert"])
def test_names_the_parameter_and_its_block(family: str) -> None:
    broken = with_weight(loaded(family), WEIGHT, -1, np.nan)
    block = "block 0" if family == "albert" else "block 1"  # ALBERT's layers share one
    assert first_not_finite(broken, SEQUENCE) == (
        f"the parameter encoder/mlp/wo/kernel holds 1 number that is not finite ({block})"
    )


@pytest.mark.parametrize("family", [*KINDS, "xlnet"])
def test_names_the_stream_that_overflows(family: str) -> None:
    config = ZOO[family].config.replace(dtype="float16")
    half = dataclasses.replace(loaded(family), model=models.build(config))
    assert first_not_finite(half, SEQUENCE) == ""
    large = with_weight(half, WEIGHT, 1, 1e30)  # finite, and beyond float16
    assert first_not_finite(large, SEQUENCE) == "the stream after block 1 of the encoder"
    assert "compute in fp32" in finite.reason(large, SEQUENCE)


def test_names_the_logits_when_no_stream_is_at_fault() -> None:
    model = loaded("bert")
    params = jax.tree.map(np.array, model.params)
    params["head"]["dense"]["kernel"][:] = 3e38
    broken = dataclasses.replace(model, params=params)
    assert first_not_finite(broken, SEQUENCE) == "the logits"
    said = finite.reason(broken, SEQUENCE)
    assert "exceed the range of float32" in said
    assert "compute in fp32" not in said


def test_reads_every_window_of_a_long_protein() -> None:
    """The position table holds 62 residues; the last window alone reads the residue at fault."""
    model = loaded("electra")  # its head is not tied to the table
    params = jax.tree.map(np.array, model.params)
    config = model.config.replace(dtype="float16")
    params["embedder"]["token"][model.vocabulary.encode("W", specials=False)[0]] = 1e30
    large = LoadedModel(models.build(config), params, model.vocabulary, "large")
    assert first_not_finite(large, "A" * 130) == ""
    assert first_not_finite(large, "A" * 130 + "W") == "the stream before block 0 of the encoder"


def test_a_contact_head_is_blamed_last() -> None:
    model = loaded("esm2")
    params = jax.tree.map(np.array, model.params)
    params["contact_head"]["kernel"].flat[0] = np.inf
    broken = dataclasses.replace(model, params=params)
    assert first_not_finite(broken, SEQUENCE).startswith("the parameter contact_head/kernel")


PROTEINS = {"p1": SEQUENCE, "p2": "MSILVTRPSPAGEELVSRLRTLGQVAW"}


def labelled(split: str) -> list[LabelledProtein]:
    return [
        LabelledProtein(f"{split}{i}", SEQUENCE[i:], {"t": np.array(i % 2)}, {}) for i in range(4)
    ]


BENCHMARK = Benchmark(
    name="two",
    title="Two classes",
    level="protein",
    targets=(Target("t", "classes", ("a", "b")),),
    splits={split: functools.partial(labelled, split) for split in ("train", "valid", "test")},
    views={"test": View("test", "test")},
    licence="",
    source="",
    notes=(),
)

VERBS = {
    "heldout": lambda m: heldout.evaluate(m, PROTEINS, np.full(20, 0.05), 0),
    "noise": lambda m: noise.by_noise_level(m, PROTEINS, 0, levels=2),
    "generate": lambda m: noise.generate(m, ["MK____"], steps=2),
    "depth": lambda m: analyse(m, PROTEINS, metrics=["contributions"]),
    "similarity": lambda m: analyse(m, PROTEINS, metrics=["similarity"]),
    "probe": lambda m: run.run(m, BENCHMARK, heads=["linear"], seeds=1, controls=[]),
    "contacts": lambda m: list(
        contacts.predict(m, PROTEINS, weights=contacts.Weights(np.ones((2, 2), np.float32), 0.0))
    ),
    "contact regression": lambda m: contacts.fit(
        m, [LabelledProtein("p1", SEQUENCE, {"contact": np.array([[0, 9]])}, {})]
    ),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_every_verb_names_the_record_and_the_place(verb: str, bad: float) -> None:
    broken = with_weight(loaded("bert"), WEIGHT, 0, bad)
    with pytest.raises(NotFinite, match=r"'(p[12]|template 1|train0)': .*mlp/wo/kernel .*block 0"):
        VERBS[verb](broken)


def test_detection_names_the_half_at_fault() -> None:
    model = loaded("electra")
    generator = ("generator", *WEIGHT)
    for path, half in ((WEIGHT, "of tiny-electra are"), (generator, "tiny-electra, generator are")):
        with pytest.raises(NotFinite, match=f"p[12].*mlp/wo/kernel .*{half}"):
            detection.evaluate(with_weight(model, path, 1, np.nan), PROTEINS, 0)


def test_an_infinite_label_is_named() -> None:
    proteins = [LabelledProtein("p1", SEQUENCE, {"kd": np.array(value)}) for value in (1.0, np.inf)]
    store = Store(TableReader("composition", ("mean",)), proteins, keep=1 << 20)
    with pytest.raises(ProtlmError, match="'p1': the label 'kd' is infinite"):
        FeatureSource(store, [Target("kd", "number")], "protein", "mean")
