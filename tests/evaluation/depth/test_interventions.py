"""Erasure and integrated gradients against PyTorch with hooks."""

from __future__ import annotations

import numpy as np
import pytest
from depth_reference import CONTEXT, REAL, cases, instead, reference, run

from protlm_jax.evaluation.depth.ablation import erase
from protlm_jax.evaluation.depth.gradients import attribute


@pytest.mark.parametrize(("family", "stack"), cases())
def test_erasing_a_residue_replaces_its_stream_by_the_mean(family: str, stack: str) -> None:
    ref = reference(family, stack)
    clean = ref.run()
    means = np.random.default_rng(0).normal(size=(ref.number + 1, 16)).astype(np.float32)
    erased = np.array([[np.flatnonzero(row)[i] for i in (0, 2)] for row in CONTEXT], np.int32)
    found = run(ref, erase, means, erased, depths=(0, 2))
    for i, depth in enumerate((0, 2)):
        for k in range(2):
            stream = clean.streams[depth].copy()
            stream[np.arange(3), erased[:, k]] = means[depth]
            edited = ref.run([("stream", depth, instead(stream))])
            for name, expected in ref.differ(clean.answer, edited.answer, ref.target).items():
                np.testing.assert_allclose(
                    found[f"erasure_{name}"].total[i, k, :3], expected, rtol=1e-4, atol=1e-5
                )


@pytest.mark.parametrize(("family", "stack"), cases())
def test_attributions_are_gradients_along_the_path(family: str, stack: str) -> None:
    ref = reference(family, stack)
    clean, steps = ref.run(), 4
    found, differences = run(ref, attribute, REAL, depths=(1, ref.number), steps=steps)
    true = ref.asked[..., None] == ref.amino_acids[None, None]
    for i, depth in enumerate((1, ref.number)):
        h = clean.streams[depth]
        mean = (h * REAL[..., None]).sum(1, keepdims=True) / REAL.sum(1)[:, None, None]
        base = np.where(REAL[..., None], mean, h)
        part = "stream" if depth < ref.number else "end"

        def value(x, depth=depth, part=part):
            answer = ref.run([(part, depth, instead(x))]).answer
            return (np.exp(answer) * true * ref.target[..., None]).sum((1, 2))

        # Directional derivatives by central differences, one token at a time.
        row, at = 0, int(np.flatnonzero(REAL[0])[3])
        direction = np.zeros_like(h)
        direction[row, at] = (h - base)[row, at]
        expected = 0.0
        for k in range(steps):
            x = base + (k + 0.5) / steps * (h - base)
            e = 1e-4
            expected += (value(x + e * direction) - value(x - e * direction))[row] / (2 * e)
        # transformers takes T5's norms in float32, which differences show as noise.
        noise = 5e-4 * np.abs(found[i]).max()
        np.testing.assert_allclose(found[i, row, at], expected / steps, rtol=2e-3, atol=noise)
        np.testing.assert_allclose(differences[i], value(h) - value(base), rtol=1e-3, atol=1e-6)
        assert not np.asarray(found)[i][~REAL].any()


def test_attributions_add_up_with_enough_steps() -> None:
    ref = reference("esm2", "encoder")
    found, differences = run(ref, attribute, REAL, depths=(1,), steps=64)
    total = np.asarray(found).sum(-1)
    np.testing.assert_allclose(total, differences, atol=0.01 * np.abs(differences).max())
