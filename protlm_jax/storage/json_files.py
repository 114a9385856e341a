"""JSON files of any origin, read with bounds; and our own, which carry a digest of themselves."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged
from protlm_jax.storage.files import write_atomically

LARGEST = 1 << 28  # bytes; the largest that models bring, tokenizers, have a few million

DIGEST = "digest"


def read_json(file: Path, *, remedy: str = "copy it again") -> dict[str, Any]:
    """A JSON object from disk, without its digest, which is checked if `write_json` wrote one.

    Raises Damaged where the content does not match the digest, and ProtlmError, with the `remedy`,
    where the file is missing, cannot be read, is too large or too deep, or is no JSON object.
    """
    value = parse_json(read_text(file, remedy=remedy), file, remedy=remedy)
    if isinstance(digest := value.pop(DIGEST, None), str) and digest != digest_of_json(value):
        raise Damaged(
            f"{file} is not as it was written: {remedy}; if it was changed on purpose, delete its "
            f"line {DIGEST!r}"
        )
    return value


def parse_json(
    text: str | bytes, place: object, *, remedy: str = "copy it again"
) -> dict[str, Any]:
    """The JSON object of a text; `place` names it in messages. Raises a ProtlmError otherwise."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ProtlmError(f"{place} is not JSON ({error}): {remedy}") from error
    except RecursionError as error:
        raise ProtlmError(f"{place} is nested too deeply: {remedy}") from error
    if not isinstance(value, dict):
        raise ProtlmError(f"{place} must hold a JSON object: {remedy}")
    return value


def read_text(file: Path, *, largest: int = LARGEST, remedy: str = "copy it again") -> str:
    """The text of a small file; raises a ProtlmError for anything but readable UTF-8 of `largest`
    bytes.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a named pipe would be waited for
            raise ProtlmError(f"{file} is not an ordinary file")
        if status.st_size > largest:
            raise ProtlmError(
                f"{file} has {status.st_size:,} bytes, more than {largest:,}: {remedy}"
            )
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ProtlmError(f"{file} is not text in UTF-8 ({error}): {remedy}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ProtlmError(f"{file} cannot be read: {reason}") from error


def write_json(file: Path, value: dict[str, Any], *, indent: int | None = 1) -> None:
    """Writes an object of finite numbers with its digest, which `read_json` compares."""
    sealed = {**value, DIGEST: digest_of_json(value)}
    text = json.dumps(sealed, indent=indent, allow_nan=False)
    write_atomically(file, text + "\n")


def digest_of_json(value: Mapping[str, Any]) -> str:
    """Digest of a value as JSON, independent of the order of names and of spaces."""
    plain = json.loads(json.dumps(value))  # lists for tuples, text for names
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return "blake2b:" + hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
