"""Maps are those of established methods, and the numbers beside them are right."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import maps
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.maps import Colouring, drawing, projection
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein, Target, View
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS


@pytest.fixture(scope="module")
def model(small_model: Callable[..., LoadedModel]) -> LoadedModel:
    return small_model("bert")


@pytest.fixture(scope="module")
def proteins() -> list[LabelledProtein]:
    """Half of them made of few kinds of residues, which is their class."""
    generator = np.random.default_rng(1)
    found = []
    for i in range(24):
        letters = list(AMINO_ACIDS if i % 2 else "AEKL")
        labels = {"kind": np.array(i % 2 if i else -1, np.int8)}
        sequence = "".join(generator.choice(letters, size=20))
        found.append(LabelledProtein(f"p{i}", sequence, labels))
    return found


def data(proteins: list[LabelledProtein], annotated: list[LabelledProtein]) -> Benchmark:
    targets = (Target("kind", "classes", ("plain", "rich")),)
    splits = {"valid": lambda: annotated, "test": lambda: proteins}
    views = {"test": View("test", "Test set")}
    return Benchmark("toy", "Toy", "protein", targets, splits, views, "", "", ())


@pytest.fixture(scope="module")
def drawn(model: LoadedModel, proteins: list[LabelledProtein]) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        found = importlib.util.find_spec
        patch.setattr(importlib.util, "find_spec", lambda n: None if n == "umap" else found(n))
        return maps.draw(model, data(proteins, proteins[:4]), seed=3)


def test_pca_is_the_singular_value_decomposition() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 7)) * np.arange(1, 8)
    left, sizes, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    points = maps.project(vectors, "pca", 0)
    np.testing.assert_allclose(np.abs(points), np.abs(left[:, :2] * sizes[:2]), atol=1e-9)
    assert not maps.project(np.ones((5, 3)), "pca", 0).any()  # equal vectors make one point
    assert maps.project(np.arange(5.0)[:, None], "pca", 0).shape == (5, 2)


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)])
def test_clusters_stay_apart_and_maps_repeat_themselves(method: str) -> None:
    if method == "umap":
        pytest.importorskip("umap")
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(40, 60)) + 8 * np.repeat([[0], [1]], 20, axis=0)
    points, again = (maps.project(vectors, method, 5) for _ in range(2))
    np.testing.assert_array_equal(points, again)
    middle = [points[:20].mean(axis=0), points[20:].mean(axis=0)]
    nearer = [np.argmin([np.linalg.norm(p - m) for m in middle]) for p in points]
    assert nearer == [0] * 20 + [1] * 20


def test_what_cannot_be_projected_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.ones((5, 3))
    with pytest.raises(ProtlmError, match=r"no map 'mds': there is pca, tsne, umap"):
        maps.project(vectors, "mds", 0)
    with pytest.raises(ProtlmError, match=r"at least 4 finite vectors; got \(3, 3\)"):
        maps.project(vectors[:3], "pca", 0)
    with pytest.raises(ProtlmError, match="finite"):
        maps.project(np.full((5, 3), np.nan), "pca", 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProtlmError, match=r"scikit-learn: pip install 'protlm-jax\[probe\]'"):
        maps.project(vectors, "pca", 0)


def test_mantel_finds_what_is_there_and_no_more() -> None:
    generator = np.random.default_rng(0)
    far = projection.distances(generator.normal(size=(12, 3)))
    upper = np.triu_indices(12, 1)
    noisy = far + 0.1 * np.abs(generator.normal(size=far.shape))
    found = maps.mantel(far, noisy, seed=0)
    assert found["correlation"] == pytest.approx(spearmanr(far[upper], noisy[upper]).statistic)
    assert found["p"] == 1 / 2000
    others = (projection.distances(generator.normal(size=(12, 3))) for _ in range(8))
    chances = [maps.mantel(far, other, seed=0)["p"] for other in others]
    assert np.mean(chances) > 0.05 and max(chances) > 0.3
    assert maps.mantel(far, np.ones_like(far), seed=0) == {"correlation": None, "p": None}


def test_neighbours_are_counted_among_the_known() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(30, 4))
    values = generator.integers(-1, 3, size=30)
    order = projection.nearest(vectors, 0)
    colour = Colouring("c", ("a", "b", "c"), values)
    found = drawing._agreement({"model": order, "random": order}, colour, 0)
    known = [i for i in range(30) if values[i] >= 0]
    shares = []
    for i in known:
        apart = {j: ((vectors[i] - vectors[j]) ** 2).sum() for j in known if j != i}
        nearest = sorted(apart, key=lambda j: apart[j])[:10]
        shares.append(np.mean([values[j] == values[i] for j in nearest]))
    assert found["model"]["value"] == pytest.approx(np.mean(shares))
    assert found["model"]["proteins"] == len(known)
    assert found["difference"]["value"] == 0
    same = [values[i] == values[j] for i in known for j in known if i != j]
    assert found["chance"] == pytest.approx(np.mean(same))


def test_protein_maps_hold_one_point_a_protein(
    drawn: dict[str, Any], proteins: list[LabelledProtein]
) -> None:
    found = drawn["proteins"]
    assert json.loads(json.dumps(found)) == found
    assert found["ids"] == [p.id for p in proteins]
    assert (found["set"], found["of"], found["layer"]) == ("Test set", 24, 2)
    assert list(found["methods"]) == ["pca", "tsne"] and "umap-learn" in found["left_out"]
    for by_kind in found["methods"].values():
        for points in by_kind.values():
            assert np.shape(points) == (24, 2) and np.isfinite(points).all()
    assert found["colours"]["kind"]["values"][0] == -1
    # Composition alone tells the classes apart, so untrained weights do as well.
    assert found["neighbours"]["kind"]["random"]["value"] > found["neighbours"]["kind"]["chance"]


def test_residues_are_read_at_layer_0(drawn: dict[str, Any], model: LoadedModel) -> None:
    found = drawn["residues"]
    assert found["residues"] == AMINO_ACIDS
    alone = embed_sequences(model, {c: c for c in AMINO_ACIDS}, layers=[0])
    vectors = projection.standardised(np.stack([v[0] for _, v in alone]))
    expected = maps.project(vectors, "pca", 0)
    np.testing.assert_allclose(found["methods"]["pca"]["model"], expected, rtol=1e-3, atol=1e-3)
    share = expected.var(axis=0) / vectors.var(axis=0).sum()
    np.testing.assert_allclose(found["explained"]["model"], share)
    assert found["methods"]["pca"]["model"] != found["methods"]["pca"]["random"]


def test_the_set_of_which_more_is_known_is_drawn(
    model: LoadedModel, proteins: list[LabelledProtein], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "residue_map", lambda *_: {})
    monkeypatch.setattr(drawing, "protein_maps", lambda _, found, *__: {"ids": found})
    annotated = [
        LabelledProtein(p.id, p.sequence, p.labels, notes={"kingdom": "ab"[i % 2]})
        for i, p in enumerate(proteins)
    ]
    found = maps.draw(model, data(proteins, annotated))["proteins"]
    assert (found["set"], found["ids"]) == ("validation", annotated)


def test_tables_hold_every_number(drawn: dict[str, Any], tmp_path: Path) -> None:
    paths = maps.write_tables(tmp_path / "new", drawn)
    names = ["map_of_proteins", "neighbours", "map_of_residues", "properties"]
    assert [p.name for p in paths] == [f"{name}.csv" for name in names]
    rows, neighbours, residues, properties = (
        list(csv.DictReader(p.read_text().splitlines())) for p in paths
    )
    points = drawn["proteins"]["methods"]["tsne"]["random"]
    assert [[float(r["tsne_random_x"]), float(r["tsne_random_y"])] for r in rows] == points
    assert [r["kind"] for r in rows[:3]] == ["", "rich", "plain"] and len(neighbours) == 3
    assert list(properties[0]) == ["property", "of", "correlation", "p"]
    assert {r["residue"]: r for r in residues}["W"]["size"] == "227.8" and len(residues) == 20
