"""Tables of results: one form for terminals, CSV files and report pages."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protlm_jax.storage.files import write_atomically


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]  # text, numbers, or None for a cell without a value

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> Table:
        """From mappings; without `columns`, the columns are all keys in order of appearance."""
        columns = columns or list(dict.fromkeys(key for row in rows for key in row))
        return cls(columns, [[row.get(column) for column in columns] for row in rows])

    def cells(self) -> list[list[str]]:
        """The rows as text: floats with four significant digits, "-" for None."""
        return [[_text(value) for value in row] for row in self.rows]

    def text(self) -> str:
        """Aligned lines for a terminal; the first column to the left, the others to the right."""
        lines = [list(self.columns), *self.cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  "
            + "  ".join(
                f"{cell:>{width}}" if index else f"{cell:<{width}}"
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def csv(self, file: str | Path) -> Path:
        """Writes a CSV file, whole or not at all; numbers in full, an empty cell for None.

        Raises:
            ProtlmError: the folder or the disk does not take it.
        """
        text = io.StringIO()
        csv.writer(text).writerows([self.columns, *self.rows])
        write_atomically(Path(file), text.getvalue())
        return Path(file)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
