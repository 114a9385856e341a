"""Scores against scikit-learn, scipy and hand-made proteins."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from protlm_jax.evaluation.probe_data import LabelledProtein, Target
from protlm_jax.evaluation.probes import scores

CLASSES = Target("q", "classes", ("A", "B", "C", "D"))
NUMBER = Target("v", "number")
SIZES = (3, 7, 12, 5, 9, 20)


@pytest.fixture(scope="module")
def proteins() -> list[LabelledProtein]:
    generator = np.random.default_rng(0)
    made = []
    for i, n in enumerate(SIZES):
        labels = {
            "q": generator.integers(-1, 3, n).astype(np.int8),  # D never occurs
            "v": np.where(generator.random(n) < 0.2, np.nan, generator.normal(size=n)),
        }
        if i == 0:
            labels["q"][:] = -1
        marks = {"some": generator.random(n) < 0.6, "whole": np.array(i % 2 == 1)}
        made.append(LabelledProtein(f"p{i}", "A" * n, labels, marks))
    return made


def flat(proteins: list[LabelledProtein], target: str) -> np.ndarray:
    return np.concatenate([p.labels[target] for p in proteins])


def labelled(
    proteins: list[LabelledProtein], target: Target, mark: str = "", level: str = "residue"
) -> scores.Labelled:
    found = scores.labelled(proteins, level, target, mark)
    assert found is not None
    return found


def test_classes_are_scored_as_by_scikit_learn(proteins: list[LabelledProtein]) -> None:
    truth = flat(proteins, "q")
    predicted = np.random.default_rng(1).integers(0, 4, (3, truth.size))
    predicted[:, ::2] = np.maximum(truth[::2], 0)
    of, known = labelled(proteins, CLASSES), truth >= 0
    assert of.proteins == 5 and len(of.truth) == known.sum()  # the first has no label
    found = scores.full(predicted, of, CLASSES, "residue", seed=0)
    pairs = [(truth[known], one[known]) for one in predicted]
    expected = [metrics.accuracy_score(*pair) for pair in pairs]
    assert found["by_seed"] == pytest.approx(expected)
    assert found["pooled"]["value"] == pytest.approx(np.mean(expected))
    with pytest.warns(UserWarning, match="not in y_true"):
        balanced = [metrics.balanced_accuracy_score(*pair) for pair in pairs]
    assert found["balanced_accuracy"]["value"] == pytest.approx(np.mean(balanced))
    mcc = [metrics.matthews_corrcoef(*pair) for pair in pairs]
    assert found["mcc"]["value"] == pytest.approx(np.mean(mcc))
    assert 0 < found["mcc"]["standard_error"] < 0.3
    matrices = [metrics.confusion_matrix(*pair, labels=range(4)) for pair in pairs]
    np.testing.assert_allclose(found["confusion"], np.mean(matrices, axis=0), atol=0.006)
    alone = []
    for stop, size in list(zip(np.cumsum(SIZES), SIZES, strict=True))[1:]:
        part = slice(stop - size, stop)
        alone.append(np.mean((predicted[:, part] == truth[part])[:, known[part]]))
    assert found["per_protein"]["value"] == pytest.approx(np.mean(alone))


def test_numbers_are_scored_as_by_scipy(proteins: list[LabelledProtein]) -> None:
    truth = flat(proteins, "v")
    noise = np.random.default_rng(2).normal(size=(2, truth.size))
    predicted = (np.nan_to_num(truth) + noise).astype(np.float32)
    of, known = labelled(proteins, NUMBER), np.isfinite(truth)
    assert len(of.truth) == known.sum() and of.proteins == 6
    found = scores.full(predicted, of, NUMBER, "residue", seed=0)
    pairs = [(one[known], truth[known]) for one in predicted]
    expected = [stats.spearmanr(*pair).statistic for pair in pairs]
    assert found["by_seed"] == pytest.approx(expected)
    assert found["pooled"]["value"] == pytest.approx(np.mean(expected))
    expected = [stats.pearsonr(*pair).statistic for pair in pairs]
    assert found["pearson"]["value"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert found["mae"]["value"] == pytest.approx(np.mean([np.abs(p - t).mean() for p, t in pairs]))
    determination = np.mean([metrics.r2_score(t, p) for p, t in pairs])
    assert found["r2"]["value"] == pytest.approx(determination, abs=1e-6)
    assert found["r2"]["standard_error"] > 0
    constant = scores.full(np.ones_like(predicted), of, NUMBER, "residue", seed=0)
    assert constant["pooled"] is None and constant["pearson"] is None


def test_marks_choose_what_is_counted(proteins: list[LabelledProtein]) -> None:
    truth = flat(proteins, "q")
    some = np.concatenate([p.marks["some"] for p in proteins])
    generator = np.random.default_rng(3)
    predicted = generator.integers(0, 4, (2, truth.size))
    other = np.where((truth >= 0) & some, predicted, generator.integers(0, 4, truth.size))
    assert (other != predicted).any()
    of = labelled(proteins, CLASSES, "some")
    first, second = (scores.full(p, of, CLASSES, "residue", seed=0) for p in (predicted, other))
    assert first == second and len(of.truth) == ((truth >= 0) & some).sum()
    of = labelled(proteins, CLASSES, "whole")  # of all residues of a protein
    assert len(of.truth) == sum(int((p.labels["q"] >= 0).sum()) for p in proteins[1::2])
    assert of.proteins == 3


def test_labels_of_proteins() -> None:
    labels = [0, 1, -1, 2, 1]
    made = [LabelledProtein(str(i), "MK", {"q": np.array(v)}) for i, v in enumerate(labels)]
    made.append(LabelledProtein("without", "MK", {}))
    of = labelled(made, CLASSES, level="protein")
    assert of.places.tolist() == [0, 1, 3, 4]
    found = scores.full(np.array([[0, 0, 0, 2, 1, 0]]), of, CLASSES, "protein", seed=0)
    assert found["pooled"]["value"] == 0.75 and found["pooled"]["proteins"] == 4
    assert found["per_protein"] is None
    assert scores.labelled(made, "protein", NUMBER) is None


def test_a_shared_seed_pairs_differences(proteins: list[LabelledProtein]) -> None:
    truth, of = flat(proteins, "q"), labelled(proteins, CLASSES)
    predicted = np.random.default_rng(4).integers(0, 3, (1, truth.size))
    better = np.where(np.arange(truth.size) % 5 == 0, truth, predicted)
    one, other = (scores.primary(p, of, CLASSES, seed=1) for p in (better, predicted))
    assert one is not None and other is not None
    paired, *alone = (found.estimate() for found in (one.minus(other), one, other))
    assert paired.value > 0
    assert paired.standard_error < np.hypot(*(found.standard_error for found in alone))
