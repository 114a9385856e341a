"""Layers, sublayers, programs and residues taken away, against PyTorch models with hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from depth_reference import (
    CONTEXT,
    LENGTHS,
    REAL,
    cases,
    instead,
    length,
    measured,
    reference,
    run,
    silenced,
    skipped,
)

from protlm_jax.evaluation.depth.ablation import erase
from protlm_jax.evaluation.depth.gradients import attribute
from protlm_jax.evaluation.depth.positions import SPARSE

SKIPS = ("skips", "sublayer_skips")
MIDDLE = LENGTHS[:, None] // 2
PLACE = np.arange(10)[None]


def sets(ref: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Position set -> (where layers are edited, where effects are read)."""
    before = REAL & (PLACE > 0) & (PLACE < MIDDLE)
    return {
        "asked": (np.ones_like(REAL), ref.target),
        "context": (REAL & ~ref.target, ref.target),
        "visible": (np.ones_like(REAL), ref.residues & ~ref.target),
        "all": (np.ones_like(REAL), ref.residues),
        "future": (before, ref.residues & (PLACE >= MIDDLE)),
    }


def compare(found: Any, expected: np.ndarray, name: str, peak: bool = False) -> None:
    """Sums by protein, each as a share of the largest."""
    np.testing.assert_allclose(
        (found.peak if peak else found.total)[..., :3],
        expected,
        rtol=1e-4,
        atol=1e-5 * np.abs(expected).max(),
        err_msg=name,
    )


def effects(ref: Any, source: np.ndarray, target: np.ndarray, change: Any, part: str) -> Any:
    """Of editing each layer in turn: mean and largest change of every later one, and the answer."""
    base = ref.run()
    clean = base.contribution
    ratios, answers = np.zeros((ref.number, ref.number, *REAL.shape)), []
    for layer in range(ref.number):
        edited = ref.run([(part, layer, change(source))])
        later = np.arange(layer + 1, ref.number)
        ratios[layer, later] = (length(clean - edited.contribution) / length(clean))[later]
        answers.append(ref.differ(base.answer, edited.answer, target))
    ratios = np.where(target, ratios, 0)
    return ratios.sum(-1), ratios.max(-1), answers


@pytest.mark.parametrize(("family", "stack"), cases())
def test_skipping_changes_later_layers_and_the_answer(family: str, stack: str) -> None:
    """A skipped layer is the identity, norms included; an encoder is read at the decoder."""
    ref = reference(family, stack)
    both_programs = family in ("esm2", "gpt2")  # of few places and of all; sets know no families
    for positions, (source, target) in sets(ref).items():
        if positions not in SPARSE and not both_programs:
            continue
        found = measured(family, stack, SKIPS, positions)
        total, peak, answers = effects(ref, source, target, skipped, "layer")
        compare(found["skip_effect"], total, positions)
        compare(found["skip_effect"], peak, positions, peak=True)
        assert found["skip_effect"].dims == ("skipped", "affected")
        assert total[0, 1].max() > 0.01
        for name in answers[0]:
            compare(found[f"skip_{name}"], np.array([a[name] for a in answers]), name)
        base = ref.run().answer
        compare(found["base_nll"], ref.differ(base, base, target)["nll"], positions)


@pytest.mark.parametrize(("family", "stack"), cases())
def test_silencing_a_sublayer_changes_later_layers_and_the_answer(family: str, stack: str) -> None:
    ref = reference(family, stack)
    for positions in ("asked", "context"):
        found = measured(family, stack, SKIPS, positions)
        for index, part in enumerate(ref.parts(ref.blocks(ref.network)[0])):
            total, _, answers = effects(ref, *sets(ref)[positions], silenced, part)
            effect = found["sublayer_skip_effect"].total[index, ..., :3]
            scale = 1e-5 * total.max()
            np.testing.assert_allclose(effect, total, rtol=1e-4, atol=scale, err_msg=part)
            for name in answers[0]:
                expected = np.array([a[name] for a in answers])
                answer = found[f"sublayer_skip_{name}"].total[index, :, :3]
                scale = 1e-5 * np.abs(expected).max()
                np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=scale, err_msg=name)


@pytest.mark.parametrize(("family", "stack"), cases(("bert", "encoder")))
def test_a_local_effect_is_that_of_the_clean_stream_without_one_part(
    family: str, stack: str
) -> None:
    ref = reference(family, stack)
    clean = ref.run()
    for positions in ("asked", "context"):
        source, target = sets(ref)[positions]
        total = np.zeros((ref.number, ref.number, 3))
        for s in range(ref.number):
            for m in range(s + 1, ref.number):
                taken = np.where(source[..., None], clean.contribution[s], 0)
                edited = ref.run([("stream", m, instead(clean.streams[m] - taken))])
                change = length(clean.contribution[m] - edited.contribution[m])
                total[s, m] = (change / length(clean.contribution[m]) * target).sum(-1)
        compare(measured(family, stack, ("local_effects",), positions)["local_effect"], total, "")


PROGRAMS = ("swaps", "repeats", "block_deletions", "reversals")


def orders(number: int) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Of each kind the entries of its result, with the layers that run."""
    full = list(range(number))
    found: dict[str, list] = {"swap": [], "repeat": [], "delete": [], "reverse": []}
    for at in full:
        found["repeat"].append(((at,), full[: at + 1] + full[at:]))
        if at + 1 < number:
            swapped = [*full[:at], at + 1, at, *full[at + 2 :]]
            found["swap"].append(((at,), swapped))
            found["delete"].append(((0, at), full[:at] + full[at + 2 :]))
            found["reverse"].append(((0, at), swapped))
    return {kind: [(at, tuple(order)) for at, order in each] for kind, each in found.items()}


@pytest.mark.parametrize(("family", "stack"), cases(("bert", "encoder")))
def test_programs_answer_like_models_built_so(family: str, stack: str) -> None:
    ref, found = reference(family, stack), measured(family, stack, PROGRAMS)
    base = ref.run().answer
    for kind, entries in orders(ref.number).items():
        for at, order in entries:
            expected = ref.differ(base, ref.run(order=order).answer, ref.target)
            for name, value in expected.items():
                stat = found[f"{kind}_{name}"]
                np.testing.assert_allclose(
                    stat.total[at][:3], value, rtol=1e-4, atol=1e-5, err_msg=f"{kind} {order}"
                )
                assert np.array_equal(stat.count[at][:3], ref.target.sum(-1))
    assert found["swap_kl"].total.shape[0] == ref.number - 1


@pytest.mark.parametrize(("family", "stack"), cases(("bert", "encoder")))
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


@pytest.mark.parametrize(("family", "stack"), cases(("bert", "encoder")))
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
