"""Changes valid inputs at random: as bytes, as text, or as JSON. One generator, one result."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

Kind = Literal["bytes", "text", "json"]

NUMBERS = (
    *("0", "-1", "1", "2", "0.5", "1e309", "NaN", "-Infinity", "1e-320"),
    *("2147483648", "9223372036854775808", "1000000000000", "-9223372036854775809", "9" * 5000),
)
# JSON texts that replace a value of any type; the last ones are rarer.
VALUES = (
    *("null", "[]", "{}", '""', "true", "false", '"x"', '"\\u0000"', '"\\ud800"', '"../../x"'),
    *("[null]", "[[]]", '{"": null}', '"A\\nB"', '"é"', '"5"', *NUMBERS),
)
RARE_VALUES = ("[" * 200_000, "[" * 900 + "]" * 900, '{"a":' * 5000, f'"{"A" * 70_000}"')
WORDS = tuple(
    text.encode()
    for text in (
        *(*NUMBERS, "", " ", "\t", "\n", "\r\n", "\r", "\n\n", '"', "'", ",", ";", ">", "<", ":"),
        *("\0", "\ufeff", "é", "\u2028", "\u0663", "nan", "NA", "None", "1,5", "=1+1", "-", "*"),
    )
)
RARE_WORDS = (b"A" * 140_000, b"[" * 4000, b"-" * 4000, b",\n" * 2000)
TOKEN = re.compile(rb"[A-Za-z]+|[0-9]+|\s|.", re.DOTALL)


def mutated(
    kind: Kind, seeds: Sequence[bytes], words: Sequence[bytes], rng: random.Random
) -> tuple[bytes, str]:
    """One of the seeds with a few changes, and a description of these."""
    number = rng.randrange(len(seeds))
    data, said = seeds[number], [f"seed {number}"]
    while True:
        change: Callable[..., tuple[bytes, str]] = _bytes
        if kind == "json" and rng.random() < 0.8:
            change = _json
        elif kind == "text" and rng.random() < 0.6:
            change = _text
        data, how = change(data, rng, seeds, words)
        said.append(how)
        if rng.random() < 0.6:
            return data, "; ".join(said)


def _bytes(
    data: bytes, rng: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]
) -> tuple[bytes, str]:
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64, 1024)))
    match rng.randrange(8):
        case 0 if at < len(data):
            flipped = data[at] ^ (1 << rng.randrange(8))
            return data[:at] + bytes([flipped]) + data[at + 1 :], f"flip in byte {at}"
        case 1:
            return data[:at] + rng.randbytes(end - at or 1) + data[at:], f"bytes at {at}"
        case 2:
            return data[:at] + data[end:], f"without {at}:{end}"
        case 3:
            return data[:at], f"cut at {at}"
        case 4:
            return data[:at] + data[at:end] * rng.choice((2, 3, 50)) + data[end:], f"more of {at}"
        case 5:
            other = rng.choice(seeds)
            return data[:at] + other[rng.randrange(len(other) + 1) :], f"splice at {at}"
        case 6:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice((0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1)))
            order: Any = rng.choice(("little", "big"))
            return data[:at] + number.to_bytes(size, order) + data[at + size :], f"{number} at {at}"
        case _:
            word = _word(rng, words)
            return data[:at] + word + data[end:], f"{word[:20]!r} at {at}"


def _text(
    data: bytes, rng: random.Random, _: Sequence[bytes], words: Sequence[bytes]
) -> tuple[bytes, str]:
    by_line = rng.random() < 0.4
    parts = data.splitlines(keepends=True) if by_line else TOKEN.findall(data)
    if not parts:
        return _word(rng, words), "a word"
    at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    what = f"{'line' if by_line else 'token'} {at}"
    match rng.randrange(6):
        case 0:
            del parts[at]
            return b"".join(parts), f"without {what}"
        case 1:
            parts.insert(other, parts[at])
            return b"".join(parts), f"{what} again at {other}"
        case 2:
            parts[at], parts[other] = parts[other], parts[at]
            return b"".join(parts), f"{what} for {other}"
        case 3:
            old, new = rng.choice(((b"\n", b"\r\n"), (b"\n", b"\r"), (b",", b";"), (b",", b"\t")))
            return data.replace(old, new), f"{new!r} for {old!r}"
        case _:
            word = _word(rng, words)
            parts[at : at + rng.randrange(2)] = [word]
            return b"".join(parts), f"{word[:20]!r} at {what}"


def _word(rng: random.Random, words: Sequence[bytes]) -> bytes:
    if rng.random() < 0.02:
        return rng.choice(RARE_WORDS)
    return rng.choice(words if words and rng.random() < 0.5 else WORDS)


def _json(
    data: bytes, rng: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]
) -> tuple[bytes, str]:
    """One value, name or entry of a JSON text replaced, removed, doubled or moved."""
    try:
        tree = [json.loads(data)]
    except (ValueError, RecursionError):
        return _bytes(data, rng, seeds, words)
    parent, key, path = _place(tree, rng)
    value, filled = parent[key], {}
    match rng.randrange(8):
        case 0 if isinstance(parent, dict):
            name = rng.choice(("", "x", "name", key + "s", "9" * 30, "A" * 300, "../x"))
            parent[name] = parent.pop(key)
            how = f"{path} named {name[:20]!r}"
        case 1 if parent is not tree:
            del parent[key]
            how = f"{path} removed"
        case 2:
            other, there, of = _place(tree, rng)
            # A copy, as a tree that holds itself has no text.
            other[there] = json.loads(json.dumps(value))
            how = f"{of} becomes {path}"
        case 3 if isinstance(parent, dict):
            parent["\1"] = rng.choice((None, 1, "x", [], {}))
            filled = {'"\\u0001"': json.dumps(key)}
            how = f"{path} twice"
        case 3 | 4 if isinstance(parent, list) and parent is not tree:
            parent[key:key] = [value] * rng.choice((1, 2, 100))
            how = f"{path} repeated"
        case _:
            text = rng.choice(RARE_VALUES if rng.random() < 0.01 else VALUES)
            parent[key] = "\1"
            filled = {'"\\u0001"': text}
            how = f"{path} = {text[:20]}"
    text = json.dumps(tree[0])
    for mark, instead in filled.items():
        text = text.replace(mark, instead, 1)
    return text.encode(), how


def _place(tree: list[Any], rng: random.Random) -> tuple[Any, Any, str]:
    """A container, a key of it, and the path to what is there; upper ones are as likely as deep."""
    parent: Any = tree
    key: Any = 0
    path = "$"
    while isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.75:
        parent = parent[key]
        key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        path += f".{key}"
    return parent, key, path[:80]
