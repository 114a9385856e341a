"""What the points of a map are coloured by: classes of proteins, properties of residues."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from protlm_jax.evaluation.probe_data import UNKNOWN, Benchmark, LabelledProtein, Target

_MOST_CLASSES = 10  # that eyes tell apart; the rarer ones are put together
_FIFTHS = 5


@dataclass(frozen=True)
class Colouring:
    """Classes of proteins in one respect.

    Attributes:
        classes: their names, the most frequent first, or `ordered` as steps of a scale.
        values: [n] class of each protein, -1 unknown.
    """

    title: str
    classes: tuple[str, ...]
    values: np.ndarray
    ordered: bool = False

    def to_dict(self) -> dict[str, Any]:
        counts = np.bincount(self.values[self.values >= 0], minlength=len(self.classes))
        return {
            "classes": list(self.classes),
            "counts": counts.tolist(),
            "values": self.values.tolist(),
            "ordered": self.ordered,
        }


def colourings(benchmark: Benchmark, proteins: Sequence[LabelledProtein]) -> list[Colouring]:
    """Colourings by labels of proteins (numbers in fifths), notes, and structural class.

    Those with fewer than two classes are left out.
    """
    found = []
    for target in benchmark.targets:
        if benchmark.level == "protein":
            found.append(_of_target(target, proteins))
        elif target.name == "q3":
            found.append(_of_names("structural class", [_structural(p) for p in proteins]))
    for title in dict.fromkeys(key for protein in proteins for key in protein.notes):
        found.append(_of_names(title, [protein.notes.get(title, "") for protein in proteins]))
    return [colour for colour in found if len(np.unique(colour.values[colour.values >= 0])) > 1]


def _of_target(target: Target, proteins: Sequence[LabelledProtein]) -> Colouring:
    labels = [p.labels.get(target.name) for p in proteins]
    if target.kind == "classes":
        numbers = [UNKNOWN if label is None else int(label) for label in labels]
        return _of_names(target.name, [target.classes[n] if n >= 0 else "" for n in numbers])
    values = np.array([np.nan if label is None else float(label) for label in labels])
    there = np.isfinite(values)
    if not there.any():
        return Colouring(target.name, (), np.full(len(values), UNKNOWN), ordered=True)
    edges = np.unique(np.quantile(values[there], np.linspace(0, 1, _FIFTHS + 1)))
    fifths = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
    classes = tuple(f"{a:.3g} to {b:.3g}" for a, b in itertools.pairwise(edges))
    return Colouring(target.name, classes, np.where(there, fifths, UNKNOWN), ordered=True)


def _of_names(title: str, names: Sequence[str]) -> Colouring:
    """Classes by name, "" being unknown; the most frequent first, and the rarest as "other"."""
    counts = Counter(name for name in names if name)
    classes = sorted(counts, key=lambda name: (-counts[name], name))
    if len(classes) > _MOST_CLASSES:
        classes = [name for name in classes if name != "other"][: _MOST_CLASSES - 1] + ["other"]
    index = {name: i for i, name in enumerate(classes)}
    values = [index.get(name, len(classes) - 1) if name else UNKNOWN for name in names]
    return Colouring(title, tuple(classes), np.array(values, np.int64))


def _structural(protein: LabelledProtein) -> str:
    """Structural class by content of helix and strand (Nakashima, Nishikawa and Ooi 1986)."""
    labels = protein.labels["q3"]
    known = labels[labels != UNKNOWN]
    if not known.size:
        return ""
    helix, strand = (float(np.mean(known == state)) for state in (0, 1))
    if helix > 0.15:
        return "helix and strand" if strand > 0.10 else "mostly helix"
    return "mostly strand" if strand > 0.10 else "little of either"


def residue_properties(letters: str) -> dict[str, dict[str, Any]]:
    """Name -> "values", their "groups" among three "classes", "unit" and "source"."""
    found = {}
    for name, (text, unit, source, classes, edges) in _PROPERTIES.items():
        words = text.split()
        of = dict(zip(words[::2], map(float, words[1::2]), strict=True))
        values = [of[letter] for letter in letters]
        found[name] = {
            "values": values,
            "unit": unit,
            "source": source,
            "classes": list(classes),
            "groups": np.searchsorted(edges, values).tolist(),
        }
    return found


# Name -> values, unit, source, three classes from low to high, and the edges between them.
_PROPERTIES = {
    "charge": (
        "A 0 C 0 D -1 E -1 F 0 G 0 H 0.1 I 0 K 1 L 0 M 0 N 0 P 0 Q 0 R 1 S 0 T 0 V 0 W 0 Y 0",
        "elementary charges at pH 7",
        "side-chain pKa; histidine, a tenth charged, counts as neutral",
        ("negative", "neutral", "positive"),
        (-0.5, 0.5),
    ),
    "size": (
        "A 88.6 R 173.4 N 114.1 D 111.1 C 108.5 Q 143.8 E 138.4 G 60.1 H 153.2 I 166.7 "
        "L 166.7 K 168.6 M 162.9 F 189.9 P 112.7 S 89.0 T 116.1 W 227.8 Y 193.6 V 140.0",
        "cubic angstrom",
        "volumes of Zamyatnin 1972",
        ("small", "medium", "large"),
        (120.0, 160.0),
    ),
    "hydrophobicity": (
        "A 1.8 R -4.5 N -3.5 D -3.5 C 2.5 Q -3.5 E -3.5 G -0.4 H -3.2 I 4.5 "
        "L 3.8 K -3.9 M 1.9 F 2.8 P -1.6 S -0.8 T -0.7 W -0.9 Y -1.3 V 4.2",
        "Kyte-Doolittle scale",
        "Kyte and Doolittle 1982",
        ("hydrophilic", "between", "hydrophobic"),
        (-2.5, 1.0),
    ),
}
