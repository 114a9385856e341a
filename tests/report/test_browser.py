"""The report in a browser, offline: no error, no sideways scrolling, and the script at work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from depth_made import everything

from protlm_jax import report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None
)
# Follows the page's own script: draws all charts, clicks the switches, and reports what it sees.
PROBE = """<script>
const seen = {};
const opacities = figure => [...figure.querySelectorAll(".mark-rect path")]
  .map(mark => mark.getAttribute("opacity")).join();
addEventListener("load", async () => {
  document.querySelectorAll("details").forEach(each => { each.open = true; });
  for (const figure of figures) await draw(figure);
  seen.charts = figures.length;
  seen.drawn = figures.filter(figure => figure.querySelector(".chart svg path")).length;
  seen.width = innerWidth;
  seen.page = document.documentElement.scrollWidth;
  const map = figures.find(figure => figure.querySelector("input[type=radio]"));
  const before = opacities(map);
  const [linear, log, mean, largest] = map.querySelectorAll("input[type=radio]");
  seen.switches = [linear, log, mean, largest].map(input => input.value);
  const press = async input => { input.click(); await new Promise(done => setTimeout(done, 50)); };
  await press(log); seen.log = opacities(map) !== before;
  await press(linear); seen.linear = opacities(map) === before;
  await press(largest); seen.largest = opacities(map) !== before;
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>"""


# A window is never as narrow as a phone; a frame can be.
FRAME = """<!doctype html><html><body><script>
addEventListener("message", event => { document.body.dataset.seen = event.data; });
</script><iframe src="report.html" style="border:0;width:{width}px;height:844px"></iframe>
</body></html>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stacks = [everything(n, name=f"a_model_of_{n}_layers") for n in (4, 12)]
    twin = everything(4, 0.1, name="control").assign_attrs(control_of="a_model_of_4_layers")
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write(path, {"depth": [*stacks, twin], "run": {"title": "What each layer does"}})
    before, end, after = path.read_text().rpartition("</body>")  # the library has one too
    path.write_text(f"{before}{PROBE}{end}{after}")
    return path


def opened(page: Path, width: int, folder: Path) -> tuple[dict[str, Any], str]:
    """What the probe saw, and the browser's log."""
    frame = page.with_name(f"frame_{width}.html")
    frame.write_text(FRAME.replace("{width}", str(width)))
    ran = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr", "--v=0", f"--user-data-dir={folder}",
            "--window-size=1400,900", "--virtual-time-budget=60000", "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'data-seen="([^"]*)"', ran.stdout)
    assert found, f"the probe did not end: {ran.stderr[-2000:]}"
    return json.loads(unescape(found[1])), ran.stderr


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_works_in_a_browser(page: Path, width: int, tmp_path: Path) -> None:
    seen, log = opened(page, width, tmp_path)
    assert not re.findall(r".*CONSOLE.*", log)
    assert seen["width"] == width and seen["page"] <= width
    assert seen["drawn"] == seen["charts"] > 40
    assert seen["switches"] == ["linear", "log", "mean", "largest"]
    assert seen["log"] and seen["linear"] and seen["largest"]
