"""What is lost without a layer or a sublayer, against PyTorch with hooks, on all position sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from depth_reference import (
    LENGTHS,
    REAL,
    cases,
    instead,
    length,
    measured,
    reference,
    silenced,
    skipped,
)

from protlm_jax.evaluation.depth.positions import FEW

METRICS = ("skips", "sublayer_skips")
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
        if positions not in FEW and not both_programs:
            continue
        found = measured(family, stack, METRICS, positions)
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
        found = measured(family, stack, METRICS, positions)
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
