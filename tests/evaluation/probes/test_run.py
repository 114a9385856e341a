"""A whole probe: what it runs, what it counts, and that it finds what is there and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probe_benchmarks import benchmark
from zoo import loaded

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import results
from protlm_jax.evaluation.probes.linear import PENALTIES
from protlm_jax.evaluation.probes.results import ProbeResult, summary, table
from protlm_jax.evaluation.probes.run import Probed, run


@pytest.fixture(scope="module")
def of_residues(forwards: list[str]) -> Probed:
    forwards.clear()
    return run(loaded("bert"), benchmark("residue"), heads=["linear"], layers="all", seeds=2)


@pytest.fixture(scope="module")
def of_proteins() -> Probed:
    return run(loaded("bert"), benchmark("protein"), seeds=2, views=["test"], train_proteins=55)


def accuracy(of: Probed, head: str, kind: str, view: str = "test") -> float:
    score = ProbeResult(of.result).score(head, kind, view, "where")
    assert score is not None
    return float(score["value"])


def test_each_protein_goes_through_each_model_once(
    of_residues: Probed, forwards: list[str]
) -> None:
    proteins = [p for read in benchmark("residue").splits.values() for p in read()]
    assert sorted(forwards) == sorted(2 * [p.sequence for p in proteins])  # the model, its control
    passes = of_residues.result["passes"]
    assert passes["split"].values.tolist() == ["train", "valid", "test", "other"]
    assert (passes.sel(input=["model", "random"]) == 1).all()
    assert passes.sel(input=["one_hot", "blosum62", "majority"]).isnull().all()


def test_what_is_there_is_found_and_held_against_controls(of_residues: Probed) -> None:
    result = ProbeResult(of_residues.result)
    inputs = ["model", "random", "one_hot", "blosum62", "majority"]
    assert result.inputs("linear") == result.inputs("linear", "where") == inputs
    assert accuracy(of_residues, "linear", "one_hot") > 0.99
    majority = accuracy(of_residues, "linear", "majority")
    truth = np.concatenate([p.labels["where"] for p in benchmark("residue").splits["test"]()])
    assert majority == pytest.approx(np.mean(truth[truth >= 0] == 1))
    model = accuracy(of_residues, "linear", "model")
    assert model > majority
    lead = result.minus("linear", "majority", "test", "where")
    assert lead is not None
    assert lead["value"] == pytest.approx(model - majority) and lead["standard_error"] > 0
    confusion = result.array("confusion", head="linear", input="model", view="test", target="where")
    n = result.counts("test", "where")[0]
    assert n == (truth >= 0).sum() == confusion.sum()
    assert result.counts("marked", "where")[0] < n


def test_a_result_is_one_file(of_residues: Probed, of_proteins: Probed, tmp_path: Path) -> None:
    for probed in (of_residues, of_proteins):
        again = results.read(results.save(probed.result, tmp_path / "results.nc"))
        np.testing.assert_array_equal(again["score"], probed.result["score"])
        assert summary(again) == summary(probed.result)
        assert table(again).rows == table(probed.result).rows


def test_validation_chooses_the_layer(of_residues: Probed) -> None:
    data, result = of_residues.result, ProbeResult(of_residues.result)
    assert data["layer"].values.tolist() == [0, 1, 2]
    chosen = int(data["chosen"].sel(head="linear", input="model"))
    losses = data["valid_loss"].sel(head="linear", input="model", target="where")
    assert chosen == int(losses.mean("seed").argmin("layer")) == result.layer("linear", "model")
    assert set(data["penalty"].sel(input="model", target="where").values.ravel()) <= set(
        PENALTIES["classes"]
    )
    for view in data["view"].values.tolist():
        found = result.by_layer("linear", "model", view, "where")
        assert [layer for layer, _ in found] == [0, 1, 2]
        assert found[chosen][1] == result.score("linear", "model", view, "where")
    assert of_residues.heads["linear"].valid["where"].shape[1] == 1  # that layer alone is kept


def test_features_beyond_the_budget_give_the_same_numbers() -> None:
    options: dict[str, Any] = {"heads": ["linear"], "layers": "all", "controls": []}
    made = [run(loaded("bert"), benchmark("residue"), budget=budget, **options)
            for budget in (1 << 30, 200_000)]  # fmt: skip
    kept, streamed = (probed.result for probed in made)
    assert streamed["chosen"].equals(kept["chosen"])
    np.testing.assert_allclose(streamed["valid"], kept["valid"], atol=0.01)
    assert accuracy(made[0], "linear", "model") == pytest.approx(
        accuracy(made[1], "linear", "model"), abs=0.01
    )
    passes = streamed["passes"].sel(input="model")
    assert 1 < passes.sel(split="train") <= 2  # to measure, and to solve
    assert (passes.sel(split=["valid", "test", "other"]) == 1).all()  # validation is kept first


def test_shuffled_labels_score_at_chance() -> None:
    probed = run(
        *(loaded("bert"), benchmark("residue", shuffled=True)), heads=["linear"], seeds=1,
        controls=["one_hot", "majority"],
    )  # fmt: skip
    result = ProbeResult(probed.result)
    for kind in ("model", "one_hot"):
        found = result.score("linear", kind, "test", "where")
        mcc = result.score("linear", kind, "test", "where", "mcc")
        assert found is not None and mcc is not None
        majority = accuracy(probed, "linear", "majority")
        assert found["value"] < majority + 3 * found["standard_error"]
        assert abs(mcc["value"]) < 0.1


def test_proteins_are_read_pooled(of_proteins: Probed) -> None:
    result = ProbeResult(of_proteins.result)
    for head in ("linear", "fnn"):
        inputs = ["model", "random", "composition", "blosum62", "majority"]
        assert result.inputs(head) == inputs and result.inputs(head, "share") == inputs[:-1]
    assert accuracy(of_proteins, "linear", "composition") > 0.9
    share = result.score("linear", "composition", "test", "share")
    error = result.score("linear", "composition", "test", "share", "mae")
    assert share is not None and error is not None
    assert share["value"] > 0.95 and error["value"] < 0.03
    assert result.counts("test", "where") == (40, 40)


def test_the_table_says_what_is_in_the_result(of_residues: Probed, of_proteins: Probed) -> None:
    text = summary(of_residues.result)
    value = 100 * accuracy(of_residues, "linear", "model")
    for expected in (f"{value:.1f} ±", "60 proteins", "Not the same proteins.", "Licence: none"):
        assert expected in text, expected
    text = summary(of_proteins.result)
    assert "train: 55 of 60 proteins" in text and "learned from all training proteins" in text
    found = table(of_proteins.result)
    columns = ["head", "input", "layer", "chosen", "target", "view", "metric"]
    assert list(found.columns[:7]) == columns
    minus = ["fnn", "model minus random", None, True, "share", "test", "spearman"]
    assert any(list(row[:7]) == minus for row in found.rows)
    assert sum(row[3] for row in found.rows if row[1] == "model" and row[6] == "accuracy") == 2


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
