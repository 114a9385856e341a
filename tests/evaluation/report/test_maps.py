"""Maps show every point once, in the colour of its class, and say what was counted."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest

from protlm_jax.evaluation.report import panels
from protlm_jax.evaluation.report.maps import maps


def test_each_part_is_optional(mapped: dict[str, Any]) -> None:
    assert maps({}) == ""
    assert "Maps of proteins" not in maps({"residues": mapped["residues"]})
    assert "Map of the residues" not in maps({"proteins": mapped["proteins"]})


def test_numbers_come_before_the_pictures(mapped: dict[str, Any]) -> None:
    text = maps(mapped).replace("\u00a0", " ")
    said = "50.0 ± 1.0 % share its location (random weights 30.0 ± 1.0 %, chance 25 %). Beside"
    assert text.index(said) < text.index("<svg")
    assert (
        "standard errors: more in location." in text and "12 of 2,768 proteins of DeepLoc" in text
    )
    assert "residues go with charge (+0.50, p 0.001); with random weights, with none" in text


def test_as_many_neighbours_is_not_more(mapped: dict[str, Any]) -> None:
    mapped["proteins"]["neighbours"]["location"]["difference"] |= {"value": 0.01}
    assert "two standard errors: as many in location." in maps(mapped).replace("\u00a0", " ")


def test_every_map_has_every_protein(mapped: dict[str, Any]) -> None:
    text = maps({"proteins": mapped["proteins"]})
    drawn = ElementTree.fromstring(f"<div>{text}</div>").findall(".//svg")
    assert len(drawn) == 6
    for chart in drawn:
        members = {
            path.find("title").text: path.get("d", "").count("M")  # type: ignore[union-attr]
            for path in chart.findall("path")
        }
        assert members == {"unknown": 1, "Nucleus": 5, "Cytoplasm": 4, "Peroxisome": 2}
    assert "Nucleus <small>5</small>" in text and "unknown <small>1</small>" in text


def test_letters_stand_for_residues(mapped: dict[str, Any]) -> None:
    text = maps({"residues": mapped["residues"]})
    root = ElementTree.fromstring(f"<div>{text}</div>")
    for chart in root.findall(".//svg"):
        letters = sorted(t.text or "" for t in chart.findall("text"))
        assert "".join(letters) == "ACDEFGHIKLMNPQRSTVWY"
    assert re.search(r'class="letter s0"[^>]*>T<title>T: negative', text)


def test_letters_are_moved_apart_and_no_farther() -> None:
    places = [(100.0, 100.0), (100.0, 100.0), (104.0, 100.0), (300.0, 300.0)]
    moved = np.array(panels._apart(places))
    gaps = np.linalg.norm(moved[:3, None] - moved[None, :3], axis=-1)[np.triu_indices(3, 1)]
    assert gaps.min() > 24.9 and np.linalg.norm(moved[:3] - [101, 100], axis=1).max() < 26
    assert tuple(moved[3]) == (300, 300)


def test_shapes_are_not_stretched() -> None:
    chart = panels.scatter([[0, 0], [4, 0], [0, 2]], [0, 0, 0], ["a"])
    (path,) = re.findall(r'd="(M[^"]+)"', chart)
    (ax, ay), (bx, by), (cx, cy) = (
        map(float, p.split()) for p in re.findall(r"M([\d. ]+)h0", path)
    )
    assert by == ay and cx == ax
    assert bx - ax == pytest.approx(2 * (ay - cy), abs=1) and ay - cy > 100


def test_dots_stand_in_order_with_their_errors() -> None:
    from protlm_jax.evaluation.report.svg import Series

    chart = panels.dot_chart(
        [("A", "5 proteins"), ("B", "6 proteins")],
        [
            Series("one", [1.0, 2.0], error=[0.1, None]),
            Series("two", [1.5, None], error=[0.1, None]),
        ],
        x_label="x",
    )
    root = ElementTree.fromstring(f"<div>{chart}</div>")
    first, second, third = (float(c.get("cx", "")) for c in root.findall(".//circle"))
    assert first < second < third
    assert "A, one: 1 ± 0.1" in chart
