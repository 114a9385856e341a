"""Labels of residues: a letter for each ("HHEC"), or values ("2.73;999.0;;1.4").

Semicolons, commas or spaces separate values. Nothing between two separators, a word for a missing
value, and 999 (which CheZOD writes for residues that were not measured) are missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protlm_jax.data.tables import MISSING, is_number, shortened
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import UNKNOWN, Target
from protlm_jax.evaluation.probe_data.labels import LabelColumn, Labels, finite

UNKNOWN_RESIDUE = "?"
NOT_MEASURED = 999.0
_SEPARATORS = ";,"
_FEW_LETTERS = 15  # more are another sequence, unless the column is named


def of_residues(column: LabelColumn, lengths: Sequence[int], most: int | None = None) -> bool:
    """Whether a column has a label for each residue of most proteins that it labels.

    Letters, `most` at most, are recognised if the proteins are of different lengths and the cells
    are no numbers.
    """
    if column.several or column.kind == "classes":
        return False
    filled = [(c, n) for c, n in zip(column.cells, lengths, strict=True) if c not in MISSING]
    found = [(_split(cell, length), length) for cell, length in filled]
    fitting = [
        (labels, length)
        for labels, length in found
        if len(labels) == length and (isinstance(labels, list) or not is_number(labels))
    ]
    if 2 * len(fitting) <= len(filled):
        return False
    if any(isinstance(labels, list) for labels, _ in fitting):
        return True
    letters = {letter for labels, _ in fitting for letter in labels}
    return len({length for _, length in fitting}) > 1 and len(letters) <= (most or len(letters))


def few_letters(cells: Sequence[str], lengths: Sequence[int]) -> bool:
    """Whether a column without a stated use holds labels of residues."""
    return of_residues(LabelColumn("", "", cells, (), ""), lengths, _FEW_LETTERS)


def parse(
    column: LabelColumn, lengths: Sequence[int], counted: Sequence[str]
) -> tuple[Labels, list[str]]:
    """The target of a column: numbers if it has values or its kind says so, else classes.

    Args:
        lengths: residues of each protein.
        counted: of each protein "1" or "0" for each residue; "" counts all.

    Raises:
        ProtlmError: a protein has another number of labels than residues, or a value is no number.
    """
    rows: list[Sequence[str]] = []
    for cell, place, length in zip(column.cells, column.places, lengths, strict=True):
        labels = [""] * length if cell in MISSING else _split(cell, length)
        if len(labels) != length:
            what = "values" if isinstance(labels, list) else "letters"
            raise ProtlmError(
                f"{place} has {len(labels)} {what} for {length} residues; give one for each "
                f"residue ({UNKNOWN_RESIDUE!r} where the label is unknown)"
            )
        rows.append(labels)
    values = column.kind == "number" or any(isinstance(row, list) and any(row) for row in rows)
    made, notes = (_numbers if values else _classes)(column, rows)
    for at, mask in enumerate(counted):
        if mask:
            made.values[at][np.array(list(mask)) == "0"] = np.nan if values else UNKNOWN
    return made, notes


def _split(text: str, residues: int) -> list[str] | str:
    """Values, or letters."""
    plain = "".join(text.split())
    if sign := next((sign for sign in _SEPARATORS if sign in plain), None):
        values = plain.split(sign)
        return values[:-1] if len(values) == residues + 1 and not values[-1] else values
    words = text.split()
    if len(plain) != residues and all(is_number(w) or w in MISSING for w in words):
        return words
    return plain


def _numbers(column: LabelColumn, rows: list[Sequence[str]]) -> tuple[Labels, list[str]]:
    found, missing, not_measured = [], 0, 0
    for row, place in zip(rows, column.places, strict=True):
        words = ["" if word == UNKNOWN_RESIDUE else word for word in row]
        numbers = np.array(
            [finite(w, f"{place}, residue {i + 1}") for i, w in enumerate(words)], np.float32
        )
        not_measured += int((numbers == NOT_MEASURED).sum())
        numbers[numbers == NOT_MEASURED] = np.nan
        missing += int(np.isnan(numbers).sum())
        found.append(numbers)
    every = np.concatenate(found)
    if missing == len(every):
        raise ProtlmError(f"{column.file}, {column.name!r}: no residue has a value")
    notes = [
        f"{column.name}: numbers of residues, from {np.nanmin(every):g} to {np.nanmax(every):g}; "
        f"{missing:,} of {len(every):,} residues have none ({not_measured:,} of them "
        f"{NOT_MEASURED:g}, which means a missing value)."
    ]
    return Labels(Target(column.name, "number"), found), notes


def _classes(column: LabelColumn, rows: list[Sequence[str]]) -> tuple[Labels, list[str]]:
    letters = "".join(sorted({letter for row in rows for letter in row} - {UNKNOWN_RESIDUE}))
    if len(letters) < 2:
        raise ProtlmError(
            f"{column.file}, {column.name!r}: {len(letters)} classes of residues "
            f"({shortened(letters)}); a head learns at least 2"
        )
    codes = {letter: code for code, letter in enumerate(letters)}
    values = [np.array([codes.get(c, UNKNOWN) for c in row], np.int16) for row in rows]
    return Labels(Target(column.name, "classes", tuple(letters), letters=letters), values), [
        f"{column.name}: classes of residues {letters!r}."
    ]
