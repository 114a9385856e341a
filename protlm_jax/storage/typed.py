"""Dataclasses made from JSON that anybody may have written or edited."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from protlm_jax.errors import ProtlmError

T = TypeVar("T")


def from_fields(cls: type[T], fields: Any, place: str) -> T:
    """A dataclass of plain fields, each checked against its type.

    Args:
        cls: a dataclass whose fields are numbers, text, booleans, None or a choice of texts.
        fields: what JSON holds.
        place: names it in messages, as in "runs/mine/config.json: data".

    Raises:
        ProtlmError: `fields` is no object, a field is missing or unknown, or a value is of another
            type; and what `cls` itself refuses.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(fields, dict):
        raise ProtlmError(f"{place} must be an object with fields, and is {_shown(fields)}")
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
    for name, value in fields.items():
        if not _fits(value, hints[name]):
            raise ProtlmError(
                f"{place}.{name} is {_shown(value)}; it must be {_named(hints[name])}"
            )
    return cls(**fields)


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, kind) for kind in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is (types.NoneType if hint is None else hint)


def _named(hint: Any) -> str:
    origin, words = typing.get_origin(hint), {str: "text", int: "a whole number"}
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_named, typing.get_args(hint)))
    if origin is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    words |= {float: "a number", bool: "true or false", types.NoneType: "null"}
    return words.get(hint, str(hint))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
