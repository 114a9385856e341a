"""The depth part of the report draws whatever was measured, and says what was not defined."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
from depth_made import analysis, by_noise, everything, measured, quantity

from protlm_jax.evaluation import report
from protlm_jax.evaluation.depth.plain import plain
from protlm_jax.evaluation.depth.results import Measured
from protlm_jax.evaluation.depth.study import Member, study

NASTY = "<script>alert('x')</script>&"
WHOLE = everything()


def rendered(*stacks: Measured, family: str = "esm2") -> str:
    members = [Member(f"m{i}", family, analysis(stack)) for i, stack in enumerate(stacks)]
    return report.render({"depths": study(members)})


def test_every_measurement_has_its_section() -> None:
    text = rendered(WHOLE)
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    for title in (
        "Who builds on whom",
        "Who reads whom directly",
        "What the answer loses without a layer",
        "Layers exchanged, or run twice",
        "Blocks of layers left out",
        "Blocks of layers in the opposite order",
        "Reading the answer early",
        "Until where a residue is needed",
        "Where the evidence lies",
        "Angle between depths",
        "Likeness of depths",
        "Directions in use",
    ):
        assert titles.count(title) == 1, title
    assert "with a trained map" in text and "run twice" in text and "4 layers" in text
    # A quantity that the report was not told of, by its dimensions; one of unknown ones as a table.
    assert "Swap by level kl" in titles and "level 0.1" in text and "level 0.5" in text
    assert "Odd" in titles and "<th>corner</th><th>side</th>" in text


@pytest.mark.parametrize("name", sorted(WHOLE.quantities))
def test_any_measurement_alone_is_a_report(name: str) -> None:
    one = dataclasses.replace(WHOLE, quantities={name: WHOLE.quantities[name]})
    text = rendered(one)
    drawn = "<svg" in text or "<td" in text
    # Other measures of the same changes are left to the table beside the report.
    assert drawn or name in ("base_accuracy", "skip_l2", "skip_nll", "lens_l2", "lens_kl",
                             "skip_top1_agreement")  # fmt: skip
    assert "nan" not in text.split("</style>")[1].split("<script>")[0]


def test_nothing_measured_is_a_page_with_the_reasons() -> None:
    empty = dataclasses.replace(
        measured(6, {}), undefined={"swaps": "the model gives no distribution over residues"}
    )
    text = rendered(empty)
    assert "Not defined here" in text and "no distribution over residues" in text
    assert "<svg" not in text.split("<main>")[1].split("<script>")[0]


def test_curves_have_bands_and_the_control_beside() -> None:
    members = [
        Member("mine", "esm2", analysis(WHOLE)),
        Member("mine-c", "esm2", analysis(everything(scale=0.1)), control_of="mine"),
    ]
    text = report.render({"depths": study(members)})
    chart = text.split("<h3>What the answer loses without a layer</h3>")[1].split("<h3>")[0]
    assert chart.count('class="band"') == 4 and chart.count("stroke-dasharray") == 2
    assert chart.count('class="dot"') == 4 * 6
    assert "divergence, layer left out 1: 0.5 (0.49" in chart
    assert "rise of loss, re-initialised" in chart
    maps = text.split("<h3>Who builds on whom</h3>")[1].split("<h3>")[0]
    assert maps.count("<svg") == 2 and maps.count('class="cell"') == 2 * 15
    assert "layer left out 0, later layer 1\n1 (" in maps and "\nlargest 1.0" in maps
    shade = [float(x) for x in re.findall(r"fill-opacity:([\d.]+)", maps)]
    assert max(shade[:15]) == 1.0 and max(shade[15:]) == pytest.approx(0.145), "one scale"
    assert "Beside the re-initialised control" in text


def test_models_stand_side_by_side_and_make_a_trend() -> None:
    text = rendered(everything(4), everything(8))
    assert "Trend across depth: esm2, encoder" in text and "Models side by side" in text
    trend = text.split("Trend across depth")[1].split("</section>")[0]
    assert trend.count('class="dot"') == 4 * 2 and "From 4 to 8 layers" in trend
    assert "layer 3 of 8" in text and "after 4 of 4 layers" in text
    assert "Trend" not in rendered(everything(4), everything(4, 0.5))


def test_names_are_escaped() -> None:
    found = study([Member(NASTY, NASTY, analysis(everything(n), NASTY), NASTY) for n in (4,)])
    found["models"]["b"] = found["models"][NASTY]
    text = report.render({"depths": found})
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_results_are_json_and_come_back() -> None:
    found: dict[str, Any] = plain(analysis(WHOLE))
    again = json.loads(json.dumps(found, allow_nan=False))
    assert report.render({"depth": again}) == report.render({"depth": found})


def test_undefined_layers_are_gaps() -> None:
    """ESM-2's first layer has no relative contribution at hidden residues."""
    parts = [[float("nan"), 0.5, 0.4, 0.3]] * 3
    one = measured(4, {"relative_contribution": quantity(("part", "layer"), parts, 0.01)})
    text = rendered(one)
    assert text.count('class="dot"') == 3 * 3


def test_levels_of_noise_have_their_own_part() -> None:
    noisy = Member("mine", "dplm", analysis(WHOLE), noise=analysis(by_noise()))
    text = report.render({"depths": study([noisy])})
    part = text.split("With more or fewer residues hidden")[1]
    assert "0.9 hidden, layer left out 0: 1.9 (" in part
    assert "<figcaption><b>0.5 hidden</b>" in part and part.count("var(--s4)") > 0
    # Effects grow with noise; contributions too, and where they are does not change.
    assert "From 0.1 to 0.9 of the residues hidden the mean contribution" in part
    assert "Whether the depth score changes from 0.1 to 0.9 of the residues hidden" in part
    rows = part.split("<tbody>")[1].split("</tbody>")[0]
    assert rows.count("<tr") == 3 and "With more" not in rendered(WHOLE)
