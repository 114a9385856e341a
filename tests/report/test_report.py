"""The page is whole, self-contained and safe, whichever sections there are."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import xarray
from depth_made import everything
from report_pages import specs, words

from protlm_jax import report
from protlm_jax.errors import ProtlmError

NASTY = "<script>alert('x')</script>&"


def estimate(value: float) -> dict[str, Any]:
    ends = {"low": value - 0.004, "high": value + 0.004}
    return {"value": value, "standard_error": 0.002, **ends, "proteins": 20}


@pytest.fixture
def results(probed: xarray.Dataset, mapped: dict[str, Any]) -> dict[str, Any]:
    about = json.loads(probed.attrs["benchmark"])
    probed.attrs["protocol"] = about["licence"] = about["title"] = NASTY
    about["targets"]["q3"]["classes"][0] = NASTY
    probed.attrs["benchmark"] = json.dumps(about)
    mapped["proteins"]["colours"]["location"]["classes"][0] = NASTY
    return {
        "run": {"command": NASTY, "config": {"name": NASTY}, "seconds": 300.0, NASTY: NASTY},
        "training": [
            {"step": 1, "hidden/nll": 2.9, "layers/encoder/grad_norm": [0.1, 0.2]},
            {"step": 2, "hidden/nll": 2.8, "layers/encoder/grad_norm": [0.1, 0.2]},
            {"step": 2, "heldout/nll": 2.85},
        ],
        "heldout": {
            "proteins": 20,
            "targets": 900,
            "entropy_of_training_frequencies": 2.886,
            "model": {"nll": estimate(2.75), "perplexity": 15.6, "accuracy": estimate(0.15)},
            "baselines": {"own_composition": {"nll": estimate(2.84)}},
            "model_minus": {"own_composition": estimate(-0.09)},
            "protocol": NASTY,
        },
        "probe": probed,
        "maps": mapped,
        "depth": [
            everything(layers).assign_attrs(model=f"{NASTY}{layers}", family=NASTY, positions=NASTY)
            for layers in (4, 6)
        ],
        "export": {"folder": NASTY, "max_difference": 1e-6},
    }


class Balance(HTMLParser):
    """Raises on tags that do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_writes_a_whole_page(tmp_path: Path, results: dict[str, Any]) -> None:
    path = tmp_path / "report.html"
    report.write(path, results)
    text = path.read_text(encoding="utf-8")
    checker = Balance()
    checker.feed(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    assert not checker.open
    for expected in ("2.750", "+10.0", "73.0", "Held-out proteins", "Who builds on whom"):
        assert expected in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_loads_nothing_and_escapes_everything(results: dict[str, Any]) -> None:
    text = report.render(results)
    scripts = re.findall(r"<script[ >]", text)
    assert len(scripts) == text.count("</script>") == 2 + len(specs(text))
    body = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "<script>alert" not in body and "&lt;script&gt;" in body
    assert not re.search(r"""(src|href)=|url\(|@import|https?://""", body)
    assert len(text) < 3_000_000


def test_numbers_of_a_chart_stand_below_it(results: dict[str, Any]) -> None:
    text = report.render({"heldout": results["heldout"]})
    below = words(text[text.index("Numbers of this chart") :])
    assert "this model 2.75 2.746 2.754" in " ".join(below.split())


def test_without_the_packages_for_charts_the_numbers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(results: object) -> str:
        raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")

    monkeypatch.setattr(report, "render", missing)
    with pytest.raises(
        ProtlmError, match=r"numbers are written.* jinja2 is missing.*'protlm-jax\[report\]'"
    ):
        report.write(tmp_path / "report.html", {})


@pytest.mark.parametrize(
    "left_out", ["run", "training", "heldout", "probe", "maps", "depth", "export", "everything"]
)
def test_every_section_is_optional(results: dict[str, Any], left_out: str) -> None:
    found = {key: one for key, one in results.items() if left_out not in (key, "everything")}
    text = report.render(found)
    assert text.startswith("<!doctype html>") and "</html>" in text


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ProtlmError, match=r"cannot write .*report.html: "):
        report.write(tmp_path / "file" / "report.html", {})
