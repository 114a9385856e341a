"""What charts are drawn on: the plot area, its ticks and grid, and text at places.

Colours are CSS variables of the page (`--c0` ... `--c3`, `--k0` ... `--k9`, `--ink`, `--line`), so
that one drawing serves light and dark.
"""

from __future__ import annotations

import math
from html import escape

WIDTH = 480
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 12, 38


def number(value: object, digits: int = 3) -> str:
    """A short decimal; a dash for what is no finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}" if abs(value) < 1e4 else f"{value:,.0f}"


def ticks(low: float, high: float, most: int = 6, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`; whole ones if asked."""
    if not high - low > 1e-9 * abs(low):  # equal, or as good as equal in double precision
        spread = 1.0 if whole else abs(low) * 0.1 or 1.0
        low, high = low - spread, high + spread
    rough = (high - low) / (most - 1)
    if whole:
        rough = max(rough, 1.0)
    power = 10.0 ** math.floor(math.log10(rough))
    steps = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(power * m for m in steps if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


class Frame:
    """The plot area: data to page coordinates, grid and axis text."""

    def __init__(
        self, x_ticks: list[float], y_ticks: list[float], height: int, top: int = TOP
    ) -> None:
        self.x_ticks, self.y_ticks, self.height, self.top = x_ticks, y_ticks, height, top
        self.x_low, self.x_high = (x_ticks[0], x_ticks[-1]) if x_ticks else (0.0, 1.0)

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        room = self.height - self.top - BOTTOM
        return self.height - BOTTOM - (value - low) / (high - low) * room

    def axes(self, x_label: str, y_label: str) -> str:
        parts = []
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(text_at(LEFT - 6, y + 4, number(tick, 4), "tick end"))
        for tick in self.x_ticks:
            if self.x_low <= tick <= self.x_high:
                parts.append(text_at(self.x(tick), self.height - BOTTOM + 14, number(tick, 5)))
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(text_at(middle, self.height - 5, escape(x_label), "label"))
        parts.append(turned_at(11, (self.height - BOTTOM + self.top) / 2, y_label))
        return "".join(parts)

    def depths(self, layers: int | None) -> str:
        """An axis above the plot: x as a fraction of so many layers; nothing for None."""
        if not layers:
            return ""
        parts = [text_at((LEFT + WIDTH - RIGHT) / 2, 10, "relative depth")]
        for share in (0, 0.25, 0.5, 0.75, 1):
            if self.x_low <= share * layers <= self.x_high:
                at = self.x(share * layers)
                parts.append(f'<path class="axis" d="M{at:.1f} {self.top - 4}v4"/>')
                parts.append(text_at(at, self.top - 8, number(share)))
        return "".join(parts)


def text_at(x: float, y: float, text: str, style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{text}</text>'


def turned_at(x: float, y: float, text: str) -> str:
    turn = f'transform="rotate(-90 {x:.1f} {y:.1f})"'
    return f'<text class="label" {turn} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def colour_of(index: int) -> str:
    """The page's colour of the series at an index; four, and then ten others."""
    return f"var(--c{index})" if index < 4 else f"var(--k{index % 10})"
