"""Maps show every point once, in the colour of its class, and say what was counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from report_pages import rows, specs, words

from protlm_jax.report.charts import scatters
from protlm_jax.report.maps import maps


def test_each_part_is_optional(mapped: dict[str, Any]) -> None:
    assert maps({}) == ""
    assert "Maps of proteins" not in maps({"residues": mapped["residues"]})
    assert "Map of the residues" not in maps({"proteins": mapped["proteins"]})


def test_claims_and_correlations_come_before_the_pictures(mapped: dict[str, Any]) -> None:
    text = " ".join(words(maps(mapped)).split())
    claim = (
        "10 nearest neighbours of the same location, this model minus random weights, points 20 "
        "18 to 22 0 higher"
    )
    assert text.index(claim) < text.index("Coloured by")
    assert "12 of 2,768 proteins of DeepLoc" in text
    assert "charge +0.50 (p 0.001) +0.10 (p 0.2) charges" in text


def test_every_map_has_every_protein(mapped: dict[str, Any]) -> None:
    (chart,) = specs(maps({"proteins": mapped["proteins"]}))
    points = rows(chart)
    assert len({point["map"] for point in points}) == 6
    for title in {point["map"] for point in points}:
        found = Counter(point["class"] for point in points if point["map"] == title)
        assert found == {"unknown": 1, "Nucleus (5)": 5, "Cytoplasm (4)": 4, "Peroxisome (2)": 2}


def test_letters_stand_for_residues(mapped: dict[str, Any]) -> None:
    for chart in specs(maps({"residues": mapped["residues"]})):
        for title in ("charge, this model", "charge, random weights"):
            letters = sorted(p["letter"] for p in rows(chart) if p["map"] == title)
            assert "".join(letters) == "ACDEFGHIKLMNPQRSTVWY"
        assert next(p for p in rows(chart) if p["letter"] == "T")["class"] == "negative"


def test_shapes_are_not_stretched() -> None:
    places = [[0, 0], [4, 0], [0, 2]]
    points = [{"map": "m", "name": str(i), "class": "a", "x": x, "y": y}
              for i, (x, y) in enumerate(places)]  # fmt: skip
    a, b, c = scatters(points, ["a"]).rows
    assert b["y"] == a["y"] and c["x"] == a["x"]
    assert b["x"] - a["x"] == pytest.approx(2 * (c["y"] - a["y"])) == 1.0
