"""What a verb that reads many records says when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LISTED = 20  # records named in a summary; the output has all of them


@dataclass(frozen=True)
class Outcome:
    """What was done: the text for people, and how many records could not be used."""

    summary: str
    failed: int


def listed(items: Sequence[str], what: str) -> list[str]:
    """A count, and the first items, one a line."""
    if not items:
        return []
    more = [f"  ... and {len(items) - _LISTED:,} more"] if len(items) > _LISTED else []
    return [f"{len(items):,} {what}:", *(f"  {item}" for item in items[:_LISTED]), *more]
