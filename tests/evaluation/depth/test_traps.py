"""What makes numbers of depth wrong without a word; see also `test_zero_stream` (<mask> as zeros),
`test_parallel_block`, and `test_skips` and `test_streams` over ESM-C (its division)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zoo
from depth_reference import REAL, measured, reference, torch
from depth_rows import asked, measure_batch

METRICS = ("contributions", "angles", "logit_lens", "skips", "local_effects")


def test_the_last_stream_is_before_the_final_norm() -> None:
    """Of transformers' hidden_states the last one is behind it."""
    ref = reference("esm2", "encoder")
    found = measured("esm2", "encoder", ("contributions", "similarity", "logit_lens"))
    network = ref.network
    with torch.no_grad():
        mask = torch.tensor(REAL.astype(np.int64))
        theirs = network(
            torch.tensor(ref.shown).long(), attention_mask=mask, output_hidden_states=True
        ).hidden_states
        last = torch.tensor(found["streams"][-1, found["real"]]).double()
        normed = network.esm.encoder.emb_layer_norm_after(last).numpy()
    expected = theirs[-1].numpy()[ref.target][: len(last)]
    np.testing.assert_allclose(normed, expected, atol=1e-4)
    assert np.abs(last.numpy() - expected).max() > 0.1
    before = theirs[-2].numpy()[ref.target][: len(last)]
    np.testing.assert_allclose(found["streams"][-2, found["real"]], before, atol=1e-5)
    # The lens norms once: at the last depth it is the answer itself.
    assert found["lens_kl"].total[-1].max() < 1e-6 < found["lens_kl"].total[-2, :3].min()


@pytest.mark.parametrize("positions", ["asked", "all"])
def test_what_stands_in_padding_counts_nowhere(positions: Any) -> None:
    """Neither in means nor in largest values, and where it stands is no matter."""
    model, batch = zoo.loaded("esm2"), asked("esm2", [[0], [1], [2]])
    filled = batch.features["input_tokens"].copy()
    pads = batch.features["segment_ids"] == 0
    filled[pads] = np.random.default_rng(0).choice(model.vocabulary.amino_acid_ids, pads.sum())
    dirty = batch._replace(features={**batch.features, "input_tokens": filled})
    clean, other = (
        measure_batch(model, one, "encoder", METRICS, positions)[0] for one in (batch, dirty)
    )
    for name, stat in clean.items():
        for field in ("total", "count", "peak"):
            expected, got = getattr(stat, field), getattr(other[name], field)
            if expected is not None:
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_divided_sublayer_is_measured_as_it_is_added() -> None:
    """ESM-C divides what its sublayers add by sqrt(layers / 36): they sum up to the layer."""
    batch = asked("esmc", [[1], [2]])
    model = zoo.loaded("esmc")
    assert model.config.residual_divisor == pytest.approx((2 / 36) ** 0.5)
    whole = measure_batch(model, batch, "encoder", ("contributions",))[0]["relative_contribution"]
    h, context = model.model.apply({"params": model.params}, batch.features, method="embed")
    out, taps = model.model.apply({"params": model.params}, h, context, method="stack")
    streams = np.concatenate([taps["encoder"]["stream"], out["encoder"][None]])
    for part, name in enumerate(("attention", "mlp"), start=1):
        added, onto = (np.asarray(taps["encoder"][x]) for x in (name, f"{name}_onto"))
        if name == "mlp":
            np.testing.assert_allclose(onto + added, streams[1:], atol=1e-5)
        ratio = np.linalg.norm(added, axis=-1) / np.linalg.norm(onto, axis=-1)
        expected = (ratio * batch.hidden[None]).sum(-1)
        np.testing.assert_allclose(whole.total[part, :, :2], expected, rtol=1e-4)
