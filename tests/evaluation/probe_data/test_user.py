"""The user's own files: what is written is what is read, and what is wrong is named.

What the columns of known layouts hold is in test_columns.py.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protlm_jax.data.tables import MISSING
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data import Benchmark, read_own
from protlm_jax.evaluation.probe_data.splits import fraction

SPLITS = ("train", "valid", "test", "test_far")
rows_of_table = st.lists(
    st.tuples(
        st.text("ACDEFGHIKLMNPQRSTVWY", min_size=1, max_size=12).filter(lambda s: s not in MISSING),
        st.sampled_from(SPLITS),
        st.one_of(st.none(), st.floats(-1e6, 1e6, width=32)),
        st.sampled_from(["", "in, side", 'out "side"', "Zelle ä"]),
    ),
    max_size=8,
)
NEEDED = [
    ("MKV", split, 0.5, place) for split, place in zip(SPLITS, ("in, side", "a") * 2, strict=True)
]


def write(path: Path, *rows: tuple[object, ...], separator: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return path


def everything(benchmark: Benchmark) -> dict[str, tuple[str, dict[str, object]]]:
    """id -> split and labels, spelled as in the file."""
    found = {}
    for split, read in benchmark.splits.items():
        for p in read():
            labels: dict[str, object] = {}
            for t in benchmark.targets:
                value = p.labels[t.name][()]
                labels[t.name] = float(value) if t.kind == "number" else (*t.classes, "")[value]
            found[p.id] = split, {"sequence": p.sequence, **labels}
    return found


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=rows_of_table, separator=st.sampled_from(",\t;"))
def test_a_table_is_read_as_it_was_written(
    tmp_path: Path, rows: list[tuple[str, str, float | None, str]], separator: str
) -> None:
    rows = [*NEEDED, *rows]
    lines = [
        (f"p{i}", s, split, "" if n is None else repr(n), c)
        for i, (s, split, n, c) in enumerate(rows)
    ]
    header = ("id", "sequence", "split", "dose:number", "place:classes")
    benchmark = read_own(write(tmp_path / "mine.csv", header, *lines, separator=separator))
    found = everything(benchmark)
    assert list(benchmark.splits) == list(SPLITS) and list(benchmark.views) == ["test", "test_far"]
    assert len(found) == len(rows)
    for i, (sequence, split, number, place) in enumerate(rows):
        where, labels = found[f"p{i}"]
        assert (where, labels["sequence"], labels["place"]) == (split, sequence, place)
        dose = labels["dose"]
        assert isinstance(dose, float)
        assert math.isnan(dose) if number is None else dose == np.float32(number)


def test_numbers_and_classes_are_recognised_or_stated(tmp_path: Path) -> None:
    header = ("sequence", "split", "grade", "melting", "count:number", "level:classes")
    body = [("MK" + "A" * i, s, i % 3, 40 + i / 2, i, i % 2) for i, s in enumerate(SPLITS * 4)]
    benchmark = read_own(write(tmp_path / "x.csv", header, *body))
    assert {t.name: (t.kind, t.classes) for t in benchmark.targets} == {
        "grade": ("classes", ("0", "1", "2")),
        "melting": ("number", ()),
        "count": ("number", ()),
        "level": ("classes", ("0", "1")),
    }
    assert any("grade: 3 different whole numbers" in note for note in benchmark.notes)


def test_without_a_split_the_sequence_decides(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = ["".join(rng.choice(list("ACDEFGHIKL"), 20)) for _ in range(300)]
    table = write(tmp_path / "x.csv", ("sequence", "y"), *((s, i / 7) for i, s in enumerate(drawn)))
    benchmark = read_own(table)
    sizes = {name: len(read()) for name, read in benchmark.splits.items()}
    assert sum(sizes.values()) == 300 and 15 < sizes["valid"] < 48 and 15 < sizes["test"] < 48
    where = {p.sequence: n for n, read in benchmark.splits.items() for p in read()}
    again = [*reversed(drawn), "MKVMKV", drawn[0].lower()]
    table = write(tmp_path / "y.csv", ("sequence", "y"), *((s, i / 7) for i, s in enumerate(again)))
    later = read_own(table)
    assert {p.sequence: n for n, r in later.splits.items() for p in r()}.items() >= where.items()
    assert "Relatives fall on both sides" in " ".join(later.notes)


def test_validation_is_taken_from_training_where_there_is_none(tmp_path: Path) -> None:
    body = [("MK" + "ACDEFG"[i % 6] * i, "test" if i < 5 else "train", i / 3) for i in range(99)]
    benchmark = read_own(write(tmp_path / "x.csv", ("sequence", "split", "y"), *body))
    taken = {p.sequence for p in benchmark.splits["valid"]()}
    assert taken == {s for s, split, _ in body if split == "train" and fraction(s, "valid") < 0.1}
    assert len(benchmark.splits["test"]()) == 5 and "no validation" in " ".join(benchmark.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,split,y\nMK,train,1\n", "line 1: no column 'sequence' among 'name'"),
        ("sequence,split\nMK,train\n", "no column holds labels; add one beside"),
        ("sequence,\nMK,1\n", "no column holds labels; 'Unnamed: 1' has no name"),
        ("sequence,y\nMK,1\n\nM*,2\n", "line 4, column 'sequence':.*position 2.*stop sign"),
        ("id,sequence,y\na,MK,1\nb,NaN,2\n", "line 3, column 'sequence': 'b' has no sequence"),
        ("id,sequence,y\na,MK,1\na,MV,2\n", "line 3: the id 'a' was used in line 2"),
        ("id,sequence,y\n,MK,1\na,MV,2\n", "line 2, column 'id': empty"),
        ("sequence,split,y\nMK,train,1\nMK,,2\n", "line 3, column 'split': 'row3' has no split"),
        ("sequence,split,y\nMK,train,1\nMV,x,2\nMA,y,3\n", r"'split': 'x' .line 3., 'y' .line 4."),
        ("sequence,split,y\nMK,train,1\nMV,valid,2\n", "none of its 2 proteins is in split 'test'"),
        (
            "sequence,split,y:number\nMK,train,1\nMV,valid,x\nMA,test,2\n",
            "line 3, column 'y:number': 'x' is no finite number",
        ),
        (
            "sequence,split,y\nMK,train,1\nMV,valid,1e39\nMA,test,1.5\n",
            "line 3, column 'y': '1e39' is beyond float32",
        ),
        (
            "sequence,split,y\nMK,train,a\nMV,valid,a\nMA,test,a\n",
            "'y' has the value 'a' everywhere: --targets NAME learns a column nevertheless",
        ),
        ("sequence,split,y\nMK,train,\nMV,valid,NA\nMA,test,\n", "'y' has no values"),
        (
            "sequence,split,y\nMK,train,1\nMV,valid,2\nMA,test,\n",
            "'y': no protein in split 'test' has a label",
        ),
    ],
)
def test_faults_of_a_table_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(text)
    with pytest.raises(ProtlmError, match=message) as error:
        read_own(file)
    assert "mine.csv" in str(error.value)


def fasta(path: Path, *entries: str) -> Path:
    path.write_text("".join(f">{entry}\n" for entry in entries))
    return path


def test_residues_from_a_pair_of_files_and_a_mask(tmp_path: Path) -> None:
    proteins = fasta(tmp_path / "s.fasta", "a\nMK\nVA", "b\nmku", "c\nMKV")
    labels = fasta(
        tmp_path / "l.fasta",
        "c SET=test\nHEH",
        "a SET=train VALIDATION=False\nHE\n?H",
        "b SET=train VALIDATION=True\nEEH",
    )
    mask = fasta(tmp_path / "m.fasta", "a\n0111", "b\n111", "c\n110")
    benchmark = read_own(proteins, labels, mask)
    assert benchmark.level == "residue" and benchmark.targets[0].classes == ("E", "H")
    found = {n: [(p.sequence, p.labels["label"].tolist()) for p in read()]
             for n, read in benchmark.splits.items()}  # fmt: skip
    assert found == {
        "train": [("MKVA", [-1, 0, -1, 1])],
        "valid": [("MKU", [0, 0, 1])],
        "test": [("MKV", [1, 0, -1])],
    }


def test_proteins_whose_headers_hold_the_label(tmp_path: Path) -> None:
    headers = ("a TARGET=in SET=train", "b TARGET=out SET=val", "c TARGET=in SET=test")
    found = read_own(fasta(tmp_path / "s.fasta", *(f"{h}\nMK{h[0].upper()}" for h in headers)))
    labels = {name: (split, of["target"]) for name, (split, of) in everything(found).items()}
    assert labels == {"a": ("train", "in"), "b": ("valid", "out"), "c": ("test", "in")}
    assert "target: never in training: out." in found.notes


VALUES = {"a": "2.73;999.0;;-1", "b": "0.5;NA;3", "c": "1;2"}
SEQUENCES = {"a": "MKVA", "b": "MKU", "c": "MK"}
SETS = {"a": "train", "b": "valid", "c": "test"}


@pytest.mark.parametrize("written", ["header", "files", "table"])
def test_values_of_residues_wherever_they_are_written(tmp_path: Path, written: str) -> None:
    if written == "header":
        entries = (
            f"{n} SET={SETS[n]} TARGET={VALUES[n]} MASK={'1' * len(s)}\n{s}"
            for n, s in SEQUENCES.items()
        )
        found = read_own(fasta(tmp_path / "x.fasta", *entries))
    elif written == "files":
        proteins = fasta(tmp_path / "x.fasta", *(f"{n}\n{s}" for n, s in SEQUENCES.items()))
        first = (f"{n} SET={SETS[n]}\n{v[:5]}\n{v[5:]}" for n, v in VALUES.items())  # wrapped
        files = [fasta(tmp_path / "zscore.fasta", *first)]
        files.append(fasta(tmp_path / "q3.fasta", "a\nHEEH", "b\nHH?", "c\nEE"))
        found = read_own(proteins, files, fasta(tmp_path / "m.fa", "a\n1111", "b\n111", "c\n10"))
        assert [(t.name, t.kind) for t in found.targets] == [
            ("zscore", "number"),
            ("q3", "classes"),
        ]
        assert found.splits["test"]()[0].labels["q3"].tolist() == [0, -1]
    else:
        rows = [(n, s, SETS[n], VALUES[n], "HEHE"[: len(s)]) for n, s in SEQUENCES.items()]
        header = ("id", "sequence", "set", "zscore", "q3")
        found = read_own(write(tmp_path / "x.csv", header, *rows))
        assert [t.name for t in found.targets] == ["zscore", "q3"]
    assert found.level == "residue"
    name = found.targets[0].name
    values = {p.id: p.labels[name].tolist() for read in found.splits.values() for p in read()}
    nan = math.nan
    last = [1.0, nan] if written == "files" else [1.0, 2.0]
    expected = {"a": [2.73, nan, nan, -1.0], "b": [0.5, nan, 3.0], "c": last}
    assert {n: pytest.approx(v, nan_ok=True) for n, v in expected.items()} == values
    assert (
        f"{name}: numbers of residues, from -1 to 3; 3 of 9 residues have none (1 of them 999"
        in (" ".join(found.notes))
    )


def test_faults_of_values_of_residues_are_named(tmp_path: Path) -> None:
    header = "{} SET={} TARGET={}\n{}"
    for text, message in (
        ("0.5;3", r"line 3, TARGET has 2 values for 3 residues"),
        ("0.5;x;3", r"line 3, TARGET, residue 2: 'x' is no finite number"),
    ):
        made = VALUES | {"b": text}
        entries = (header.format(n, SETS[n], made[n], s) for n, s in SEQUENCES.items())
        with pytest.raises(ProtlmError, match=message):
            read_own(fasta(tmp_path / "x.fasta", *entries))
    rows = [(s, SETS[n], VALUES[n], i / 7) for i, (n, s) in enumerate(SEQUENCES.items())]
    with pytest.raises(ProtlmError, match="'zscore' labels residues and 'dose' proteins"):
        read_own(write(tmp_path / "x.csv", ("sequence", "set", "zscore", "dose"), *rows))


@pytest.mark.parametrize(
    ("labels", "mask", "message"),
    [
        (["a\nHE"], None, "'b' has no labels in .*l.fasta"),
        (["a\nH", "b\nEE"], None, "line 1: 'a' has 1 letters for 2 residues"),
        (["a\nHE", "b\nEE", "c\nE"], None, "'c' has no sequence"),
        (["a\nHE", "a\nEE"], None, "line 3: the name 'a' a second time"),
        (["a\nHE", "b\nEE"], ["a\n11"], "'b' has no mask"),
        (["a\nHE", "b\nEE"], ["a\n11", "b\n12"], "line 3: a mask with other characters"),
        (["a SET=train\nHE", "b\nEE"], None, "'b' has no split, others have"),
    ],
)
def test_faults_of_a_pair_are_named(
    tmp_path: Path, labels: list[str], mask: list[str] | None, message: str
) -> None:
    proteins = fasta(tmp_path / "s.fasta", "a\nMK", "b\nMV")
    with pytest.raises(ProtlmError, match=message):
        read_own(
            proteins,
            fasta(tmp_path / "l.fasta", *labels),
            fasta(tmp_path / "m.fasta", *mask) if mask else None,
        )
    with pytest.raises(ProtlmError, match="s.fasta, line 1: 'a' has no label: write TARGET"):
        read_own(proteins)
