"""Contributions, angles and the logit lens against PyTorch with hooks."""

from __future__ import annotations

import numpy as np
import pytest
from depth_reference import cases, length, measured, reference, run

from protlm_jax.evaluation.depth.tuned_lens import measured_lens

METRICS = ("contributions", "angles", "similarity")


@pytest.mark.parametrize(("family", "stack"), cases())
def test_contributions_are_ratios_and_cosines_of_what_is_added(
    family: str, stack: str, assert_close
) -> None:
    ref, found = reference(family, stack), measured(family, stack, METRICS)
    seen = ref.run()
    pairs = [(seen.contribution, np.array(seen.streams[:-1]))]
    pairs += [(np.array(seen.added[name]), np.array(seen.onto[name])) for name in seen.added]
    assert found["cosine"].dims == ("part", "layer")
    for part, (added, onto) in enumerate(pairs):
        for layer in range(ref.number):
            a, b = added[layer], onto[layer]
            there = ref.target & (length(b) > 0)
            assert np.array_equal(found["cosine"].count[part, layer, :3], there.sum(-1))
            with np.errstate(invalid="ignore", divide="ignore"):
                ratio = np.where(there, length(a) / length(b), 0).sum(-1)
                cosine = np.where(there, (a * b).sum(-1) / (length(a) * length(b)), 0).sum(-1)
            if there.any():
                where = f"part {part}, layer {layer}"
                assert_close(
                    found["relative_contribution"].total[part, layer, :3], ratio, 1e-4, where
                )
                assert_close(found["cosine"].total[part, layer, :3], cosine, 1e-4, where)
    sizes = np.array([(length(h) * ref.target).sum(-1) for h in seen.streams])
    assert_close(found["stream_norm"].total[:, :3], sizes, 1e-5)
    # Slots of proteins that are not there.
    assert not found["stream_norm"].count[:, 3:].any() and not found["cosine"].total[..., 3:].any()


@pytest.mark.parametrize(("family", "stack"), cases())
def test_angles_are_those_between_streams(family: str, stack: str, assert_close) -> None:
    ref, found = reference(family, stack), measured(family, stack, METRICS)
    streams = np.array(ref.run().streams)
    there = length(streams) > 0
    for i, j in np.ndindex(len(streams), len(streams)):
        both = ref.target & there[i] & there[j]
        assert np.array_equal(found["angular_distance"].count[i, j, :3], both.sum(-1))
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = (streams[i] * streams[j]).sum(-1) / (length(streams[i]) * length(streams[j]))
        cosine = np.where(both, cosine, 1).clip(-1, 1)
        angle = np.arccos(cosine).sum(-1) / np.pi
        np.testing.assert_allclose(
            found["angular_distance"].total[i, j, :3], angle if i != j else 0 * angle, atol=1e-4
        )
        if j == i + 1 and both.any():
            assert_close(found["block_influence"].total[i, :3], (1 - cosine).sum(-1), 1e-4)


@pytest.mark.parametrize(("family", "stack"), cases(("t5", "encoder")))
def test_the_logit_lens_is_the_head_at_every_depth(family: str, stack: str, assert_close) -> None:
    from scipy.stats import spearmanr

    ref, found = reference(family, stack), measured(family, stack, ("logit_lens",))
    seen = ref.run()
    lens = [ref.head(stream) for stream in seen.streams]
    np.testing.assert_allclose(lens[-1], seen.answer, atol=1e-9)
    for name in ("l2", "kl", "kl_reverse", "top1_agreement", "nll", "accuracy"):
        expected = np.array([ref.differ(seen.answer, q, ref.target)[name] for q in lens])
        assert_close(found[f"lens_{name}"].total[:, :3], expected, 1e-4, name)
    p = np.exp(seen.answer)
    best = np.argsort(-p, axis=-1)[..., :3]
    for depth, log_q in enumerate(lens):
        q, middle = np.exp(log_q), (np.exp(log_q) + p) / 2
        js = (p * np.log(p / middle) + q * np.log(q / middle)).sum(-1) / 2
        top = np.argsort(-q, axis=-1)[..., :3]
        overlap, rank = np.zeros(3), np.zeros(3)
        for row, at in np.argwhere(ref.target):
            overlap[row] += len(set(top[row, at]) & set(best[row, at])) / 3
            rank[row] += spearmanr(q[row, at], p[row, at]).statistic
        expected = {
            "js": (js * ref.target).sum(-1),
            "top3_overlap": overlap,
            "rank_correlation": rank,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(
                found[f"lens_{name}"].total[depth, :3], value, rtol=1e-4, atol=2e-5, err_msg=name
            )


@pytest.mark.parametrize(("family", "stack"), cases(("t5", "encoder")))
def test_the_tuned_lens_is_the_head_behind_its_map(family: str, stack: str, assert_close) -> None:
    ref, rng = reference(family, stack), np.random.default_rng(0)
    maps = {
        "A": 0.3 * rng.normal(size=(ref.number, 16, 16)).astype(np.float32),
        "b": rng.normal(size=(ref.number, 16)).astype(np.float32),
    }
    seen = ref.run()
    found = run(ref, measured_lens, maps)
    lens = [
        ref.head(h + h @ a.T + b) for h, a, b in zip(seen.streams, *maps.values(), strict=False)
    ]
    for name in ("kl", "kl_reverse", "top1_agreement", "nll"):
        expected = np.array([ref.differ(seen.answer, q, ref.target)[name] for q in lens])
        assert_close(found[f"tuned_lens_{name}"].total[:, :3], expected, 1e-4, name)


@pytest.mark.parametrize(("family", "stack"), cases())
def test_the_sample_is_of_streams_at_targets(family: str, stack: str, assert_close) -> None:
    found = measured(family, stack, METRICS)
    real = found["real"]
    ref = reference(family, stack)
    assert real.sum() == min(16, ref.target.sum())
    expected = np.array(ref.run().streams)[:, ref.target]
    assert_close(found["streams"][:, real], expected[:, :16], 1e-5)
