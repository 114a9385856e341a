"""The depth part of the report draws whatever was measured, and says what was not defined."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import xarray
from depth_made import by_noise, everything, measured, quantity
from report_pages import part, rows, specs

from protlm_jax import report
from protlm_jax.evaluation.depth.results import PARTS, combined, names, separate
from protlm_jax.evaluation.results import read, save
from protlm_jax.report.depth_panels import PANELS

WHOLE = everything()


def rendered(*stacks: xarray.Dataset) -> str:
    named = [one.assign_attrs(model=f"m{i}") for i, one in enumerate(stacks)]
    return report.render({"depth": named})


def test_every_measurement_has_its_section() -> None:
    text = rendered(WHOLE)
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    counts = Counter(titles)
    assert all(counts[panel.title] == 1 for panel in PANELS)
    assert "with a trained map" in text and "run twice" in text and "4 layers" in text
    # Quantities without a panel: by their dimensions a chart, or a table.
    assert "Swap by level kl" in titles and "level 0.1" in text and "level 0.5" in text
    assert "Odd" in titles and "<th>corner</th><th>side</th>" in text
    assert len(specs(text)) == len(titles) - 1  # Odd is a table


@pytest.mark.parametrize("name", sorted(names(WHOLE)))
def test_any_measurement_alone_is_a_report(name: str) -> None:
    mine = [x for x in WHOLE.data_vars if str(x) in {name, *(f"{name}_{p}" for p in PARTS)}]
    one = WHOLE[mine].assign_coords(protein=WHOLE["protein"])
    text = rendered(one)
    drawn = specs(text) or "<td" in text
    # Other measures of the same changes are left to the table beside the report.
    assert drawn or name in ("base_accuracy", "skip_l2", "skip_nll", "lens_l2", "lens_kl",
                             "skip_top1_agreement")  # fmt: skip
    assert "NaN" not in text.split("<main>")[1].split("</main>")[0]


def test_nothing_measured_is_a_page_with_the_reasons() -> None:
    reasons = {"swaps": "the model gives no distribution over residues"}
    empty = measured(6, {}).assign_attrs(undefined=json.dumps(reasons))
    text = rendered(empty)
    assert "Not defined here" in text and "no distribution over residues" in text
    assert not specs(text) and len(text) < 20_000  # without charts, no library


def test_curves_have_bands_and_the_control_beside() -> None:
    twin = everything(scale=0.1, name="mine-c").assign_attrs(control_of="mine")
    text = report.render({"depth": [WHOLE.assign_attrs(model="mine"), twin]})
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
    assert "this model - its re-initialised copy" in text and "<th>re-initialised</th>" in text


def test_models_stand_side_by_side_and_make_a_trend() -> None:
    text = rendered(everything(4), everything(8))
    assert "Trend across depth: esm2, encoder" in text and "Models side by side" in text
    trend = text.split("Trend across depth")[1].split("</section>")[0]
    (chart,) = specs(trend)
    assert len(rows(chart)) == 4 * 2 and "8 layers - 4 layers" in trend
    assert "layer 3 of 8" in text and "after 4 of 4 layers" in text
    assert "Trend" not in rendered(everything(4), everything(4, 0.5))


def test_a_page_of_results_from_a_file_is_the_same_page(tmp_path) -> None:
    """Models of other depths, parts and proteins come back from one file as they went in."""
    other = measured(
        3, {"cosine": quantity(("part", "layer"), [[0.1] * 3] * 2, 0.1, 5)}, "other", 5,
        part=("layer", "cross_attention"), protein=[f"q{i}" for i in range(5)],
    )  # fmt: skip
    stacks = [WHOLE, everything(4, name="small"), other]
    again = separate(read(save(combined(stacks), tmp_path / "results.nc")))
    for one, back in zip(stacks, again, strict=True):
        assert back.attrs == one.attrs and list(back) == list(one)
        for name, x in one.variables.items():
            xarray.testing.assert_equal(back[name].variable, x)
    assert report.render({"depth": again}) == report.render({"depth": stacks})


def test_undefined_layers_are_gaps() -> None:
    """ESM-2's first layer has no relative contribution at hidden residues."""
    parts = [[float("nan"), 0.5, 0.4, 0.3]] * 3
    one = measured(4, {"relative_contribution": quantity(("part", "layer"), parts, 0.01)})
    (chart,) = specs(rendered(one))
    assert len(rows(chart)) == 3 * 3


def test_levels_of_noise_have_their_own_part() -> None:
    text = report.render({"depth": [WHOLE, by_noise()]})
    noisy_part = text.split("With more or fewer residues hidden")[1]
    curve = rows(specs(part(noisy_part, "What the answer loses without a layer"))[0])
    last = next(p for p in curve if (p["series"], p["x"]) == ("divergence, 0.9 hidden", 0))
    assert last["y"] == pytest.approx(1.9)
    maps = specs(part(noisy_part, "Who builds on whom"))[0]
    assert {cell["map"] for cell in rows(maps)} == {"0.1 hidden", "0.5 hidden", "0.9 hidden"}
    assert "var(--s4)" in noisy_part
    assert "late contribution, 0.9 hidden - 0.1 hidden" in noisy_part
    body = noisy_part.split("<tbody>")[2].split("</tbody>")[0]
    assert body.count("<tr") == 3 and "With more" not in rendered(WHOLE)
