"""Classes of proteins and properties of residues, as maps show them."""

from __future__ import annotations

import numpy as np
import pytest

from protlm_jax.evaluation.maps.colouring import colourings, residue_properties
from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein, Target, View
from protlm_jax.vocabularies import AMINO_ACIDS


def benchmark(level: str, *targets: Target) -> Benchmark:
    views = {"test": View("test", "Test")}
    return Benchmark("b", "B", level, targets, {}, views, "", "", ())  # type: ignore[arg-type]


def protein(label: object, **notes: str) -> LabelledProtein:
    return LabelledProtein("p", "MKV", {"t": np.array(label)}, notes=notes)


def test_common_classes_come_first_and_rare_ones_together() -> None:
    names = tuple(f"c{i}" for i in range(12))
    labels = [i for i in range(12) for _ in range(20 - i)] + [-1]
    data = benchmark("protein", Target("t", "classes", names))
    (found,) = colourings(data, [protein(label) for label in labels])
    assert found.classes == (*names[:9], "other")
    assert found.to_dict()["counts"] == [20 - i for i in range(9)] + [11 + 10 + 9]
    assert found.values[-1] == -1


def test_numbers_become_fifths_in_order() -> None:
    values = np.r_[np.random.default_rng(0).permutation(100), np.nan].astype(np.float32)
    data = benchmark("protein", Target("t", "number"))
    (found,) = colourings(data, [protein(value) for value in values])
    assert found.ordered and found.to_dict()["counts"] == [20] * 5
    assert found.values[-1] == -1
    assert [found.values[:-1][values[:-1] // 20 == i].tolist() for i in range(5)] == [
        [i] * 20 for i in range(5)
    ]


def test_structure_gives_a_class_and_notes_give_others() -> None:
    q3 = {"mostly helix": "HHHHHCCCCC", "mostly strand": "EEEEECCCCC",
          "helix and strand": "HHHEEECCCC", "little of either": "CCCCCCCCCH"}  # fmt: skip
    proteins = [
        LabelledProtein(
            name,
            "A" * 12,
            {"q3": np.array([*("HEC".index(s) for s in states), -1, -1])},
            notes={"kingdom": name[0]},
        )
        for name, states in q3.items()
    ]
    data = benchmark("residue", Target("q3", "classes", ("helix", "strand", "other")))
    structure, kingdom = colourings(data, proteins)
    assert [structure.classes[v] for v in structure.values] == list(q3)
    assert (kingdom.title, sorted(kingdom.classes)) == ("kingdom", ["h", "l", "m"])


def test_a_single_class_is_nothing_to_colour_by() -> None:
    data = benchmark("protein", Target("t", "classes", ("a", "b")), Target("u", "number"))
    assert colourings(data, [protein(0), protein(0), protein(-1)]) == []


def test_residues_have_every_property() -> None:
    found = residue_properties(AMINO_ACIDS)
    members = {
        name: {"".join(c for c, g in zip(AMINO_ACIDS, f["groups"], strict=True) if g == i): i
               for i in range(3)}
        for name, f in found.items()
    }  # fmt: skip
    assert members["charge"] == {"DE": 0, "ACFGHILMNPQSTVWY": 1, "KR": 2}
    assert members["hydrophobicity"] == {"DEHKNQR": 0, "GPSTWY": 1, "ACFILMV": 2}
    assert members["size"] == {"ACDGNPST": 0, "EHQV": 1, "FIKLMRWY": 2}
    # The scales agree on what everybody knows: I is the most hydrophobic, W the largest, G the
    # smallest.
    values = {name: dict(zip(AMINO_ACIDS, f["values"], strict=True)) for name, f in found.items()}
    assert max(values["hydrophobicity"], key=values["hydrophobicity"].get) == "I"  # type: ignore[arg-type]
    assert sum(values["charge"].values()) == pytest.approx(0.1)
