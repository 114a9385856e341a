"""Controls are what they say; standardisation comes from training residues alone."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import pytest

from protlm_jax.evaluation import datasets
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.probes import inputs
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS

SmallModel = Callable[..., LoadedModel]


def structured(sequence: str, q3: list[int]) -> datasets.StructuredProtein:
    labels = np.array(q3, np.int8)
    return datasets.StructuredProtein("p", sequence, labels, labels)


def test_blosum62_is_the_published_matrix() -> None:
    matrix = pytest.importorskip("Bio.Align").substitution_matrices.load("BLOSUM62")
    expected = [[matrix[a][b] for b in AMINO_ACIDS] for a in AMINO_ACIDS + "X"]
    np.testing.assert_array_equal(inputs.BLOSUM62, expected)


def test_fixed_encodings(small_model: SmallModel) -> None:
    proteins = inputs.Proteins([structured("AX", [0, 1]), structured("Y", [2])])
    arguments = (small_model("bert"), proteins)
    one_hot = inputs.features("one_hot", *arguments, window=None, progress=False)
    assert one_hot.argmax(axis=1).tolist() == [0, 20, 19] and one_hot.sum() == 3
    blosum = inputs.features("blosum62", *arguments, window=None, progress=False)
    np.testing.assert_array_equal(blosum, inputs.BLOSUM62[[0, 20, 19]])


def test_embeddings_lie_end_to_end(small_model: SmallModel) -> None:
    loaded = small_model("bert")
    # The same name twice must not lose a protein.
    proteins = inputs.Proteins([structured("MKLV", [0] * 4), structured("GH", [1] * 2)])
    out = inputs.features("model", loaded, proteins, window=None, progress=False)
    expected = np.concatenate(
        [array for _, array in embed_sequences(loaded, {"a": "MKLV", "b": "GH"})]
    )
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert proteins.per_protein(np.ones(6)).tolist() == [4, 2]


def test_random_control_shares_the_shape_and_nothing_else(small_model: SmallModel) -> None:
    loaded = small_model("bert")
    control = inputs.random_control(loaded, seed=99)
    assert control.model is loaded.model
    assert jax.tree.map(np.shape, control.params) == jax.tree.map(np.shape, loaded.params)
    assert not np.allclose(control.params["embedder"]["token"], loaded.params["embedder"]["token"])


def test_standardiser_uses_training_statistics_and_clips() -> None:
    generator = np.random.default_rng(0)
    training = generator.normal(3.0, 2.0, size=(5000, 3)).astype(np.float32)
    training[:, 2] = 7.0
    standard = inputs.Standardiser.fit(training)
    done = standard.apply(training.copy())
    np.testing.assert_allclose(done.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(done.std(axis=0), [1.0, 1.0, 0.0], atol=1e-2)
    test = standard.apply(np.array([[5.0, 1e6, 8.0]], np.float32))
    np.testing.assert_allclose(test, [[1.0, 10.0, 0.0]], atol=0.05)
