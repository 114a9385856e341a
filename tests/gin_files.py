"""What a gin recipe says, read without running it: T5X need not be installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gin.config_parser import (
    BindingStatement,
    ConfigParser,
    ImportStatement,
    IncludeStatement,
    ParserDelegate,
)

ROOT = Path(__file__).parents[1]


class _Text(ParserDelegate):
    """References and macros as they are written."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> str:
        return f"@{scoped_configurable_name}" + "()" * evaluate

    def macro(self, macro_name: str) -> str:
        return f"%{macro_name}"


class GinFile:
    """A file and all it includes: the last binding of each name counts, as in gin."""

    def __init__(self, path: str) -> None:
        self.values: dict[str, Any] = {}
        self.imports: set[str] = set()
        self._read(path)

    def _read(self, path: str) -> None:
        for statement in ConfigParser((ROOT / path).read_text(), _Text()):
            if isinstance(statement, IncludeStatement):
                self._read(statement.filename)
            elif isinstance(statement, ImportStatement):
                self.imports.add(statement.module)
            elif isinstance(statement, BindingStatement):
                scope = f"{statement.scope}/" if statement.scope else ""
                argument = f".{statement.arg_name}" if statement.arg_name else ""
                self.values[f"{scope}{statement.selector}{argument}"] = statement.value

    def __getitem__(self, name: str) -> Any:
        """The value of a binding, macros replaced by what they stand for."""
        value = self.values[name]
        while isinstance(value, str) and value.startswith("%"):
            value = self.values[value.removeprefix("%")]
        return value

    def arguments(self, configurable: str) -> dict[str, Any]:
        """All that is bound of one configurable, by the name of the argument."""
        prefix = f"{configurable}."
        names = [name for name in self.values if name.startswith(prefix)]
        return {name.removeprefix(prefix): self[name] for name in names}
