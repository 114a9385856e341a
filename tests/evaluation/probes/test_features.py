"""Features are read once; batches hold every protein whole and once, whatever is in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from probe_sources import ArraySource
from zoo import loaded

from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.probe_data import LabelledProtein, Target
from protlm_jax.evaluation.probe_data.base import Level
from protlm_jax.evaluation.probes import features
from protlm_jax.evaluation.probes.controls import TableReader
from protlm_jax.evaluation.probes.features import (
    FeatureSource,
    ModelReader,
    Store,
    model_reader,
    shape,
    shares,
)
from protlm_jax.vocabularies import AMINO_ACIDS

STATE = Target("state", "classes", ("A", "B"))
SIZE = Target("size", "number")
LENGTHS = [5, 30, 14, 40, 5, 21, 9, 33]

Close = Callable[..., None]


@pytest.fixture(scope="module")
def proteins() -> list[LabelledProtein]:
    generator = np.random.default_rng(0)
    made = []
    for i, n in enumerate(LENGTHS):
        sequence = "".join(generator.choice(list(AMINO_ACIDS), size=n))
        labels: dict[str, np.ndarray] = {"state": generator.integers(-1, 2, n).astype(np.int8)}
        if i % 2:
            labels["size"] = np.float32(n)
        made.append(LabelledProtein("the same name", sequence, labels))
    return made


@pytest.fixture(scope="module")
def reader() -> ModelReader:
    return model_reader(loaded("bert"), (0, 2), ("residues", "mean"), LENGTHS, None)


def test_rows_are_the_embeddings_of_their_residues(
    reader: ModelReader, proteins: list[LabelledProtein], assert_close: Close
) -> None:
    source = FeatureSource(Store(reader, proteins, keep=1 << 30), (STATE,), "residue", "residues")
    sequences = {str(i): p.sequence for i, p in enumerate(proteins)}
    expected = dict(embed_sequences(loaded("bert"), sequences, layers=(0, 2)))
    seen = []
    for batch in source.batches(epoch_seed=3):
        assert batch.features.shape == (2, source.rows, 16)
        for slot, (member, start) in enumerate(zip(batch.members, batch.starts, strict=True)):
            rows = slice(start, start + LENGTHS[member])
            assert_close(batch.features[:, rows], expected[str(member)], 1e-5)
            assert (np.flatnonzero(batch.protein == slot) == np.arange(source.rows)[rows]).all()
            assert (batch.labels["state"][rows] == proteins[member].labels["state"]).all()
            seen.append(int(member))
    assert sorted(seen) == list(range(8)) and seen != sorted(seen)


def test_pooled_rows_are_means_and_carry_the_labels_of_proteins(
    reader: ModelReader, proteins: list[LabelledProtein], assert_close: Close
) -> None:
    store = Store(reader, proteins, keep=1 << 30)
    (batch,) = FeatureSource(store, (SIZE,), "protein", "mean").batches(None)
    sequences = {str(i): p.sequence for i, p in enumerate(proteins)}
    means = embed_sequences(loaded("bert"), sequences, layers=(0, 2), vectors="mean")
    assert_close(batch.features[:, :8], np.stack([mean for _, mean in means], axis=1), 1e-5)
    sizes = [np.nan, 30, np.nan, 40, np.nan, 21, np.nan, 33]
    np.testing.assert_array_equal(batch.labels["size"][:8], sizes)
    batch = next(FeatureSource(store, (SIZE,), "protein", "residues").batches(None))
    np.testing.assert_array_equal(batch.labels["size"][:8], sizes)
    assert batch.protein.max() == 7 < batch.slots


def test_streamed_features_are_those_kept_and_cost_one_pass_an_epoch(
    proteins: list[LabelledProtein],
    reader: ModelReader,
    forwards: list[str],
    assert_close: Close,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forwards.clear()
    monkeypatch.setattr(features, "shape", lambda sizes: (48, 6))  # several batches
    each = 2 * 16 * 4  # bytes of one residue
    stores = {
        "kept": Store(reader, proteins, keep=1 << 30),
        "streamed": Store(reader, proteins, keep=0, hold=20 * each),
        "in part": Store(reader, proteins, keep=60 * each, hold=40 * each),
    }
    found = {}
    for name, store in stores.items():
        source = FeatureSource(store, (STATE,), "residue", "residues")
        found[name] = [batch for epoch in (1, 2, None) for batch in source.batches(epoch)]
    assert len(found["kept"]) > 6
    for name in ("streamed", "in part"):
        for kept, other in zip(found["kept"], found[name], strict=True):
            assert_close(other.features, kept.features, 1e-5)
            np.testing.assert_array_equal(other.protein, kept.protein)
            np.testing.assert_array_equal(other.labels["state"], kept.labels["state"])
    assert [stores[n].passes for n in ("kept", "streamed")] == [1, 3]
    # The means of all proteins stay, from one pass, and the residues of the first three.
    counts = [forwards.count(p.sequence) for p in proteins]
    assert counts == [1 + 3 + (1 if i < 3 else 4) for i in range(8)]
    means = (
        FeatureSource(stores[n], (SIZE,), "protein", "mean").batches(0) for n in ("kept", "in part")
    )
    for one, other in zip(*means, strict=True):
        assert_close(other.features, one.features, 1e-5)
    assert [forwards.count(p.sequence) for p in proteins] == counts


def test_long_proteins_go_through_windows(assert_close: Close) -> None:
    sequence = "MKTAYIAKQRGLVWSE" * 8
    ((_, arrays),) = model_reader(loaded("bert"), (2,), ("residues",), [128], 40).read([sequence])
    ((_, expected),) = embed_sequences(loaded("bert"), {"p": sequence}, window=40)
    assert_close(arrays["residues"][0], expected, 1e-5)


def test_tables_know_no_neighbours(proteins: list[LabelledProtein]) -> None:
    reader = TableReader("one_hot", ("residues", "mean"))
    for index, arrays in reader.read([p.sequence for p in proteins]):
        sequence = proteins[index].sequence
        assert "".join(AMINO_ACIDS[i] for i in arrays["residues"][0].argmax(1)) == sequence
        expected = [sequence.count(a) / len(sequence) for a in AMINO_ACIDS]
        np.testing.assert_allclose(arrays["mean"][0, :20], expected, rtol=1e-6)


def test_the_budget_is_shared_and_never_exceeded() -> None:
    assert shares(600, 400, 1000)[:2] == (600, 400)
    for train, valid in ((601, 400), (5000, 100), (100, 5000)):
        assert sum(shares(train, valid, 1000)) <= 1000
    assert shares(5000, 100, 1000) == (650, 100, 250)


def made(lengths: Sequence[int], level: Level) -> ArraySource:
    offsets = np.cumsum([0, *lengths])
    x = np.arange(2 * offsets[-1] * 3, dtype=np.float32).reshape(2, offsets[-1], 3) + 1
    count = offsets[-1] if level == "residue" else len(lengths)
    labels = {"q3": np.arange(count, dtype=np.int16), "depth": np.arange(count, dtype=np.float32)}
    return ArraySource(x, offsets, labels, level, rows=128)


@pytest.mark.parametrize("level", ["residue", "protein"])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_every_protein_is_there_once_and_whole(level: Level, seed: int | None) -> None:
    source = made([30, 9, 50, 100, 22, 7, 1, 41, 3], level)
    batches = list(source.batches(seed))
    assert len({(b.features.shape, b.slots) for b in batches}) == 1
    seen = []
    for batch in batches:
        there = batch.protein >= 0
        assert batch.protein.max() < batch.slots and not batch.features[:, ~there].any()
        assert batch.features.ctypes.data % 64 == 0
        for slot in range(batch.protein.max() + 1):
            rows = np.flatnonzero(batch.protein == slot)
            start = int(batch.features[0, rows[0], 0] - 1) // 3
            protein = int(np.searchsorted(source.offsets, start))
            seen.append(protein)
            at = slice(start, source.offsets[protein + 1])
            np.testing.assert_array_equal(batch.features[:, rows], source.features[:, at])
            for name, labels in batch.labels.items():
                own = labels[rows] if level == "residue" else labels[slot]
                expected = source.labels[name][at if level == "residue" else protein]
                np.testing.assert_array_equal(own, expected)
        unlabelled = ~there if level == "residue" else np.arange(batch.slots) > batch.protein.max()
        assert (batch.labels["q3"][unlabelled] == -1).all()
        assert np.isnan(batch.labels["depth"][unlabelled]).all()
    assert sorted(seen) == list(range(9)) and (seen == sorted(seen)) == (seed is None)


def test_batches_are_of_like_size_and_take_the_longest_protein() -> None:
    batches = list(made([1] * 130, "protein").batches(3))
    assert [int((b.protein >= 0).sum()) for b in batches] == [65, 65]
    assert all(b.slots == len(b.protein) == 65 for b in batches)
    assert shape(np.array([5000, 10]), 4096)[0] == 5000
    assert shape(np.array([50, 10]), 4096)[0] == 60
