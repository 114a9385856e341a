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
from depth_made import analysis, everything

from protlm_jax.evaluation import report
from protlm_jax.evaluation.depth.study import Member, study

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None
)
# Put behind the page's own script: does what a reader would, and writes down what came of it.
PROBE = """<script>
const seen = {}, one = selector => document.querySelector(selector);
const point = mark => {
  mark.scrollIntoView({ block: "center" });
  const box = mark.getBoundingClientRect();
  mark.dispatchEvent(new PointerEvent("pointermove", { bubbles: true,
    clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 }));
  return one(".tip").hidden ? "" : one(".tip").textContent;
};
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(each => { each.open = true; });
  seen.script = document.documentElement.dataset.script;
  seen.width = innerWidth;
  seen.page = document.documentElement.scrollWidth;
  seen.cell = point(one(".cell"));
  const box = one(".tip").getBoundingClientRect();
  seen.inside = box.left >= 0 && box.right <= innerWidth;
  seen.dot = point(one(".dot"));
  const shown = () => [...document.querySelectorAll("g[data-s]")].filter(
    g => getComputedStyle(g).display !== "none").length;
  const before = shown(), key = one(".legend span[role=button]");
  key.click(); seen.hid = before - shown();
  key.click(); seen.back = shown() === before;
  const shade = () => one(".cell:nth-of-type(4)").style.fillOpacity;
  const [linear, log, mean, largest] = document.querySelectorAll(".switches button");
  const even = shade();
  seen.buttons = [linear, log, mean, largest].map(button => button.textContent);
  log.click(); seen.log = shade() !== even;
  linear.click(); seen.linear = shade() === even;
  const end = () => one(".scale span:last-child").textContent, most = end();
  largest.click(); seen.largest = end() !== most;
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
    members = [Member(f"a_model_of_{n}_layers", "esm2", analysis(everything(n))) for n in (4, 12)]
    members.append(
        Member("control", "esm2", analysis(everything(4, 0.1)), control_of="a_model_of_4_layers")
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write(path, {"depths": study(members), "run": {"title": "What each layer does"}})
    path.write_text(path.read_text().replace("</body>", f"{PROBE}</body>"))
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
            "--window-size=1400,900", "--virtual-time-budget=2000", "--dump-dom",
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
    assert seen["script"].endswith("keys")
    assert seen["cell"].startswith("layer left out 0, later layer 1\n") and seen["inside"]
    assert re.search(r"\d \(.* to .*\)", seen["dot"])
    assert seen["hid"] >= 1 and seen["back"]
    assert seen["buttons"] == ["linear", "log", "mean", "largest"]
    assert seen["log"] and seen["linear"] and seen["largest"]
