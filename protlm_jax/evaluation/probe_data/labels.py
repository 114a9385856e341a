"""Columns of labels: numbers or classes, one to a protein or several at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protlm_jax.data.tables import MISSING, is_number, number, shortened
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import UNKNOWN, Target

FEW = 10  # this many different values may be classes even if each occurs once
SEPARATORS = "|;"
_MOST_CLASSES, _MOST_LABELS = 2000, 200
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class LabelColumn:
    """Labels as they are written, a cell for each protein.

    Attributes:
        name: of the target.
        kind: "classes" or "number", "" where it is to be recognised.
        places: of the cells, for messages; `file` likewise.
        decimal: sign of its numbers.
        several: a cell holds several labels.
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
    """A target with the values [] or [residues] of all proteins."""

    target: Target
    values: list[np.ndarray]


def parse(column: LabelColumn) -> tuple[list[Labels], list[str]]:
    """The targets that a column holds, and notes on them.

    Raises:
        ProtlmError: no protein has a label; a number is not finite, or no number; there are too
            many or too few classes; or it is not clear whether cells hold several labels.
    """
    cells = ["" if cell in MISSING else cell for cell in column.cells]
    labelled = sum(map(bool, cells))
    if not labelled:
        where = _where(column)
        raise ProtlmError(f"{where}: no protein has a label; name another column in --targets")
    if column.several:
        found, notes = _several(column, cells)
    else:
        kind, notes = column.kind, list[str]()
        if not kind:
            kind, notes = _recognised(column, set(cells) - {""})
        if kind == "number":
            one, more = _numbers(column, cells)
        else:
            notes += [] if column.kind else _refuse_several(column, cells)
            one, more = _classes(column, cells)
        found, notes = [one], [more[0], *notes, *more[1:]]
    if labelled < len(cells):
        notes.append(
            f"{len(cells) - labelled:,} of {len(cells):,} proteins have no label in "
            f"{column.name!r}, and take no part in it."
        )
    return found, notes


def look_like_names(values: Sequence[str], decimal: str) -> bool:
    """Whether most of the values, none of them missing, occur once and are not numbers."""
    different = set(values)
    if mostly_numbers(different, decimal):
        return False
    if len(different) <= FEW:
        return len(different) == len(values) > 3
    single = sum(count == 1 for count in Counter(values).values())
    return single > len(different) / 2 or len(different) > len(values) / 2


def mostly_numbers(different: set[str], decimal: str) -> bool:
    """Whether all values are numbers; of more than FEW values, more than half of them."""
    numbers = sum(
        is_number(value, decimal) or re.fullmatch(r"[+-]?inf(inity)?", value.casefold()) is not None
        for value in different
    )
    return numbers == len(different) or (len(different) > FEW and numbers > len(different) / 2)


def _recognised(column: LabelColumn, different: set[str]) -> tuple[str, list[str]]:
    """ "classes" or "number", and a note where it could be the other."""
    name = column.name
    if not mostly_numbers(different, column.decimal):
        return "classes", []
    whole = all(re.fullmatch(r"[+-]?\d+([.,]0*)?", value, re.ASCII) for value in different)
    if len(different) > FEW or not whole:
        return "number", []
    return "classes", [
        f"{name}: {len(different)} different whole numbers, taken for classes; head the column "
        f"'{name}:number', or give --targets '{name}:number', if they are measured."
    ]


def _numbers(column: LabelColumn, cells: list[str]) -> tuple[Labels, list[str]]:
    found = [
        np.array(finite(cell, place, column.decimal), np.float32)
        for cell, place in zip(cells, column.places, strict=True)
    ]
    notes = [f"{column.name}: numbers, from {np.nanmin(found):g} to {np.nanmax(found):g}."]
    return Labels(Target(column.name, "number"), found), notes


def finite(cell: str, place: str, decimal: str = ".") -> float:
    """A number within float32, nan of a missing one; ProtlmError names the place of others."""
    value = number(cell, place, decimal)
    if abs(value) > _LARGEST:
        raise ProtlmError(f"{place}: {shortened(cell)} is beyond float32; use another unit")
    return value


def _classes(column: LabelColumn, cells: list[str]) -> tuple[Labels, list[str]]:
    counts = Counter(cell for cell in cells if cell)
    classes = sorted(counts, key=_in_order)
    if not 2 <= len(classes) <= _MOST_CLASSES:
        raise ProtlmError(
            f"{_where(column)}: {len(classes):,} classes in {counts.total():,} labels; a head "
            f"learns 2 to {_MOST_CLASSES:,}: name another column in --targets"
        )
    notes = [f"{column.name}: {len(classes):,} classes: {_listed(classes)}."]
    if look_like_names(list(counts.elements()), column.decimal):
        single = sum(count == 1 for count in counts.values())
        notes.append(
            f"WARNING: {single:,} of {len(classes):,} classes of {column.name!r} have one protein: "
            "are they names or numbers?"
        )
    folded = Counter(name.casefold() for name in classes)
    if alike := [name for name in classes if folded[name.casefold()] > 1]:
        notes.append(f"WARNING: classes of {column.name!r} differ only in case: {_listed(alike)}.")
    codes = {name: code for code, name in enumerate(classes)} | {"": UNKNOWN}
    values = [np.array(codes[cell], np.int16) for cell in cells]
    return Labels(Target(column.name, "classes", tuple(classes)), values), notes


def _refuse_several(column: LabelColumn, cells: list[str]) -> list[str]:
    """A warning where classes contain a separator; an error where their parts are classes, too."""
    sign = _separator(cells)
    if sign is None:
        return []
    counts = Counter(part for cell in set(cells) for part in _parts(cell, sign))
    joined = [i for i, cell in enumerate(cells) if len(_parts(cell, sign)) > 1]
    mixed = [i for i in joined if any(counts[part] > 1 for part in _parts(cells[i], sign))]
    alike = len({len(_parts(cell, sign)) for cell in cells if cell}) == 1  # as "EC1|oxygen"
    first = (mixed or joined or [0])[0]
    place = column.places[first].removeprefix(f"{column.file}, ").partition(", ")[0]
    what = (
        f"{len(joined):,} of {sum(map(bool, cells)):,} labels hold {sign!r}, as "
        f"{shortened(cells[first])} ({place})"
    )
    several = f"--multilabel {_word(column.name)}"
    if mixed and not alike:
        raise ProtlmError(
            f"{_where(column)}: {what}: use {several} to learn several labels at once, or "
            f"--targets {_word(column.name + ':classes')} to take each combination for a class of "
            "its own"
        )
    if not joined:
        return []
    return [
        f"WARNING: {column.name}: {what}; each is taken for one class ({several} learns its parts)."
    ]


def _several(column: LabelColumn, cells: list[str]) -> tuple[list[Labels], list[str]]:
    """Each label as a target of its own, with the classes no and yes."""
    sign = _separator(cells) or SEPARATORS[0]
    parts = [_parts(cell, sign) for cell in cells]
    counts = Counter(part for of_one in parts for part in of_one)
    labelled = sum(map(bool, parts))
    learned = sorted((n for n, count in counts.items() if count < labelled), key=_in_order)
    if not 1 <= len(learned) <= _MOST_LABELS:
        raise ProtlmError(
            f"{_where(column)}: {len(learned):,} labels to learn at once, separated by {sign!r}; "
            f"there must be 1 to {_MOST_LABELS}"
        )
    found = []
    for name in learned:
        codes = [int(name in of_one) if of_one else UNKNOWN for of_one in parts]
        target = Target(f"{column.name}={name}", "classes", ("no", "yes"))
        found.append(Labels(target, [np.array(code, np.int16) for code in codes]))
    joined = sum(len(of_one) > 1 for of_one in parts)
    notes = [
        f"{column.name}: {len(learned)} labels at once, separated by {sign!r}, each learned as yes "
        f"or no; {joined:,} of {labelled:,} proteins have several."
    ]
    if always := [name for name in counts if counts[name] == labelled]:
        notes.append(f"{column.name}: all proteins have {_listed(always)}: nothing to learn.")
    return found, notes


def _separator(cells: Sequence[str]) -> str | None:
    return next((sign for sign in SEPARATORS if any(sign in cell for cell in cells)), None)


def _parts(cell: str, separator: str) -> list[str]:
    return [part for part in dict.fromkeys(map(str.strip, cell.split(separator))) if part]


def _where(column: LabelColumn) -> str:
    return f"{column.file}, column {column.name!r}"


def _in_order(name: str) -> tuple[float, str]:
    return (float(name), name) if is_number(name) else (np.inf, name)


def _listed(found: Sequence[str]) -> str:
    return ", ".join(map(shortened, found[:10])) + (", ..." if len(found) > 10 else "")


def _word(text: str) -> str:
    return text if re.fullmatch(r"[\w.:/-]+", text) else repr(text)
