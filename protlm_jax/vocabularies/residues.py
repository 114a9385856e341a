"""Reads what a user wrote as residues: spaced, lower case, rare, in pairs with their structure."""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import structure
from protlm_jax.vocabularies.structure import AMINO_ACIDS

RESIDUES = AMINO_ACIDS + "XUBZO"
"""Every letter a model may see: the standard 20, unknown (X), and the rare ones."""

RARE = "UZOB"
"""Residues that are rare (U, O) or stand for one of two (Z, B)."""

Rare = Literal["X", "keep", "error"]

_LEGAL = frozenset(RESIDUES)

_STANDARD = re.compile(f"[{AMINO_ACIDS}X]+").fullmatch
# ProtTrans files have a space between residues, copies from the web have line ends and tabs.
_DROP_WHITESPACE = {ord(c): None for c in string.whitespace}
# Only ASCII letters change case: str.upper() would turn one "ß" into two serines.
_TO_UPPER = {ord(c): c.upper() for c in string.ascii_lowercase}
_RARE_TO_X = {ord(c): "X" for c in RARE}


class ResidueError(ProtlmError):
    """A character that is not a residue. `position` is 1-based, counted without whitespace."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class ResiduePolicy:
    """What `normalise` does with letters that are legal but that a model may not know.

    rare: "X" maps U, Z, O and B to X, as ProtTrans did in pretraining; "keep" leaves them, for
      models that have ids for them; "error" refuses them.
    lower_case: "upper" reads lower case (soft-masked residues) as upper case; "error" refuses it.
    structure: reads text of any length as pairs of residue and structural letter where it
      alternates so (`protlm_jax.vocabularies.structure`); otherwise only what cannot be anything
      else.
    tally: counts the rare residues that `normalise` meets.
    """

    rare: Rare = "X"
    lower_case: Literal["upper", "error"] = "upper"
    structure: bool = False
    tally: RareTally | None = field(default=None, compare=False)


@dataclass
class RareTally:
    """Rare residues of the sequences read so far; a sequence that is read twice counts once."""

    sequences: set[int] = field(default_factory=set)
    letters: Counter[str] = field(default_factory=Counter)

    def count(self, sequence: str) -> None:
        """Counts the rare residues of a sequence in upper case."""
        found = Counter({letter: n for letter in RARE if (n := sequence.count(letter))})
        if found and (key := hash(sequence)) not in self.sequences:
            self.sequences.add(key)
            self.letters += found


AS_WRITTEN = ResiduePolicy(rare="keep")
"""For data that are read before the model is known that will see them."""


def normalise(sequence: str, policy: ResiduePolicy = ResiduePolicy(), *, record: str) -> str:
    """Plain upper-case residues (`RESIDUES`, at least one) of a sequence that may be spaced, lower
    case or hold U, Z, O, B; `record` is the name of the protein, for messages.

    Raises:
      ProtlmError: no residues; or, as `ResidueError`, a character that is not a residue (J, `*`,
        `-`, digits, ...), lower case under `lower_case="error"` or a rare residue under
        `rare="error"`: names the record and the 1-based position, counted without whitespace.
    """
    if _STANDARD(sequence):  # nearly every protein, and much faster
        return sequence
    letters = sequence.translate(_DROP_WHITESPACE)
    if not letters:
        raise ProtlmError(f"record {record!r} has no residues; remove it or supply its sequence")
    if structure.is_structured(letters) and set(structure.without_structure(letters)) <= _LEGAL:
        return letters
    if structure.is_paired(letters, 0 if policy.structure else structure.CERTAIN):
        try:
            residues = normalise(letters[::2].replace("#", "X"), policy, record=record)
        except ResidueError as error:
            error.position = 2 * error.position - 1
            raise
        return structure.paired(residues, letters[1::2])
    upper = letters.translate(_TO_UPPER)

    def refuse(at: int, message: str) -> ResidueError:
        return ResidueError(f"record {record!r}, position {at + 1}: {message}", at + 1)

    if policy.lower_case == "error" and upper != letters:
        at = next(i for i, (a, b) in enumerate(zip(letters, upper, strict=True)) if a != b)
        remedy = 'write it in upper case or set the policy lower_case="upper"'
        raise refuse(at, f"lower-case residue {letters[at]!r}; {remedy}")
    if not set(upper) <= _LEGAL:
        at = next(i for i, c in enumerate(upper) if c not in _LEGAL)
        raise refuse(at, f"{letters[at]!r} is not an amino acid; {_remedy(upper[at])}")
    if policy.tally is not None:
        policy.tally.count(upper)
    if policy.rare == "error" and not set(upper).isdisjoint(RARE):
        at = next(i for i, c in enumerate(upper) if c in RARE)
        remedy = "these are refused (--rare_residues error); choose x or keep"
        raise refuse(at, f"{upper[at]!r} is a rare residue, and {remedy}")
    return upper.translate(_RARE_TO_X) if policy.rare == "X" else upper


def _remedy(character: str) -> str:
    """What the user can do about a character that is not a residue."""
    if character == "*":
        return "remove the stop sign (or cut the translation there)"
    if character in "-.~":
        return "this is an alignment gap: take the gaps out first"
    if character == structure.UNKNOWN:
        return "pairs of residue and structure are one capital and one lower-case letter, or '#'"
    if character == "J":
        return "J means leucine or isoleucine: replace it by L, I or X"
    if character.isdigit():
        return "remove the numbers from the sequence"
    return f"replace it by one of {RESIDUES} (X where the residue is unknown)"
