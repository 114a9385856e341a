"""One table for terminals and CSV files."""

import csv

from protlm_jax.evaluation.tables import Table


def test_text_is_aligned_and_csv_is_exact(tmp_path) -> None:
    table = Table(("layer", "loss"), [("encoder", 1 / 3), ("b", None), ("c", 12)])
    assert table.text().splitlines() == [
        "  layer      loss",
        "  encoder  0.3333",
        "  b             -",
        "  c            12",
    ]
    rows = list(csv.reader(table.csv(tmp_path / "a.csv").open()))
    assert rows == [["layer", "loss"], ["encoder", repr(1 / 3)], ["b", ""], ["c", "12"]]


def test_mappings_become_rows() -> None:
    table = Table.of([{"a": 1}, {"b": "x", "a": 2}])
    assert (list(table.columns), table.cells()) == (["a", "b"], [["1", "-"], ["2", "x"]])
    assert Table.of([{"a": 1, "b": 2}], ("b",)).cells() == [["2"]]
    assert Table(("a", "b"), []).text() == "  a  b"
