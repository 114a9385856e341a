"""Residues with the 3Di letter of their structure (van Kempen et al. 2023), as SaProt reads them.

Users write two characters a residue, `MdEvVp`, with `#` for what is unknown (`M#`, `#d`). In a
normalised sequence each residue is one character still, so that whatever counts, cuts or hides
residues does so with and without structure: a residue alone is its letter, a residue with structure
a character of Unicode's private use area.
"""

from __future__ import annotations

import re

import numpy as np

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
"""The 20 standard amino acids, in the order of every 20-column array of this package."""
LETTERS = AMINO_ACIDS + "X"
STRUCTURES = "pynwrqhgdlvtmfsaeikc"
"""Foldseek's 20 structural letters, in SaProt's order."""
UNKNOWN = "#"

FIRST = 0xE000
CODES = FIRST + len(LETTERS) * len(STRUCTURES)
"""One more than the largest code of a character."""
CERTAIN = 20
"""Characters from which on an alternation of cases is no soft-masking."""

_LETTER_OF = {FIRST + i: LETTERS[i // 20] for i in range(CODES - FIRST)}
_CHARACTER = {
    letter + shape: chr(FIRST + 20 * a + s)
    for a, letter in enumerate(LETTERS)
    for s, shape in enumerate(STRUCTURES)
}
_WRITTEN = {ord(character): pair.replace("X", UNKNOWN) for pair, character in _CHARACTER.items()}
_pairs = re.compile(f"(?:[A-Z#][{STRUCTURES}#])+").fullmatch


def is_paired(letters: str, certain: int = CERTAIN) -> bool:
    """Whether text without whitespace is pairs; shorter than `certain` only where it has a `#`."""
    return (len(letters) >= certain or UNKNOWN in letters) and _pairs(letters) is not None


def paired(residues: str, shapes: str) -> str:
    """A normalised sequence of residues and as many structural letters or `#`; rare residues are X
    to the model, and so is what has no structure its letter alone."""
    return "".join(
        a if s == UNKNOWN else _CHARACTER[(a if a in LETTERS else "X") + s]
        for a, s in zip(residues, shapes, strict=True)
    )


def without_structure(sequence: str) -> str:
    """The residues of a normalised sequence, as plain letters."""
    return sequence if sequence.isascii() else sequence.translate(_LETTER_OF)


def is_structured(sequence: str) -> bool:
    """Whether a residue of a normalised sequence has a structure."""
    return not sequence.isascii() and any(FIRST <= ord(c) < CODES for c in sequence)


def written(sequence: str) -> str:
    """A normalised sequence as users write it: in pairs where any residue has a structure."""
    if sequence.isascii():
        return sequence
    return "".join(_WRITTEN.get(ord(c), c.replace("X", UNKNOWN) + UNKNOWN) for c in sequence)


def in_place_of(residue: str, replaced: str) -> str:
    """A residue with the structure of the one that it replaces."""
    shape = written(replaced)[1:] or UNKNOWN
    return paired(residue, shape)


def pair_tokens() -> tuple[str, ...]:
    """SaProt's 441 tokens of a residue and a structural letter, in their order."""
    return tuple(a + s for a in AMINO_ACIDS + UNKNOWN for s in STRUCTURES + UNKNOWN)


def code_table(ids: dict[str, int]) -> np.ndarray:
    """int32 [CODES]: the id of each character of a sequence by its code, -1 for others."""
    table = np.full(CODES, -1, np.int32)
    for letter in LETTERS:
        table[ord(letter)] = ids[letter.replace("X", UNKNOWN) + UNKNOWN]
    for code, pair in _WRITTEN.items():
        table[code] = ids[pair]
    return table
