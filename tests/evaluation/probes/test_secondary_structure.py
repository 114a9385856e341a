"""The whole probe on a small model, and that what it reports is what it measured."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import datasets, probes
from protlm_jax.evaluation.probes import secondary_structure
from protlm_jax.evaluation.probes.inputs import Proteins
from protlm_jax.models.loaded import LoadedModel

SmallModel = Callable[..., LoadedModel]


def test_runs_and_reports(small_model: SmallModel) -> None:
    result = probes.run(
        small_model("bert"), test_sets=("casp12",), train_proteins=40, valid_proteins=10
    )
    assert json.loads(json.dumps(result)) == result
    assert result["test_sets"]["casp12"]["resolved_residues"] == 6004
    for head, fewest in (("linear", 0.40), ("cnn", 0.40)):
        scores = result["heads"][head]["scores"]
        assert set(scores) == {"model", "random", "one_hot", "blosum62"}
        assert fewest < scores["one_hot"]["casp12"]["q3"]["value"] < 0.75
        minus = result["heads"][head]["model_minus"]["random"]["casp12"]["q3"]
        model, random = (scores[k]["casp12"]["q3"]["value"] for k in ("model", "random"))
        assert minus["value"] == pytest.approx(model - random, abs=1e-9)
        assert 0 < minus["standard_error"] < 0.05
    assert "q8" in result["heads"]["cnn"]["scores"]["model"]["casp12"]


def test_scores_count_resolved_residues_only() -> None:
    labels = np.array([0, -1, 2], np.int8)
    protein = datasets.StructuredProtein("p", "AAA", labels, np.full(3, -1, np.int8))
    sums = secondary_structure._sums(
        Proteins([protein, protein]), np.array([0, 0, 1, 0, -1, 2], np.int32), np.zeros(6, np.int32)
    )
    assert set(sums) == {"q3"}  # no residue has a Q8 label
    assert sums["q3"][0].tolist() == [1, 2] and sums["q3"][1].tolist() == [2, 2]


def test_unknown_head_is_an_error(small_model: SmallModel) -> None:
    with pytest.raises(ProtlmError, match="no probe head 'mlp'"):
        probes.run(small_model("bert"), heads=("mlp",))
