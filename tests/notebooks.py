"""Runs the code cells of a notebook in one namespace, as a kernel would, without one."""

from __future__ import annotations

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any


def run_notebook(path: Path, changes: dict[str, Any]) -> list[tuple[str, Any]]:
    """Text that each code cell printed, and the value of its last expression.

    Args:
        path: the notebook.
        changes: names that are given another value as soon as a cell has assigned them.
    """
    cells = json.loads(path.read_text())["cells"]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body[-1]
        expression = ast.Expression(last.value) if isinstance(last, ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            for statement in tree.body[: -1 if expression else None]:
                exec(compile(ast.Module([statement], []), path.name, "exec"), namespace)
                namespace |= {name: x for name, x in changes.items() if name in namespace}
            value = eval(compile(expression, path.name, "eval"), namespace) if expression else None
        outputs.append((printed.getvalue(), value))
    return outputs
