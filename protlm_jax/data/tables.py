"""Reads tables of any origin: CSV and TSV files, plain or compressed, with a header line.

Commas, semicolons or tabs separate the cells, as in the header. Byte-order marks, line ends of any
system, quotes and pandas' words for missing values are read; anything else raises a ProtlmError
with file and line. (pandas' reader knows no line numbers.) Cells are stripped, empty rows are
skipped. Needs neither JAX nor TensorFlow.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import cast

from protlm_jax.data.sources import explained, open_source
from protlm_jax.errors import ProtlmError

MISSING = frozenset(
    ["", "NA", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "<NA>", "NULL", "null", "None"]
    + ["NaN", "nan", "NAN", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"]
)
"""Cells without a value: those of `pandas.read_csv`, and NAN."""

LONGEST_CELL = 1 << 24  # letters
MOST_CELLS = 1 << 26

_LONGEST_LINE = 1 << 26
_LONGEST_NUMBER = 1000  # digits; the time to read one grows with their square
_DELIMITERS = "\t;,"
_NAMES = {"\t": "tab", ";": "semicolon", ",": "comma"}
_TRIED = 100  # lines from which the delimiter is found
_SAVE = "save it as CSV (UTF-8)"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+", re.ASCII)  # as 53,921: thousands, or decimals


@dataclass(frozen=True)
class TextTable:
    """A table as it is in its file.

    Attributes:
        file: its path or URL.
        columns: unique names; a column without one is "Unnamed: 0" and so on, by its index.
        cells: the cells of each row, as many as columns unless `read_table` kept uneven rows.
        lines: the line at which each row begins, from 1.
        delimiter: comma, semicolon or tab.
    """

    file: Path | str
    columns: tuple[str, ...]
    cells: list[list[str]]
    lines: list[int]
    delimiter: str

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """Column -> cell of each row; a short row has no cells for its last columns."""
        return [dict(zip(self.columns, cells, strict=False)) for cells in self.cells]

    def column(self, name: str) -> list[str]:
        """The cells of one column, "" where a row is short."""
        return [row.get(name, "") for row in self.rows]

    def place(self, row: int, column: str | None = None) -> str:
        """The place of a row or cell, for messages; rows are counted from 0."""
        where = f"{self.file}, line {self.lines[row]}"
        return where if column is None else f"{where}, column {column!r}"

    def uneven(self, row: int) -> str:
        """The message about a row with too few or too many cells; "" for others."""
        count = len(self.cells[row])
        return "" if count == len(self.columns) else _uneven(count, self.columns, self.delimiter)

    def decimal(self, column: str) -> str:
        """The decimal sign of a column, "." or ",".

        A comma, where semicolons or tabs separate the cells, no cell of the column has a point, and
        not all cells are like 53,921, which may be thousands.
        """
        cells = [cell for cell in self.column(column) if cell not in MISSING]
        if self.delimiter == "," or any("." in cell for cell in cells):
            return "."
        commas = [cell for cell in cells if cell.count(",") == 1 and is_number(cell, ",")]
        return "," if any(not _GROUPED.fullmatch(cell) for cell in commas) else "."


def read_table(file: Path | str, *, keep_uneven: bool = False) -> TextTable:
    """Reads a whole table.

    Args:
        file: a local path, or a URL that `open_source` knows.
        keep_uneven: keep rows with more or fewer cells than the header, see `TextTable.uneven`.

    Raises:
        ProtlmError: it is missing, empty, damaged, too large or not text; its header names a
            column twice; it has no rows; quotes are not closed; or a row is uneven.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))  # a limit of the process
    file = file if "://" in str(file) else Path(file)
    lines = _lines(str(file))
    head = list(islice(lines, _TRIED))
    skipped = 0
    if head and (declared := re.fullmatch(r"sep=([,;\t])", head[0].strip("\r\n"))):
        delimiter, skipped = declared[1], 1  # a line that Excel understands
    else:
        delimiter = _delimiter(head)
    rows = _rows(str(file), chain(head[skipped:], lines), delimiter, skipped)
    first = next(rows, None)
    if first is None:
        raise ProtlmError(f"{file} holds no table; is it the right file?")
    columns = _columns(f"{file}, line {first[0]}", first[1])
    cells: list[list[str]] = []
    numbers: list[int] = []
    for number, row in rows:
        if len(row) != len(columns) and not keep_uneven:
            fault = _uneven(len(row), columns, delimiter)
            raise ProtlmError(f"{file}, line {number}: {fault}")
        if (len(cells) + 1) * len(columns) > MOST_CELLS:
            raise ProtlmError(
                f"{file}, line {number}: more than {MOST_CELLS:,} cells; split the table, or leave "
                "out columns"
            )
        cells.append(row)
        numbers.append(number)
    if not cells:
        raise ProtlmError(f"{file} holds no rows below its header; is it the right file?")
    return TextTable(file, columns, cells, numbers, delimiter)


def find_column(table: TextTable, names: Sequence[str]) -> str | None:
    """The column with the first of these names that exists, whatever its case, spaces and "_";
    raises ProtlmError where several columns have it, and none exactly."""
    for name in names:
        if name in table.columns:
            return name
        found = [column for column in table.columns if plain(column) == plain(name)]
        if len(found) > 1:
            raise ProtlmError(
                f"{table.file}: the columns {' and '.join(map(repr, found))} may both be {name!r}; "
                "rename one of them"
            )
        if found:
            return found[0]
    return None


def plain(name: str) -> str:
    """A column's name without case, spaces and "_"."""
    return re.sub(r"[\s_]+", "", name).casefold()


def is_number(text: str, decimal: str = ".") -> bool:
    """Whether a cell is a finite number."""
    text = _with_point(text, decimal)
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return False
    return math.isfinite(float(text))


def number(text: str, place: str, decimal: str = ".") -> float:
    """The number in a cell, nan where it is missing; `place` and `decimal` are of `TextTable`.
    Raises ProtlmError where it is infinite, or no number."""
    if text in MISSING:
        return math.nan
    if is_number(text, decimal):
        return float(_with_point(text, decimal))
    if _INFINITE.fullmatch(text) or _NUMBER.fullmatch(_with_point(text, decimal)):
        raise ProtlmError(
            f"{place}: {shortened(text)} is not finite; leave the cell empty where the value is "
            "unknown"
        )
    hint = f", with {decimal!r} before the decimals" if "," in text or "." in text else ""
    raise ProtlmError(
        f"{place}: {shortened(text)} is no finite number; write one{hint}, or leave the cell empty "
        "where the value is unknown"
    )


def shortened(text: str) -> str:
    """A cell in quotes, cut where it is long, for messages."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _with_point(text: str, decimal: str) -> str:
    """A number with a point before its decimals; "" where it has a point instead of its comma."""
    if decimal == ".":
        return text
    return "" if "." in text else text.replace(decimal, ".")


def _lines(path: str) -> Iterator[str]:
    """The lines of a file with their ends."""
    number = 0
    with explained(path, lambda: number), open_source(path) as source:
        _need_text(path, cast(io.BufferedReader, source).peek(4))
        text = io.TextIOWrapper(source, encoding="utf-8-sig", errors="surrogateescape", newline="")
        while line := text.readline(_LONGEST_LINE + 1):
            number += 1
            place = f"{path}, line {number}"
            if len(line) > _LONGEST_LINE:
                raise ProtlmError(f"{place}: more than {_LONGEST_LINE:,} letters in one line")
            if "\0" in line:
                raise ProtlmError(
                    f"{place}: a NUL byte: binary data, UTF-16, or a damaged file; {_SAVE}"
                )
            if not line.isascii() and (wrong := re.search("[\udc80-\udcff]", line)):
                raise ProtlmError(
                    f"{place}: not text in UTF-8 (byte 0x{ord(wrong[0]) - 0xDC00:02x}); {_SAVE}"
                )
            yield line


def _need_text(path: str, magic: bytes) -> None:
    """Refuses files that are often mistaken for a table."""
    if magic[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ProtlmError(f"{path} is text in UTF-16, not in UTF-8; {_SAVE}")
    if magic[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        raise ProtlmError(f"{path} is an Excel workbook or a ZIP archive, not text; {_SAVE}")


def _delimiter(head: list[str]) -> str:
    """The delimiter of the header that the first rows contain as often."""
    found: dict[str, int] = {}
    for delimiter in _DELIMITERS:
        reader = csv.reader(iter(head), delimiter=delimiter, skipinitialspace=True, strict=True)
        counts: list[int] = []
        try:
            counts += (len(row) for row in reader if any(cell.strip() for cell in row))
        except csv.Error:  # also where the last of these lines ends inside quotes
            if len(head) < _TRIED or reader.line_num < len(head):
                counts.append(0)
        if counts and counts[0] > 1:
            found[delimiter] = sum(count != counts[0] for count in counts)
    return min(found, key=found.__getitem__, default=",")


def _rows(
    path: str, lines: Iterator[str], delimiter: str, skipped: int
) -> Iterator[tuple[int, list[str]]]:
    """(line, stripped cells) of each row with content, the header first."""
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        number = skipped + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            what = f"{error}; close the quotes, and double those inside a quoted cell"
            if "field limit" in str(error):
                what = f"a cell of more than {LONGEST_CELL:,} letters; are its quotes closed?"
            raise ProtlmError(f"{path}, line {number}: {what}") from None
        if cells is None:
            return
        cells = [cell.strip() for cell in cells]
        if any(cells):
            yield number, cells


def _columns(place: str, header: list[str]) -> tuple[str, ...]:
    columns = [name or f"Unnamed: {i}" for i, name in enumerate(header)]
    seen: set[str] = set()
    for name in columns:
        if name in seen:
            raise ProtlmError(
                f"{place}: two columns are called {shortened(name)}; give every column a name of "
                "its own"
            )
        seen.add(name)
    return tuple(columns)


def _uneven(count: int, columns: Sequence[str], delimiter: str) -> str:
    return (
        f"{count} cells under {len(columns)} columns; put a cell with a {_NAMES[delimiter]} in it "
        "in quotes, and leave no column out"
    )
