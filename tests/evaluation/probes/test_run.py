"""A whole probe: what it runs, what it counts, and that it finds what is there and no more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from probe_benchmarks import benchmark
from zoo import loaded

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.embedder import Embedder
from protlm_jax.evaluation.probes import table, training
from protlm_jax.evaluation.probes.run import Probed, run


@pytest.fixture(scope="module")
def forwards() -> Iterator[list[str]]:
    """All sequences that go through a model, as often as they do."""
    seen: list[str] = []
    plain = Embedder.embed

    def counted(self: Embedder, sequences: Sequence[str], done: Any = ()) -> Iterator[Any]:
        seen.extend(sequences)
        yield from plain(self, sequences, done)

    Embedder.embed = counted  # type: ignore[method-assign]
    yield seen
    Embedder.embed = plain  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def of_residues(forwards: list[str]) -> Probed:
    forwards.clear()
    return run(loaded("bert"), benchmark("residue"), heads=["linear"], layers="all", seeds=2)


@pytest.fixture(scope="module")
def of_proteins() -> Probed:
    return run(loaded("bert"), benchmark("protein"), seeds=2, views=["test"], train_proteins=55)


def accuracy(result: dict[str, Any], head: str, kind: str, view: str = "test") -> float:
    return result["heads"][head]["inputs"][kind]["tests"][view]["where"]["pooled"]["value"]


def test_each_protein_goes_through_each_model_once(
    of_residues: Probed, forwards: list[str]
) -> None:
    proteins = [p for read in benchmark("residue").splits.values() for p in read()]
    assert sorted(forwards) == sorted(2 * [p.sequence for p in proteins])  # the model, its control
    passes = of_residues.result["cost"]["forward_passes"]
    splits = ("train", "valid", "test", "other")
    assert passes == dict.fromkeys(("model", "random"), dict.fromkeys(splits, 1.0))


def test_what_is_there_is_found_and_held_against_controls(of_residues: Probed) -> None:
    result = of_residues.result
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    inputs = result["heads"]["linear"]["inputs"]
    assert list(inputs) == ["model", "random", "one_hot", "blosum62", "majority"]
    assert accuracy(result, "linear", "one_hot") > 0.99
    majority = accuracy(result, "linear", "majority")
    truth = np.concatenate([p.labels["where"] for p in benchmark("residue").splits["test"]()])
    assert majority == pytest.approx(np.mean(truth[truth >= 0] == 1))
    model = accuracy(result, "linear", "model")
    assert model > majority
    lead = result["heads"]["linear"]["model_minus"]["majority"]["test"]["where"]
    assert lead["value"] == pytest.approx(model - majority) and lead["standard_error"] > 0
    test = inputs["model"]["tests"]["test"]["where"]
    assert test["n"] == (truth >= 0).sum() == np.sum(test["confusion"])
    assert inputs["model"]["tests"]["marked"]["where"]["n"] < test["n"]


def test_validation_chooses_the_layer(of_residues: Probed) -> None:
    model = of_residues.result["heads"]["linear"]["inputs"]["model"]
    assert model["layers"] == [0, 1, 2]
    best = model["best_layer"]
    assert best["index"] == np.argmax(np.mean(model["valid"]["where"], axis=1))
    for view, found in model["by_layer"].items():
        assert len(found["where"]) == 3
        assert found["where"][best["index"]] == model["tests"][view]["where"]["pooled"]
    assert of_residues.heads["linear"].valid["where"].shape[1] == 1  # that layer alone is kept


def test_features_beyond_the_budget_give_the_same_numbers(
    forwards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few proteins are read several times in an epoch; so many that they do not fit are not few.
    monkeypatch.setattr(training, "STEPS", 1)
    made = []
    for budget in (1 << 30, 200_000):
        forwards.clear()
        options: dict[str, Any] = {"heads": ["linear"], "layers": "all", "controls": []}
        made.append(run(loaded("bert"), benchmark("residue"), budget=budget, **options).result)
    kept, streamed = (result["heads"]["linear"]["inputs"]["model"] for result in made)
    assert streamed["best_layer"] == kept["best_layer"]
    np.testing.assert_allclose(streamed["valid"]["where"], kept["valid"]["where"], atol=0.01)
    found = [of["tests"]["test"]["where"]["pooled"]["value"] for of in (streamed, kept)]
    assert found[0] == pytest.approx(found[1], abs=0.01)
    passes = made[1]["cost"]["forward_passes"]["model"]
    epochs = int(np.max(streamed["training"]["epochs"]))
    # One for each epoch, and one for what is measured before.
    assert 1 < passes["train"] <= epochs + 1 and passes["valid"] == 1  # which is kept first
    assert passes["test"] == passes["other"] == 1
    trained = [p.sequence for p in benchmark("residue").splits["train"]()]
    assert max(map(forwards.count, trained)) <= epochs + 1


def test_shuffled_labels_score_at_chance() -> None:
    result = run(
        *(loaded("bert"), benchmark("residue", shuffled=True)), heads=["linear"], seeds=1,
        controls=["one_hot", "majority"],
    ).result  # fmt: skip
    for kind in ("model", "one_hot"):
        found = result["heads"]["linear"]["inputs"][kind]["tests"]["test"]["where"]
        majority = accuracy(result, "linear", "majority")
        assert found["pooled"]["value"] < majority + 3 * found["pooled"]["standard_error"]
        assert abs(found["mcc"]["value"]) < 0.1


def test_proteins_are_read_pooled(of_proteins: Probed) -> None:
    result = of_proteins.result
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for head in ("linear", "fnn"):
        inputs = result["heads"][head]["inputs"]
        assert list(inputs) == ["model", "random", "composition", "blosum62", "majority"]
    assert accuracy(result, "linear", "composition") > 0.9
    linear = result["heads"]["linear"]["inputs"]
    shares = linear["composition"]["tests"]["test"]["share"]
    assert shares["pooled"]["value"] > 0.95 and shares["mae"]["value"] < 0.03
    assert "share" not in linear["majority"]["tests"]["test"]
    assert linear["model"]["tests"]["test"]["where"]["proteins"] == 40


def test_the_table_says_what_is_in_the_result(of_residues: Probed, of_proteins: Probed) -> None:
    text = table.summary(of_residues.result)
    value = 100 * accuracy(of_residues.result, "linear", "model")
    for expected in (f"{value:.1f} ±", "60 proteins", "Not the same proteins.", "Licence: none"):
        assert expected in text, expected
    text = table.summary(of_proteins.result)
    assert "train: 55 of 60 proteins" in text and "learned from all training proteins" in text
    rows = table.scores_csv(of_proteins.result).splitlines()
    assert rows[0].startswith("head,input,layer,chosen,target,view,metric,value")
    assert len({row.count(",") for row in rows if '"' not in row}) == 1
    assert any(row.startswith("fnn,model minus random,,True,share,test,spearman") for row in rows)


def test_what_is_not_there_is_named() -> None:
    for options, message in (
        ({"heads": ["mlp"]}, "no head 'mlp'.*linear, cnn"),
        ({"heads": ["fnn"]}, "no head 'fnn'"),
        ({"views": ["cb531"]}, "no view 'cb531'.*test, marked, other"),
        ({"controls": ["composition"]}, "no control 'composition'.*one_hot"),
        ({"layers": [7]}, "no layer 7"),
    ):
        with pytest.raises(ProtlmError, match=message):
            run(loaded("bert"), benchmark("residue"), **options)  # type: ignore[arg-type]
