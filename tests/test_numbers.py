"""Numbers in documents that came from runs are those of the results in the repository."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


numbers = load("document_numbers")


@pytest.mark.parametrize("document", numbers.DOCUMENTS, ids=lambda file: file.name)
def test_marked_numbers_are_their_results(document: Path) -> None:
    text = document.read_text()
    assert numbers.renewed(text) == text, "python benchmarks/document_numbers.py writes them"
    assert text.count("<!--=") == len(numbers.MARK.findall(text))  # each mark is closed


@pytest.mark.parametrize("document", numbers.DOCUMENTS[1:], ids=lambda file: file.name)
def test_a_number_with_an_error_bar_is_marked(document: Path) -> None:
    """An error bar comes from a run. The study's tables are written from its results as a whole."""
    text = numbers.MARK.sub("", document.read_text())
    text = re.sub(r"<!-- tables, written.*end of tables -->", "", text, flags=re.DOTALL)
    assert re.findall(r"\d ± \d", text) == []


def test_each_result_says_its_command() -> None:
    for file in sorted(numbers.RESULTS.glob("*.json")):
        command = numbers.found(file.stem, "command")
        script = re.search(r"benchmarks/\w+\.py", command)
        assert command.startswith("protlm ") or (script and (ROOT / script[0]).exists())


def test_formats_and_missing_results() -> None:
    estimate = {"value": 0.7384, "standard_error": 0.0031}
    cases = [
        (estimate, "1%", "73.8 ± 0.3"),
        (estimate, "+3", "+0.738 ± 0.003"),
        (2.8954, "3", "2.895"),
    ]
    cases += [({"mean": 0.0016, "half": 0.0036}, "4", "0.0016 ± 0.0036"), (140486, ",", "140,486")]
    for entry, form, expected in cases:
        assert numbers.formatted(entry, form) == expected
    with pytest.raises(Exception, match="no 'nothing' in the results"):
        numbers.renewed("<!--=study:proteins/nothing:1-->1<!--/-->")
