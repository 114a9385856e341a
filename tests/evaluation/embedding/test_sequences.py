"""An embedding does not depend on its neighbours, its padding or the order of the input."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from zoo import ZOO, loaded

from protlm_jax.data.rows import windows
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.embedder import Embedder, _cheapest
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.embedding.spec import EmbeddingSpec, Vectors, resolve_layers
from protlm_jax.evaluation.engine import for_reading
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS

SmallModel = Callable[..., LoadedModel]


def proteins(lengths: list[int], seed: int = 0) -> dict[str, str]:
    generator = np.random.default_rng(seed)
    return {
        f"p{i}": "".join(generator.choice(list(AMINO_ACIDS), size=n)) for i, n in enumerate(lengths)
    }


LENGTHS = [5, 30, 14, 62, 5, 30, 9]
ALL: tuple[Vectors, ...] = ("residues", "mean", "max", "cls")


def everything(
    loaded: LoadedModel, sequences: list[str], devices: int, budget: int
) -> list[dict[str, np.ndarray]]:
    """All vectors of all layers, by protein."""
    has_cls = any("cls" in token.lower() for token in loaded.vocabulary.tokens)
    spec = EmbeddingSpec(resolve_layers(loaded, "all"), ALL if has_cls else ALL[:-1])
    residues = np.array([len(s) for s in sequences])
    embedder = Embedder(for_reading(loaded), spec, residues, None, budget, devices)
    found = dict(pair for complete in embedder.embed(sequences) for pair in complete)
    return [found[i] for i in range(len(sequences))]


def most_in_a_row(loaded: LoadedModel, sequences: list[str], budget: int) -> int:
    """How many proteins share a row on one device."""
    sizes = np.array([len(s) for s in sequences])
    embedder = Embedder(for_reading(loaded), EmbeddingSpec((0,), ("mean",)), sizes, None, budget, 1)
    tokens = (sizes + loaded.vocabulary.num_specials).tolist()
    return max(max(batch.segments) for batch in embedder.batches(tokens))


@pytest.mark.parametrize("family", ZOO)
def test_a_protein_is_the_same_alone_in_any_batch_and_on_any_devices(
    family: str, assert_close: Callable[..., None]
) -> None:
    model = loaded(family)
    sequences = list(proteins(LENGTHS).values())
    shared = most_in_a_row(model, sequences, 200) > 1
    assert shared == (model.config.positions != "relative_xl")
    together = everything(model, sequences, devices=8, budget=128)
    reverse = everything(model, sequences[::-1], devices=1, budget=200)[::-1]
    for one, other in zip(together, reverse, strict=True):
        for name in one:
            assert_close(one[name], other[name], 1e-5, name)

    ids = model.vocabulary.encode(sequences[2])[None]
    side = "encoder_" if model.config.num_decoder_layers else ""
    batch = {
        f"{side}input_tokens": ids,
        f"{side}segment_ids": np.ones_like(ids),
        f"{side}positions": np.arange(ids.shape[1], dtype=np.int32)[None],
    }

    @jax.jit
    def alone(params: Any, batch: Any) -> Any:
        return [
            model.model.apply({"params": params}, batch, method=method)
            for method in ("every_layer", "hidden")
        ]

    streams, hidden = (np.asarray(x) for x in alone(model.params, batch))
    before = len(model.vocabulary.prefix_ids)
    residues = streams[:, 0, before : before + len(sequences[2])]
    assert_close(streams[-1], hidden, 1e-6)
    assert_close(together[2]["residues"], residues, 1e-5)
    assert_close(together[2]["mean"], residues.mean(axis=1), 1e-5)
    assert_close(together[2]["max"], residues.max(axis=1), 1e-5)
    if "cls" in together[2]:
        place = {"xlnet": -1}.get(family, 0)
        assert_close(together[2]["cls"], streams[:, 0, place], 1e-5)


def test_what_is_asked_for_must_be_there() -> None:
    bert, t5 = loaded("bert"), loaded("t5")
    assert resolve_layers(bert, [-1, 0]) == (2, 0)
    for asked, message in (([3], "no layer 3"), ([2, -1], "twice"), ("best", "'best'")):
        with pytest.raises(ProtlmError, match=message):
            resolve_layers(bert, asked)
    with pytest.raises(ProtlmError, match="no classification token"):
        embed_sequences(t5, {"p": "MK"}, vectors="cls")
    with pytest.raises(ProtlmError, match="1 to 8"):
        embed_sequences(bert, {"p": "MK"}, devices=9)


def test_vectors_of_proteins_come_in_order_and_dtype() -> None:
    sequences = proteins([20, 7])
    means = dict(embed_sequences(loaded("bert"), sequences, vectors="mean", dtype="float16"))
    whole = dict(embed_sequences(loaded("bert"), sequences))
    assert list(means) == list(sequences)
    for name, mean in means.items():
        assert mean.shape == (16,) and mean.dtype == np.float16
        np.testing.assert_allclose(mean, whole[name].mean(axis=0), rtol=2e-3, atol=2e-3)


def test_long_proteins_are_read_through_windows(small_model: SmallModel) -> None:
    model = small_model("bert", max_positions=32)
    sequences = proteins([100, 30, 31])
    stream = embed_sequences(model, sequences)
    assert stream.report() == {
        "proteins": 3,
        "residues": 161,
        "window": 30,
        "windowed_proteins": 2,
        "windowed": {"p0": 6, "p2": 2},
    }
    whole = dict(stream)["p0"]
    parts = windows(100, 30)
    pieces = {f"w{i}": sequences["p0"][w.start : w.stop] for i, w in enumerate(parts)}
    for window, (_, array) in zip(parts, embed_sequences(model, pieces), strict=True):
        kept = slice(window.keep_start - window.start, window.keep_stop - window.start)
        np.testing.assert_allclose(
            whole[window.keep_start : window.keep_stop], array[kept], atol=1e-5
        )


@pytest.mark.parametrize(("residues", "limit"), [(31, 30), (100, 30), (101, 33), (90, 2), (61, 4)])
def test_each_residue_comes_from_its_best_window(residues: int, limit: int) -> None:
    parts = windows(residues, limit)
    kept = [i for w in parts for i in range(w.keep_start, w.keep_stop)]
    assert kept == list(range(residues))
    for w in parts:
        assert w.stop - w.start == limit
        for i in range(w.keep_start, w.keep_stop):
            best = max(_to_cut(i, o.start, o.stop, residues) for o in parts)
            assert _to_cut(i, w.start, w.stop, residues) == best


def _to_cut(i: int, start: int, stop: int, residues: int) -> float:
    """Distance from a residue to the nearest edge of a window that is a cut; -1 outside."""
    if not start <= i < stop:
        return -1
    left = i - start if start else np.inf
    right = stop - 1 - i if stop < residues else np.inf
    return min(left, right)


def test_reads_spaced_and_rare_residues(small_model: SmallModel) -> None:
    model = small_model("bert")
    stream = embed_sequences(model, {"spaced": "M K U L", "plain": "MKXL"})
    spaced, plain = (array for _, array in stream)
    np.testing.assert_allclose(spaced, plain, atol=1e-6)
    with pytest.raises(ProtlmError, match="'bad', position 3"):
        embed_sequences(model, {"bad": "MK*"})


def test_a_window_must_fit(small_model: SmallModel) -> None:
    with pytest.raises(ProtlmError, match="between 2 and 62"):
        embed_sequences(small_model("bert"), {"p": "MK"}, window=63)
    assert embed_sequences(small_model("t5"), {"p": "MKL" * 9}, window=10).windowed == {"p": 5}


def test_shapes_cost_the_least_of_all_choices() -> None:
    """Against every way to cut seven lengths into runs."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost = rng.random((7, 7))

        def total(ends: tuple[int, ...], cost: np.ndarray = cost) -> float:
            begins = [0, *(end + 1 for end in ends[:-1])]
            return sum(cost[i, j] for i, j in zip(begins, ends, strict=True))

        cuts = itertools.chain(*(itertools.combinations(range(6), k) for k in range(7)))
        assert total(tuple(_cheapest(cost))) == pytest.approx(min(total((*c, 6)) for c in cuts))


def test_rows_of_one_protein_waste_little() -> None:
    """Eight shapes at most hold all pieces, in whatever way the lengths are spread."""
    rng = np.random.default_rng(0)
    for lengths in (rng.gamma(2.0, 150.0, 2000) + 20, rng.lognormal(6.0, 1.0, 2000) + 5):
        residues = np.minimum(lengths, 3000).astype(np.int64)
        embedder = Embedder(loaded("xlnet"), EmbeddingSpec((1,), ("mean",)), residues)
        assert len(embedder.shapes) <= 8
        tokens = residues + embedder.loaded.vocabulary.num_specials
        batches = embedder.batches(tokens.tolist())
        assert sorted(m for b in batches for m in b.members) == list(range(len(residues)))
        computed = sum(batch.shape.rows * batch.shape.length for batch in batches)
        assert computed < 1.35 * tokens.sum()
