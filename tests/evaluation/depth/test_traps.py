"""What makes numbers of depth wrong silently: zeros for <mask>, padding, norms, few proteins."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from depth_reference import REAL, measured, reference, torch
from depth_rows import asked, measure_batch, run
from zoo import loaded

from protlm_jax import report
from protlm_jax.evaluation.depth import files
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.claims import claims, headlines
from protlm_jax.evaluation.depth.results import Quantity, interval
from protlm_jax.evaluation.depth.stream import differences
from protlm_jax.evaluation.depth.subject import TINY, Subject
from protlm_jax.models.stack import LayerProgram

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
        measure_batch(model, one, "encoder", METRICS, positions) for one in (batch, dirty)
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
    whole = measure_batch(model, batch, "encoder", ("contributions",))["relative_contribution"]
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


PROTEINS = {"a": "MKTAYIAKQRQISFV", "b": "QLEERLGLIEVQ"}


def test_layers_before_which_the_stream_is_zero_say_nothing(small_model) -> None:
    """The published clamp of 1e-6 would make of them a mean of about a million."""
    measured = analyse(small_model("esm2"), PROTEINS)["encoder"]
    for key in ("relative_contribution", "cosine"):
        for part in ("layer", "attention"):
            first, second = measured[key].sel(part=part).values
            assert np.isnan(first) and abs(second) < 100, (key, part)
        # The MLP is added to what attention has put there.
        assert (abs(measured[key].sel(part="mlp")) < 100).all()
    assert measured["stream_norm"][0] == 0 < measured["stream_norm"][1]
    assert files.by_layer(measured).cells()[0][:3] == ["0", "-", "-"]


def test_other_positions_count_beside_them() -> None:
    """Of all residues together, <mask> and visible, the mean at layer 0 is of the visible ones."""
    found = analyse(zoo.loaded("esm2"), PROTEINS, metrics=["contributions"], positions="all")
    measured = found["encoder"]
    residues, masked = sum(map(len, PROTEINS.values())), 2 + 2
    sums = measured["relative_contribution_count"].sum("protein")
    counts = {part: sums.sel(part=part).values.tolist() for part in sums["part"].values}
    assert counts["layer"] == counts["attention"] == [residues - masked, residues]
    assert counts["mlp"] == [residues, residues]
    assert measured["relative_contribution"][0, 0] < 1 / TINY**0.5


def test_without_token_dropout_every_position_counts() -> None:
    loaded = zoo.loaded("esm2")
    plain = dataclasses.replace(
        loaded.model, config=loaded.config.replace(token_dropout=False), parent=None
    )
    found = analyse(dataclasses.replace(loaded, model=plain), PROTEINS)["encoder"]
    assert found["relative_contribution"].notnull().all()


SEQUENCE = "MKTAYIAKQRQISFVKSHF"


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("names", ["p", "pq"])
def test_values_come_without_intervals(names: str, tmp_path: Path) -> None:
    (found,) = analyse(loaded("bert"), dict.fromkeys(names, SEQUENCE)).values()
    heads = headlines(found)
    for head in heads.values():
        assert np.isfinite(head.value) and np.isnan(head.interval()).all()
    assert {"loss", "depth_score", "late_contribution"} <= set(heads)
    twin = found.assign_attrs(control_of=found.attrs["model"], model="twin")
    for claim in claims(found, twin):
        assert claim.verdict in ("", "undecided") and claim.low is None, claim
    text = files.text(found)
    assert ("only one protein: there are no intervals" in text) == (names == "p")
    assert "nan" not in text
    page = report.render({"depth": [found, twin]})
    assert ">nan" not in page and "nan " not in page
    files.write([found, twin], tmp_path)
    for name in ("depth.csv", "claims.csv"):
        assert ",nan" not in (tmp_path / name).read_text()


def test_an_interval_needs_proteins_that_differ() -> None:
    def low(totals: list[float], counts: list[float]) -> float:
        return float(interval(Quantity((), np.array(totals), np.array(counts)))[0])

    assert np.isfinite(low([1.0, 3.0], [2.0, 2.0]))
    assert np.isnan(low([1.0], [2.0]))  # one protein
    assert np.isnan(low([1.0, 0.0], [2.0, 0.0]))  # one that counts
    assert np.isnan(low([1.0, 1.0 + 1e-9], [2.0, 2.0]))  # two copies of one
    assert np.isnan(low([2.0, 5.0], [2.0, 5.0]))  # 1 in every draw


def test_both_sublayers_of_a_parallel_block_read_the_stream_before_it() -> None:
    """ProGen2's MLP never sees what attention adds: leaving either out is a gate of zero."""
    model, batch = zoo.loaded("progen2"), asked("progen2", [[1], [2]])
    metrics = ("contributions", "sublayer_skips", "local_effects")
    found = measure_batch(model, batch, "encoder", metrics)

    def under(subject: Subject, program: LayerProgram) -> Any:
        final = subject.execute(subject.streams[0], program)
        differ = differences(subject, subject.answer(subject.streams[-1]), subject.answer(final))
        return differ, subject.taps, subject.streams

    for sublayer, layer in itertools.product(range(2), range(2)):
        program = LayerProgram.full(2).ablate(layer, sublayer)
        expected, taps, streams = run(model, batch, "encoder", under, program)
        for name, stat in expected.items():
            total = found[f"sublayer_skip_{name}"].total[sublayer, layer]
            np.testing.assert_allclose(total, stat.total, rtol=1e-4, atol=1e-5, err_msg=name)
    for name in ("attention", "mlp"):
        np.testing.assert_array_equal(taps[f"{name}_onto"], streams[:-1])
    np.testing.assert_allclose(taps["attention"] + taps["mlp"], np.diff(streams, axis=0), atol=1e-5)
    assert found["local_effect"].total[0, 1].sum() > 0
