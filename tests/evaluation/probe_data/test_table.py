"""What the columns of known layouts hold, and that no column is used or left out unsaid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data import Benchmark, read_own

PLACES = ("Nucleus", "Cytoplasm", "Membrane")
PARTS = ("train", "train", "train", "valid", "test")


def protein(i: int) -> str:
    """A sequence of its own for each number."""
    return "M" + "".join("ACDEFGHIKLMNPQRSTVWY"[(i * k + k) % 20] for k in range(1, 10)) + "K" * i


def write(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def own(path: Path, header: str, row: str, count: int = 40, **asked: list[str]) -> Benchmark:
    """Reads rows of which {i} is the number, {s} the sequence, {p} a place and {t} a split."""
    rows = (row.format(i=i, s=protein(i), p=PLACES[i % 3], t=PARTS[i % 5], n=i / 7, b=i % 2)
            for i in range(count))  # fmt: skip
    return read_own(write(path, header, *rows), **asked)  # type: ignore[arg-type]


def targets(benchmark: Benchmark) -> dict[str, str]:
    return {t.name: t.kind for t in benchmark.targets}


def sizes(benchmark: Benchmark) -> dict[str, int]:
    return {name: len(read()) for name, read in benchmark.splits.items()}


def test_uniprot(tmp_path: Path) -> None:
    header = "Entry\tReviewed\tEntry Name\tProtein names\tOrganism\tLength\tMass\tSequence"
    row = "P{i:05}\treviewed\tA{i}_HUMAN\tProtein {i}\tHomo sapiens\t9\t53,921\t{s}"
    found = own(tmp_path / "u.tsv", header + "\tLocation", row + "\t{p}")
    assert targets(found) == {"Location": "classes"}
    notes = "\n".join(found.notes)
    assert "sequences from 'Sequence', names from 'Entry', labels from 'Location'" in notes
    for said in ("'Entry Name' identifies", "'Organism' describes", "'Length' describes"):
        assert said in notes
    assert found.splits["train"]()[0].id.startswith("P0") and "names no split" in notes
    header, row = header + "\tLocation\tEC", row + "\t{p}\t{b}"
    with pytest.raises(ProtlmError, match=r"--targets .* these may: 'Location', 'EC'"):
        own(tmp_path / "u.tsv", header, row)
    found = own(
        tmp_path / "u.tsv", header, row, targets=["location", "Organism:classes", "EC"][::2]
    )
    assert targets(found) == {"Location": "classes", "EC": "classes"}


def test_flip(tmp_path: Path) -> None:
    rows = [f"{protein(i)},{i / 3},{'train' if i < 8 else 'test'},{'True' if i < 2 else ''}"
            for i in range(12)]  # fmt: skip
    file = write(tmp_path / "flip.csv", "sequence,target,set,validation", *rows)
    found = read_own(file)
    assert targets(found) == {"target": "number"}
    assert sizes(found) == {"train": 6, "valid": 2, "test": 4}
    assert "split from 'set' and 'validation'" in found.notes[0]
    write(file, "sequence,target,set,validation", *rows[:-1], rows[-1] + "True")
    with pytest.raises(ProtlmError, match="line 13, column 'validation': 'row13' validates"):
        read_own(file)


@pytest.mark.parametrize(("name", "kind"), [("set", ""), ("fold", "classes")])
def test_unknown_words_of_a_split_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    file, header, row = tmp_path / "t.csv", f"sequence,y,{name}", "{s},{n},{p}"
    if kind:  # words of folds may be labels
        assert targets(own(file, header, row))[name] == kind
        return
    with pytest.raises(ProtlmError, match=r"'Nucleus' .line 2., .*or learn .* .--targets set."):
        own(file, header, row)
    assert list(targets(own(file, header, row, targets=["set"]))) == ["set"]


@pytest.mark.parametrize(
    ("header", "row", "learned", "note"),
    [
        (",SEQ,label", "{i},{s},{n}", {"label": "number"}, "'Unnamed: 0' has no name"),  # TAPE
        (
            "mutant,mutated_sequence,DMS_score,DMS_score_bin",  # ProteinGym
            "A{i}G,{s},{n},{b}",
            {"DMS_score": "number", "DMS_score_bin": "classes"},
            "sequences from 'mutated_sequence', names from 'mutant'",
        ),
        ("sequence;y;split", "{s};{i},5;{t}", {"y": "number"}, "y: numbers, from 0.5 to 39.5."),
    ],
)
def test_other_layouts(
    tmp_path: Path, header: str, row: str, learned: dict[str, str], note: str
) -> None:
    found = own(tmp_path / "t.csv", header, row)
    assert targets(found) == learned and note in "\n".join(found.notes)


def test_deeploc(tmp_path: Path) -> None:
    header = ",ACC,Kingdom,Partition,Membrane,Golgi apparatus,Sequence"
    row = "{i},Q{i},Metazoa,{b}.0,{b},{p},{s}"
    asked = {"targets": ["Membrane", "Golgi apparatus"]}
    with pytest.raises(ProtlmError, match=r"'0\.0' .line 2., '1\.0' .line 3.: .*--split Partition"):
        own(tmp_path / "d.csv", header, row, **asked)
    split = ["partition", "train=0.0", "test=1.0"]
    found = own(tmp_path / "d.csv", header, row, **asked, split=split)
    assert list(targets(found)) == asked["targets"]
    assert len(found.splits["test"]()) == 20 and "no validation" in "\n".join(found.notes)
    found = own(tmp_path / "d.csv", header, row, **asked, split=["random"])
    assert "The split of the file is not used" in "\n".join(found.notes)


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("cluster", "c{b}", "divides the proteins"),
        ("fold", "{b}", "divides the proteins"),
        ("accession", "P{b}", "identifies the proteins"),
        ("Taxon ID", "9606{b}", "describes the proteins"),
        ("measured", "2020-01-{i:02}", "holds dates"),
        ("whatever", "name {i}", "looks like names or numbers, not classes"),
        ("number", "{i}", "counts the rows"),
        ("extent", "{length}", "holds the length of the sequences"),
        ("seq", "MKV", "holds other sequences"),
        ("batch", "7", "has the value '7' everywhere"),
        ("empty", "NA", "has no values"),
    ],
)
def test_what_is_no_label_is_said(tmp_path: Path, column: str, cell: str, reason: str) -> None:
    rows = [(protein(i), PARTS[i % 5], PLACES[i % 3]) for i in range(30)]
    filled = [cell.format(i=i, b=i % 2, length=len(row[0])) for i, row in enumerate(rows)]
    lines = (",".join([*row, last]) for row, last in zip(rows, filled, strict=True))
    file = write(tmp_path / "t.csv", f"sequence,split,place,{column}", *lines)
    found = read_own(file)
    assert targets(found) == {"place": "classes"}
    assert f"Not learned: '{column}' {reason}" in found.notes[1]
    if len(set(filled)) > 1:  # there is something to learn
        assert list(targets(read_own(file, targets=[column]))) == [column]


def test_missing_values_are_counted_and_numbers_stay_numbers(tmp_path: Path) -> None:
    header, row = "id,sequence,charge,hydro,split", "{i},{s},{p},{n},{t}"
    file = tmp_path / "t.csv"
    own(file, header, row)
    lines = file.read_text().splitlines()
    words = ("", "NA", "NaN", "NULL", "N/A", "None", "<NA>")
    for i, word in enumerate(words, start=1):
        fields = lines[3 * i].split(",")
        lines[3 * i] = ",".join([*fields[:2], word, word, fields[4]])
    file.write_text("\n".join(lines))
    found = read_own(file)
    assert targets(found) == {"charge": "classes", "hydro": "number"}
    assert found.targets[0].classes == tuple(sorted(PLACES))
    for name in ("charge", "hydro"):
        assert f"7 of 40 proteins have no label in '{name}', and take no part in it." in found.notes
    values = [p.labels["hydro"] for read in found.splits.values() for p in read()]
    assert int(np.isnan(values).sum()) == 7
    for wrong, why in (("inf", "is not finite"), ("ND", "is no finite number")):
        fields = lines[4].split(",")
        fields[3] = wrong
        file.write_text("\n".join([*lines[:4], ",".join(fields), *lines[5:]]))
        with pytest.raises(ProtlmError, match=f"t.csv, line 5, column 'hydro': '{wrong}' {why}"):
            read_own(file)


def test_several_labels_in_a_cell_are_never_classes_unsaid(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    cells = ["Nucleus", "Nucleus|Cytoplasm", "Cytoplasm", "Membrane | Nucleus", ""]
    rows = [f"{protein(i)},{('train', 'valid', 'test')[i // 10]},{cells[i % 5]}" for i in range(30)]
    write(file, "sequence,split,loc", *rows)
    wrong = r"12 of 24 labels hold '\|', as 'Nucleus\|Cytoplasm' \(line 3\): use --multilabel loc"
    with pytest.raises(ProtlmError, match=wrong):
        read_own(file)
    as_it_is = read_own(file, targets=["loc:classes"])
    assert len(as_it_is.targets[0].classes) == 4
    several = read_own(file, multilabel=["loc"])
    names = ["loc=Cytoplasm", "loc=Membrane", "loc=Nucleus"]
    assert [(t.name, t.classes) for t in several.targets] == [(n, ("no", "yes")) for n in names]
    labels = [[int(p.labels[n]) for n in names] for p in several.splits["train"]()[:5]]
    assert labels == [[0, 0, 1], [1, 0, 1], [1, 0, 0], [0, 1, 1], [-1, -1, -1]]
    assert "12 of 24 proteins have several" in "\n".join(several.notes)
    alike = own(file, "sequence,split,loc", "{s},{t},x;{b}")
    assert alike.targets[0].classes == ("x;0", "x;1")
    assert "40 of 40 labels hold ';', as 'x;0' (line 2); each is taken" in "\n".join(alike.notes)


def test_what_stands_on_both_sides_is_counted(tmp_path: Path) -> None:
    rows = ["a,MKV,Train,1.5", "b,MKV,TRAINING,2.5", "c,MKA,dev,1.5", "d,MKV,Val,1.5"]
    rows += ["e,MKA,Test,2", "f,MKL,testing,1", "g,MKI,train,2.5"]
    found = read_own(write(tmp_path / "t.csv", "id,sequence,Set,y", *rows))
    assert sizes(found) == {"train": 3, "valid": 2, "test": 2}
    notes = "\n".join(found.notes)
    assert (
        "WARNING: 1 of 2 validation proteins have the sequence of a training protein (d); " in notes
    )
    assert (
        "1 of 2 test proteins have the sequence of a training or validation protein (e)." in notes
    )
    assert "1 sequences are in training several times with different labels in 'y' (a)" in notes


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"targets": ["z"]}, "no column is called 'z'; there is 'sequence', 'split', 'y'"),
        ({"split": ["z"]}, "no column is called 'z'"),
        ({"split": ["a", "b"]}, "--split a b: give one column"),
        ({"split": ["random", "train=1"]}, "give one column, or 'random'"),
        ({"multilabel": ["z"]}, "no column is called 'z'"),
    ],
)
def test_what_is_asked_must_be_there(
    tmp_path: Path, asked: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(ProtlmError, match=message):
        own(tmp_path / "t.csv", "sequence,split,y", "{s},{t},{i}.0", **asked)
