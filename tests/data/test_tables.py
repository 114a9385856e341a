"""Tables of any origin: what was written is what is read, all else is one error with its line."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from protlm_jax.data import tables
from protlm_jax.data.tables import TextTable, find_column, is_number, number, read_table
from protlm_jax.errors import ProtlmError

quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
cells = st.text(
    st.one_of(st.sampled_from("abA1,;\t\"' \n|"), st.characters(exclude_categories=["Cs", "Cc"])),
    max_size=8,
)


def written(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@quick
@given(data=st.data(), delimiter=st.sampled_from(",;\t"), end=st.sampled_from(["\n", "\r\n"]),
       quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
       bom=st.booleans())  # fmt: skip
def test_what_a_writer_writes_is_read(
    tmp_path: Path, data: st.DataObject, delimiter: str, end: str, quoting: int, bom: bool
) -> None:
    names = st.lists(st.text("abcXYZ _|/", min_size=1).map(str.strip).filter(bool), min_size=2,
                     max_size=4, unique=True)  # fmt: skip
    columns = data.draw(names)
    row = st.lists(cells, min_size=len(columns), max_size=len(columns))
    rows = data.draw(st.lists(row, min_size=1, max_size=5))
    assume(any(any(cell.strip() for cell in cells) for cells in rows))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([columns, *rows])
    table = read_table(written(tmp_path / "t.csv", "\ufeff" * bom + text.getvalue()))
    stripped = [[cell.strip() for cell in cells] for cells in rows]
    assert table.columns == tuple(columns) and table.delimiter == delimiter
    assert table.cells == [cells for cells in stripped if any(cells)]


@quick
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text("ab,;\t\"\n\r\0é'=", max_size=60).map(str.encode),
        st.binary(max_size=20).map(lambda data: b"a,b\n" + data),
        st.binary(max_size=20).map(lambda data: gzip.compress(b"a\tb\n1\t2", mtime=0)[:-1] + data),
    )
)
def test_any_bytes_are_a_table_or_one_error(tmp_path: Path, data: bytes) -> None:
    file = written(tmp_path / "any.csv", data)
    try:
        table = read_table(file)
    except ProtlmError as error:
        assert "any.csv" in str(error)
    else:
        assert table.cells and len(table.lines) == len(table.cells)
        assert all(len(row) == len(table.columns) for row in table.cells)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_counted_whatever_ends_them(tmp_path: Path, compress: object, end: str) -> None:
    text = end.join(["", "a,b", "1,2", "", '"x', 'y",3', " , ", "4,5"])
    table = read_table(written(tmp_path / "t.csv", compress(text.encode())))  # type: ignore[operator]
    assert table.lines == [3, 5, 8] and table.rows[2] == {"a": "4", "b": "5"}
    assert table.place(1, "b") == f"{tmp_path}/t.csv, line 5, column 'b'"


@pytest.mark.parametrize(
    ("text", "columns", "delimiter"),
    [
        ("a;b,c\n1;2,5\n", ("a", "b,c"), ";"),
        ("id,stability [kcal;mol]\np,1\n", ("id", "stability [kcal;mol]"), ","),
        ("Entry\tGO (process; function)\nP1\tx; y\n", ("Entry", "GO (process; function)"), "\t"),
        ('"a, b";c\n1;2\n', ("a, b", "c"), ";"),
        ("mutant\nA1G;A2G\n", ("mutant",), ","),
        ("sep=;\na;b\n1;2\n", ("a", "b"), ";"),
        (",a\n0,x\n", ("Unnamed: 0", "a"), ","),
    ],
)
def test_the_header_says_what_separates_cells(
    tmp_path: Path, text: str, columns: tuple[str, ...], delimiter: str
) -> None:
    table = read_table(written(tmp_path / "t", text))
    assert (table.columns, table.delimiter) == (columns, delimiter)
    assert len(table.cells) == 1 and table.lines[0] == text.count("\n")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "holds no table"),
        (b"a,b\n", "no rows below its header"),
        (b"a,b\n1,2,3\n", "line 2: 3 cells under 2 columns.*comma"),
        (b"a\tb\n1\n", "line 2: 1 cells under 2 columns.*tab"),
        (b"a,a\n1,2\n", "line 1: two columns are called 'a'"),
        (b'a,b\n1,"2\n3,4\n', "line 2: .*close the quotes"),
        (b"a,b\n1,\0\n", "line 2: a NUL byte"),
        (b"a,b\n1,2\n1,\xe9\n", "line 3: not text in UTF-8 .byte 0xe9"),
        ("a\tb\n1\t2\n".encode("utf-16"), "UTF-16.*save it as CSV"),
        (b"PK\x03\x04 and more", "Excel.*save it as CSV"),
        (gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-9], "is truncated"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ProtlmError, match=message):
        read_table(written(tmp_path / "t.csv", data))
    with pytest.raises(ProtlmError, match="cannot read .*No such file"):
        read_table(tmp_path / "none.csv")


def test_long_cells_are_read_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "t.csv", "id,sequence\np," + "M" * 200_000 + "\n")
    assert len(read_table(file).rows[0]["sequence"]) == 200_000
    written(file, "a,b\n1,2\n3," + "M" * (tables.LONGEST_CELL + 1) + "\n")
    with pytest.raises(ProtlmError, match="line 3: a cell of more than 16,777,216 letters"):
        read_table(file)
    monkeypatch.setattr(tables, "MOST_CELLS", 3)
    with pytest.raises(ProtlmError, match="line 3: more than 3 cells"):
        read_table(written(file, "a,b\n1,2\n3,4\n"))


def test_uneven_rows_are_kept_where_asked(tmp_path: Path) -> None:
    file = written(tmp_path / "t.csv", "a,b\n1,2,3\n4\n5,6\n")
    table = read_table(file, keep_uneven=True)
    assert table.cells == [["1", "2", "3"], ["4"], ["5", "6"]] and table.column("b") == [
        "2",
        "",
        "6",
    ]
    assert [bool(table.uneven(row)) for row in range(3)] == [True, True, False]


def table_of(delimiter: str, *values: str) -> TextTable:
    return TextTable(Path("t"), ("y",), [[value] for value in values], [], delimiter)


def test_decimal_commas_count_where_they_cannot_separate_cells() -> None:
    assert table_of(";", "0,5", "1").decimal("y") == "," == table_of("\t", "1,25", "").decimal("y")
    assert table_of(",", "0,5").decimal("y") == "." == table_of(";", "0,5", "0.5").decimal("y")
    assert table_of("\t", "53,921", "7,000").decimal("y") == "."  # UniProt's thousands
    assert table_of("\t", "53,921", "0,7").decimal("y") == ","
    assert number("0,5", "here", ",") == 0.5 and number("-1e-3", "here") == -1e-3
    assert all(np.isnan(number(word, "here")) for word in ("", "NA", "NaN", "NULL", "#N/A", "<NA>"))
    for text, decimal in [("53,921", "."), ("1.5", ","), ("1_0", "."), ("٣", "."), ("x", ".")]:
        assert not is_number(text, decimal)
        with pytest.raises(ProtlmError, match="^here: .* is no finite number"):
            number(text, "here", decimal)
    for text in ("inf", "-Infinity", "1e999", "9" * 2000):
        with pytest.raises(ProtlmError, match="^here: '.* finite"):
            number(text, "here")


def test_columns_are_found_in_any_case() -> None:
    table = TextTable(Path("t"), ("Entry Name", "SEQUENCE", "DMS_score"), [], [], ",")
    assert find_column(table, ["seq", "sequence"]) == "SEQUENCE"
    assert find_column(table, ["entry_name"]) == "Entry Name"
    assert find_column(table, ["dms score"]) == "DMS_score" and find_column(table, ["x"]) is None
    twice = TextTable(Path("t"), ("Seq", "SEQ", "id", "ID"), [], [], ",")
    assert find_column(twice, ["id"]) == "id"
    with pytest.raises(ProtlmError, match="'Seq' and 'SEQ' may both be 'seq'"):
        find_column(twice, ["seq"])
