"""What labels mean: numbers or classes, one to a protein or several at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from protlm_jax.data.tables import MISSING, is_number, number, shortened
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import UNKNOWN, Kind, Target
from protlm_jax.evaluation.probe_data.columns import FEW, mostly_numbers, names

SEPARATORS = "|;"
_MOST = {"classes": 2000, "labels": 200}
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Column:
    """Labels as they are written.

    Attributes:
        name: of the target.
        kind: "classes" or "number", "" where nobody says.
        cells: one for each protein.
        places: where each stands, for messages.
        file: in which they stand, likewise.
        decimal: sign of its numbers.
        several: a cell holds several labels at once.
    """

    name: str
    kind: str
    cells: Sequence[str]
    places: Sequence[str]
    file: str
    decimal: str = "."
    several: bool = False


@dataclass(frozen=True)
class Labels:
    """A target with the values [] of all proteins."""

    target: Target
    values: list[np.ndarray]


def labels_of(column: Column) -> tuple[list[Labels], list[str]]:
    """The targets that a column holds, and what to say about them.

    Raises:
        ProtlmError: no protein has a label; a number is none, or not finite; classes are too many
            or too few; or it is not clear whether cells hold several labels.
    """
    cells = ["" if cell in MISSING else cell for cell in column.cells]
    labelled = sum(map(bool, cells))
    where = f"{column.file}, column {column.name!r}"
    if not labelled:
        raise ProtlmError(f"{where}: no protein has a label; name another one in --targets")
    notes = []
    if bare := len(cells) - labelled:
        notes.append(
            f"{bare:,} of {len(cells):,} proteins have no label in {column.name!r}, and take no "
            "part in it."
        )
    if column.several:
        found, more = _several(column, cells, where)
    else:
        one, more = _one(column, cells, where)
        found = [one]
    return found, more + notes


def _one(column: Column, cells: list[str], where: str) -> tuple[Labels, list[str]]:
    kind, notes = column.kind, list[str]()
    different = set(cells) - {""}
    if not kind:
        kind, notes = _recognised(column, different)
    if kind == "number":
        values = _numbers(column, cells)
        low, high = np.nanmin(values), np.nanmax(values)
        return Labels(Target(column.name, "number"), values), [
            f"{column.name}: numbers, from {low:g} to {high:g}.",
            *notes,
        ]
    if not column.kind:
        notes += _refuse_several(column, cells, where)
    classes = sorted(different, key=_in_order)
    if len(classes) < 2 or len(classes) > _MOST["classes"]:
        raise ProtlmError(
            f"{where}: {len(classes):,} classes in {sum(map(bool, cells)):,} labels; a head learns "
            f"2 to {_MOST['classes']:,}: name another column in --targets"
        )
    codes = {name: code for code, name in enumerate(classes)} | {"": UNKNOWN}
    values = [np.array(codes[cell], np.int16) for cell in cells]
    notes.insert(0, f"{column.name}: {len(classes):,} classes: {_listed(classes)}.")
    counts = Counter(cell for cell in cells if cell)
    if names([cell for cell in cells if cell], column.decimal):
        single = sum(count == 1 for count in counts.values())
        notes.append(
            f"WARNING: {single:,} of {len(classes):,} classes of {column.name!r} have one protein: "
            "are they names or numbers?"
        )
    folded = Counter(name.casefold() for name in classes)
    if alike := [name for name in classes if folded[name.casefold()] > 1]:
        notes.append(f"WARNING: classes of {column.name!r} differ in case alone: {_listed(alike)}.")
    return Labels(Target(column.name, cast(Kind, kind), tuple(classes)), values), notes


def _recognised(column: Column, different: set[str]) -> tuple[str, list[str]]:
    """ "classes" or "number", and what to say where it could be the other."""
    name = column.name
    if not mostly_numbers(different, column.decimal):
        return "classes", []
    whole = all(re.fullmatch(r"[+-]?\d+([.,]0*)?", value, re.ASCII) for value in different)
    if len(different) <= FEW and whole:
        return "classes", [
            f"{name}: {len(different)} different whole numbers, taken for classes; head the column "
            f"'{name}:number', or say --targets '{name}:number', if they are measured."
        ]
    return "number", []


def _numbers(column: Column, cells: list[str]) -> list[np.ndarray]:
    found = []
    for cell, place in zip(cells, column.places, strict=True):
        value = number(cell, place, column.decimal)
        if abs(value) > _LARGEST:
            raise ProtlmError(f"{place}: {shortened(cell)} is beyond float32; use another unit")
        found.append(np.array(value, np.float32))
    return found


def _separator(cells: Sequence[str]) -> str | None:
    return next((sign for sign in SEPARATORS if any(sign in cell for cell in cells)), None)


def _split(cell: str, separator: str) -> list[str]:
    return [part for part in dict.fromkeys(map(str.strip, cell.split(separator))) if part]


def _refuse_several(column: Column, cells: list[str], where: str) -> list[str]:
    """What to say about classes with a separator in them."""
    sign = _separator(cells)
    if sign is None:
        return []
    counts = Counter(part for cell in set(cells) for part in _split(cell, sign))
    joined = [i for i, cell in enumerate(cells) if len(_split(cell, sign)) > 1]
    mixed = [i for i in joined if any(counts[part] > 1 for part in _split(cells[i], sign))]
    alike = len({len(_split(cell, sign)) for cell in cells if cell}) == 1  # as "EC1|oxygen"
    first = (mixed or joined or [0])[0]
    place = column.places[first].removeprefix(f"{column.file}, ").partition(", ")[0]
    what = (
        f"{len(joined):,} of {sum(map(bool, cells)):,} labels hold {sign!r}, as "
        f"{shortened(cells[first])} ({place})"
    )
    several = f"--multilabel {_word(column.name)}"
    if mixed and not alike:
        raise ProtlmError(
            f"{where}: {what}: say {several} to learn several labels at once, or --targets "
            f"{_word(column.name + ':classes')} to take each combination for a class of its own"
        )
    if not joined:
        return []
    return [
        f"WARNING: {column.name}: {what}; each is taken for one class ({several} learns its parts)."
    ]


def _several(column: Column, cells: list[str], where: str) -> tuple[list[Labels], list[str]]:
    """Each label as a target of its own, with the classes no and yes."""
    sign = _separator(cells) or SEPARATORS[0]
    parts = [_split(cell, sign) for cell in cells]
    counts = Counter(part for of_one in parts for part in of_one)
    labelled = sum(map(bool, parts))
    learned = sorted((n for n, count in counts.items() if count < labelled), key=_in_order)
    if not learned or len(learned) > _MOST["labels"]:
        raise ProtlmError(
            f"{where}: {len(learned):,} labels to learn at once, separated by {sign!r}; there must "
            f"be 1 to {_MOST['labels']}"
        )
    found = []
    for name in learned:
        target = Target(f"{column.name}={name}", "classes", ("no", "yes"))
        codes = [int(name in of_one) if of_one else UNKNOWN for of_one in parts]
        found.append(Labels(target, [np.array(code, np.int16) for code in codes]))
    joined = sum(len(of_one) > 1 for of_one in parts)
    notes = [
        f"{column.name}: {len(learned)} labels at once, separated by {sign!r}, each learned as yes "
        f"or no; {joined:,} of {labelled:,} proteins have several."
    ]
    if always := [name for name in counts if counts[name] == labelled]:
        notes.append(f"{column.name}: all proteins have {_listed(always)}: nothing to learn.")
    return found, notes


def _in_order(name: str) -> tuple[float, str]:
    return (float(name), name) if is_number(name) else (np.inf, name)


def _listed(found: Sequence[str]) -> str:
    return ", ".join(map(shortened, found[:10])) + (", ..." if len(found) > 10 else "")


def _word(text: str) -> str:
    return text if re.fullmatch(r"[\w.:/-]+", text) else repr(text)
