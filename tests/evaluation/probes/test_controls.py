"""Controls are what they say."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import pytest

from protlm_jax.evaluation.probe_data import LabelledProtein
from protlm_jax.evaluation.probes import controls
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS

SmallModel = Callable[..., LoadedModel]


def test_blosum62_is_the_published_matrix() -> None:
    matrix = pytest.importorskip("Bio.Align").substitution_matrices.load("BLOSUM62")
    expected = [[matrix[a][b] for b in AMINO_ACIDS] for a in AMINO_ACIDS + "X"]
    np.testing.assert_array_equal(controls.BLOSUM62, expected)


def test_rows_are_those_of_the_letters() -> None:
    one_hot = controls.rows_of("AXY", controls.TABLES["one_hot"])
    assert one_hot.argmax(axis=1).tolist() == [0, 20, 19] and one_hot.sum() == 3
    blosum = controls.rows_of("AXY", controls.BLOSUM62)
    np.testing.assert_array_equal(blosum, controls.BLOSUM62[[0, 20, 19]])


def test_random_control_shares_the_shape_and_nothing_else(small_model: SmallModel) -> None:
    loaded = small_model("bert")
    control = controls.random_control(loaded, seed=99)
    assert control.model is loaded.model
    assert jax.tree.map(np.shape, control.params) == jax.tree.map(np.shape, loaded.params)
    assert not np.allclose(control.params["embedder"]["token"], loaded.params["embedder"]["token"])


def test_the_majority_counts_known_labels_alone() -> None:
    proteins = [
        LabelledProtein("a", "AAAAA", {"q": np.array([-1, -1, -1, 2, 1], np.int8)}),
        LabelledProtein("b", "AA", {"q": np.array([2, 0], np.int8)}),
    ]
    assert controls.majority(proteins, "q") == 2
    assert controls.majority([LabelledProtein("c", "A", {"q": np.array(1)})], "q") == 1
