"""An embedding does not depend on its neighbours, its padding or the order of the input."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embed import embed_sequences
from protlm_jax.evaluation.embed_plan import windows
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import AMINO_ACIDS

SmallModel = Callable[..., LoadedModel]


def proteins(lengths: list[int], seed: int = 0) -> dict[str, str]:
    generator = np.random.default_rng(seed)
    return {
        f"p{i}": "".join(generator.choice(list(AMINO_ACIDS), size=n)) for i, n in enumerate(lengths)
    }


@pytest.mark.parametrize("family", ["bert", "t5", "transformer_xl", "xlnet"])
def test_equals_the_model_on_the_sequence_alone(small_model: SmallModel, family: str) -> None:
    loaded = small_model(family)
    sequences = proteins([5, 30, 14, 62, 5, 30, 9])
    stream = embed_sequences(loaded, sequences, tokens_per_batch=128)
    before = len(loaded.vocabulary.prefix_ids)
    side = "encoder_" if family == "t5" else ""
    hidden = jax.jit(lambda p, b: loaded.model.apply({"params": p}, b, method="hidden"))
    names = []
    for name, array in stream:
        names.append(name)
        ids = loaded.vocabulary.encode(sequences[name])[None]
        batch = {
            f"{side}input_tokens": ids,
            f"{side}segment_ids": np.ones_like(ids),
            f"{side}positions": np.arange(ids.shape[1], dtype=np.int32)[None],
        }
        alone = np.asarray(hidden(loaded.params, batch))[0]
        alone = alone[before : before + len(sequences[name])]
        assert array.shape == (len(sequences[name]), 16)
        np.testing.assert_allclose(array, alone, atol=1e-5 * np.abs(alone).max())
    assert names == list(sequences) and not stream.windowed


def test_long_proteins_are_read_through_windows(small_model: SmallModel) -> None:
    loaded = small_model("bert", max_positions=32)
    sequences = proteins([100, 30, 31])
    stream = embed_sequences(loaded, sequences)
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
    for window, (_, array) in zip(parts, embed_sequences(loaded, pieces), strict=True):
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
    loaded = small_model("bert")
    stream = embed_sequences(loaded, {"spaced": "M K U L", "plain": "MKXL"})
    spaced, plain = (array for _, array in stream)
    np.testing.assert_allclose(spaced, plain, atol=1e-6)
    with pytest.raises(ProtlmError, match="'bad', position 3"):
        embed_sequences(loaded, {"bad": "MK*"})


def test_a_window_must_fit(small_model: SmallModel) -> None:
    with pytest.raises(ProtlmError, match="between 2 and 62"):
        embed_sequences(small_model("bert"), {"p": "MK"}, window=63)
    assert embed_sequences(small_model("t5"), {"p": "MKL" * 9}, window=10).windowed == {"p": 5}
