"""Features are read once, in batches that do not depend on what is kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from zoo import loaded

from protlm_jax.evaluation.embedding.embedder import Embedder
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.probe_data import LabelledProtein, Target
from protlm_jax.evaluation.probes.features import Source, Store, shares
from protlm_jax.evaluation.probes.readers import ModelReader, TableReader, model_reader
from protlm_jax.vocabularies import AMINO_ACIDS

STATE = Target("state", "classes", ("A", "B"))
SIZE = Target("size", "number")
LENGTHS = [5, 30, 14, 40, 5, 21, 9, 33]


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


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All sequences that go through a model, as often as they do."""
    seen: list[str] = []
    plain = Embedder.embed

    def counted(self: Embedder, sequences: Sequence[str], done: Any = ()) -> Iterator[Any]:
        seen.extend(sequences)
        yield from plain(self, sequences, done)

    monkeypatch.setattr(Embedder, "embed", counted)
    return seen


def test_rows_are_the_embeddings_of_their_residues(
    reader: ModelReader, proteins: list[LabelledProtein], assert_close: Callable[..., None]
) -> None:
    source = Source(Store(reader, proteins, keep=1 << 30), (STATE,), "residue", "residues")
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
        assert (batch.labels["state"][batch.protein < 0] == -1).all()
    assert sorted(seen) == list(range(8)) and seen != sorted(seen)


def test_pooled_rows_are_means_and_carry_the_labels_of_proteins(
    reader: ModelReader, proteins: list[LabelledProtein], assert_close: Callable[..., None]
) -> None:
    store = Store(reader, proteins, keep=1 << 30)
    pooled = Source(store, (SIZE,), "protein", "mean")
    ((batch,), residues) = (
        list(pooled.batches(None)),
        Source(store, (SIZE,), "protein", "residues"),
    )
    assert batch.members.tolist() == list(range(8))
    sequences = {str(i): p.sequence for i, p in enumerate(proteins)}
    means = embed_sequences(loaded("bert"), sequences, layers=(0, 2), vectors="mean")
    expected = np.stack([mean for _, mean in means], axis=1)
    assert_close(batch.features[:, :8], expected, 1e-5)
    sizes = [np.nan, 30, np.nan, 40, np.nan, 21, np.nan, 33]
    np.testing.assert_array_equal(batch.labels["size"][:8], sizes)
    batch = next(residues.batches(None))
    np.testing.assert_array_equal(batch.labels["size"][:8], sizes)
    assert batch.protein.max() == 7 < batch.slots


def test_streamed_features_are_those_kept_and_cost_one_pass_an_epoch(
    proteins: list[LabelledProtein],
    reader: ModelReader,
    forwards: list[str],
    assert_close: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "protlm_jax.evaluation.probes.features.shape", lambda sizes: (48, 6)
    )  # several batches
    each = 2 * 16 * 4  # bytes of one residue
    stores = {
        "kept": Store(reader, proteins, keep=1 << 30),
        "streamed": Store(reader, proteins, keep=0, hold=20 * each),
        "in part": Store(reader, proteins, keep=60 * each, hold=40 * each),
    }
    found = {}
    for name, store in stores.items():
        source = Source(store, (STATE,), "residue", "residues")
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
    means = Source(stores["in part"], (SIZE,), "protein", "mean")
    kept = Source(stores["kept"], (SIZE,), "protein", "mean")
    for other, one in zip(means.batches(0), kept.batches(0), strict=True):
        assert_close(other.features, one.features, 1e-5)
    assert [forwards.count(p.sequence) for p in proteins] == counts


def test_long_proteins_go_through_windows(assert_close: Callable[..., None]) -> None:
    protein = LabelledProtein("p", "MKTAYIAKQRGLVWSE" * 8, {})
    reader = model_reader(loaded("bert"), (2,), ("residues",), [128], window=40)
    ((_, arrays),) = reader.read([protein.sequence])
    ((_, expected),) = embed_sequences(loaded("bert"), {"p": protein.sequence}, window=40)
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
