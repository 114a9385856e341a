"""The depth part of the report draws whatever was measured, and says what was not defined."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
from depth_made import analysis, by_noise, everything, measured, quantity
from report_pages import part, rows, specs

from protlm_jax import report
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
    assert len(specs(text)) == len(titles) - 1  # Odd is a table


@pytest.mark.parametrize("name", sorted(WHOLE.quantities))
def test_any_measurement_alone_is_a_report(name: str) -> None:
    one = dataclasses.replace(WHOLE, quantities={name: WHOLE.quantities[name]})
    text = rendered(one)
    drawn = specs(text) or "<td" in text
    # Other measures of the same changes are left to the table beside the report.
    assert drawn or name in ("base_accuracy", "skip_l2", "skip_nll", "lens_l2", "lens_kl",
                             "skip_top1_agreement")  # fmt: skip
    assert "NaN" not in text.split("<main>")[1].split("</main>")[0]


def test_nothing_measured_is_a_page_with_the_reasons() -> None:
    empty = dataclasses.replace(
        measured(6, {}), undefined={"swaps": "the model gives no distribution over residues"}
    )
    text = rendered(empty)
    assert "Not defined here" in text and "no distribution over residues" in text
    assert not specs(text) and len(text) < 20_000  # without charts, no library


def test_curves_have_bands_and_the_control_beside() -> None:
    members = [
        Member("mine", "esm2", analysis(WHOLE)),
        Member("mine-c", "esm2", analysis(everything(scale=0.1)), control_of="mine"),
    ]
    text = report.render({"depths": study(members)})
    (chart,) = specs(part(text, "What the answer loses without a layer"))
    points = rows(chart)
    assert len(points) == 4 * 6 and sum(p["dashed"] for p in points) == 2 * 6
    one = next(p for p in points if (p["series"], p["x"]) == ("divergence", 1))
    assert one["y"] == pytest.approx(0.5) and one["low"] < 0.5 < one["high"]
    assert {p["series"] for p in points if p["dashed"]} == {
        "divergence, re-initialised", "rise of loss, re-initialised"
    }  # fmt: skip
    (maps,) = specs(part(text, "Who builds on whom"))
    cells = rows(maps)
    assert len(cells) == 2 * 15 and all(c["column"] > c["row"] for c in cells)
    assert maps["facet"]["field"] == "map" and "largest" in cells[0]
    assert "Beside the re-initialised control" in text


def test_models_stand_side_by_side_and_make_a_trend() -> None:
    text = rendered(everything(4), everything(8))
    assert "Trend across depth: esm2, encoder" in text and "Models side by side" in text
    trend = text.split("Trend across depth")[1].split("</section>")[0]
    (chart,) = specs(trend)
    assert len(rows(chart)) == 4 * 2 and "From 4 to 8 layers" in trend
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
    (chart,) = specs(rendered(one))
    assert len(rows(chart)) == 3 * 3


def test_levels_of_noise_have_their_own_part() -> None:
    noisy = Member("mine", "dplm", analysis(WHOLE), noise=analysis(by_noise()))
    text = report.render({"depths": study([noisy])})
    noisy_part = text.split("With more or fewer residues hidden")[1]
    curve = rows(specs(part(noisy_part, "What the answer loses without a layer"))[0])
    last = next(p for p in curve if (p["series"], p["x"]) == ("divergence, 0.9 hidden", 0))
    assert last["y"] == pytest.approx(1.9)
    maps = specs(part(noisy_part, "Who builds on whom"))[0]
    assert {cell["map"] for cell in rows(maps)} == {"0.1 hidden", "0.5 hidden", "0.9 hidden"}
    assert "var(--s4)" in noisy_part
    # Effects grow with noise; contributions too, and where they are does not change.
    assert "From 0.1 to 0.9 of the residues hidden the mean contribution" in noisy_part
    assert "Whether the depth score changes from 0.1 to 0.9 of the residues hidden" in noisy_part
    body = noisy_part.split("<tbody>")[1].split("</tbody>")[0]
    assert body.count("<tr") == 3 and "With more" not in rendered(WHOLE)
