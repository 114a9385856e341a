"""What a page of the report holds: its text, its tables, and the charts as Vega-Lite."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

_SPEC = re.compile(r'<script type="application/json">(.*?)</script>', re.DOTALL)


def specs(text: str) -> list[dict[str, Any]]:
    """Every chart of a page or a piece of one."""
    return [json.loads(found) for found in _SPEC.findall(text)]


def rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The numbers that a chart draws."""
    found: list[dict[str, Any]] = spec["data"]["values"]
    return found


def words(text: str) -> str:
    """The text of a piece, as a reader sees it."""
    return unescape(re.sub(r"<[^>]*>", " ", _SPEC.sub("", text))).replace("\u00a0", " ")


def part(text: str, title: str) -> str:
    """From a heading to the next."""
    return re.split("<h[23]>", text.split(f">{title}</h", 1)[1])[0]
