"""Values and dataclasses from JSON, config files and command lines, checked against types."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

from protlm_jax.errors import ProtlmError

T = TypeVar("T")

LONGEST = 4096  # characters of a text, which is a name or a path; entries of a tuple
LARGEST = 1 << 63  # numbers are smaller: steps and seeds are 64-bit integers


def from_fields(cls: type[T], fields: Any, place: str) -> T:
    """A dataclass from plain values as JSON holds them, each checked against its field's type.

    `place` names them in messages, as in "runs/mine/config.json: data". Raises a ProtlmError where
    `fields` is no object, a field is missing or unknown, or a value is of another type.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(fields, dict):
        raise ProtlmError(f"{place} must be an object with fields, and is {shown(fields)}")
    if unknown := [name for name in fields if name not in hints]:
        raise ProtlmError(
            f"{place}: unknown field {', '.join(map(repr, unknown[:3]))}; it was written by a "
            f"newer version (update protlm_jax) or edited by mistake"
        )
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        absent = dataclasses.MISSING
        required = field.default is absent and field.default_factory is absent
        if required and field.name not in fields:
            raise ProtlmError(f"{place} has no {field.name!r}: restore the file")
    return cls(**{n: typed(value, hints[n], f"{place}.{n}") for n, value in fields.items()})


def typed(value: Any, hint: Any, name: str) -> Any:
    """The value if it has the field's type and a plausible size; an int is accepted as a float.

    Raises:
        ProtlmError: otherwise; `name` is the field's full name.
    """
    origin = typing.get_origin(hint)
    allowed = [hint]
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            known = ", ".join(map(repr, choices))
            raise ProtlmError(f"{name} is {shown(value)}; choose one of {known}")
        return value
    if origin in (typing.Union, types.UnionType):
        allowed = list(typing.get_args(hint))
    plain = [typing.get_origin(kind) or kind for kind in allowed]
    if tuple in plain and isinstance(value, list):
        value = tuple(value)
    if tuple in plain and isinstance(value, tuple):
        _bounded(value, name)
        element = typing.get_args(allowed[plain.index(tuple)])[0]
        return tuple(typed(x, element, f"{name}[{i}]") for i, x in enumerate(value))
    if (bool not in plain and isinstance(value, bool)) or not isinstance(
        value, (*plain, int) if float in plain else tuple(plain)
    ):
        expected = " or ".join(kind.__name__ for kind in plain).replace("NoneType", "None")
        raise ProtlmError(f"{name} is {shown(value)}; it must be of type {expected}")
    _bounded(value, name)
    return float(value) if float in plain and int not in plain and type(value) is int else value


def _bounded(value: Any, name: str) -> None:
    if isinstance(value, str | tuple) and len(value) > LONGEST:
        what = "characters" if isinstance(value, str) else "entries"
        raise ProtlmError(f"{name} has {len(value):,} {what}; at most {LONGEST:,} are read")
    if isinstance(value, str) and any(c < " " or c == "\x7f" for c in value):
        raise ProtlmError(f"{name} is {shown(value)}; leave out its control characters")
    if isinstance(value, int | float) and not (abs(value) < LARGEST and math.isfinite(value)):
        raise ProtlmError(f"{name} is {shown(value)}; it must be finite and below 2^63")


def shown(value: Any, most: int = 80) -> str:
    """A value for a message: in one line, not too long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; a list in a list in ...
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."
