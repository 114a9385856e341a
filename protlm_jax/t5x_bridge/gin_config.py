"""What stands in the config.gin that T5X writes into a model_dir, read without gin.

Gin would import all that the file names, T5X too; the few values asked for here are literals.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from protlm_jax.errors import ProtlmError

FILE = "config.gin"


def bound(model_dir: Path, name: str) -> dict[str, str]:
    """Values bound to the parameters of a configurable, as they are written, macros resolved.

    Args:
        model_dir: without a config.gin in it nothing is bound.
        name: of the configurable, without its module: "T5Config".
    """
    file = model_dir / FILE
    if not file.exists():
        return {}
    text = file.read_text().replace("\\\n", " ")  # gin breaks lines that are long
    macros = dict(re.findall(r"^(\w+) *= *(.+)$", text, re.MULTILINE))
    found = re.findall(rf"^(?:[\w.]+\.)?{name}\.(\w+) *= *(.+)$", text, re.MULTILINE)
    return {field: _resolved(value.strip(), macros) for field, value in found}


def literal(model_dir: Path, field: str, value: str) -> Any:
    """The value of what `bound` found.

    Raises:
        ProtlmError: it is no literal, but a reference to something.
    """
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise ProtlmError(
            f"{model_dir / FILE}: {field} is {value}, which T5X alone can tell: write its value"
        ) from error


def _resolved(value: str, macros: dict[str, str]) -> str:
    seen: set[str] = set()
    while value.startswith("%") and value not in seen:
        seen.add(value)
        value = macros.get(value[1:], value).strip()
    return value
