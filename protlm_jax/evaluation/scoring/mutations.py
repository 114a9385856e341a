"""Notations of mutations, read into edits of a wild type.

Read, alone or joined by `:` `,` `;` `/` `+` or spaces (positions count from 1):

- substitutions: `A42G`, `a42g`, `Ala42Gly`, HGVS's `p.Ala42Gly`, `p.(Ala42Gly)`,
  `p.[Ala42Gly;Leu50Pro]`; `A42GL50P` and `A42G_L50P` are two;
- no change: `WT`, `_wt`, MaveDB's `_sy`, `p.=`, an empty field; `A42A`, `A42=`, `p.Ala42=` at one
  residue;
- HGVS's `A42del`, `A42_L50del`, `A42_L43insGP`, `A42delinsGP`, `A42_L50delinsGP`, `A42dup`,
  `A42_L50dup`; `A42-` is a deletion.

What has no score or no single meaning is refused with the reason: stops, frameshifts, a mutation
without its wild-type residue (its numbering cannot be checked), letters beyond the 20.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS
from protlm_jax.vocabularies.structure import in_place_of, without_structure

WILD_TYPE = frozenset(
    ("", "wt", "_wt", "_sy", "wildtype", "wild_type", "wild-type", "wild type", "=", "p.=", "p.(=)")
)

_CODES = "AlaCysAspGluPheGlyHisIleLysLeuMetAsnProGlnArgSerThrValTrpTyrXaaSecAsxGlxPylXleTer"
_THREE = dict(zip(re.findall("...", _CODES), AMINO_ACIDS + "XUBZOJ*", strict=True))
_SITE = r"([A-Za-z]{3}|[A-Za-z*])(-?\d+(?:\.0+)?)"  # 2.0: pandas writes integers with NaN so
_SINGLE = r"[A-Za-z]-?\d+(?:\.0+)?[A-Za-z]"
_substitution = re.compile(rf"{_SITE}([A-Za-z]{{3}}|[A-Za-z*=-])").fullmatch
_indel = re.compile(rf"{_SITE}(?:_{_SITE})?(delins|del|ins|dup)([A-Za-z*]*)").fullmatch
_several = re.compile(rf"{_SINGLE}(?:[_-]?{_SINGLE})+").fullmatch
_frameshift = re.compile(rf"{_SITE}.*(?:fs|ext).*", re.IGNORECASE).fullmatch
_without_wildtype = re.compile(r"(-?\d+)(?:_-?\d+)?(?:[A-Za-z*=-]+)").fullmatch

_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Edit:
    """Residues [start, stop) of a wild type, counted from 0, replaced by others.

    Attributes:
        text: as it was written.
        start, stop: the residues that are replaced; equal for an insertion before `start`.
        letters: the residues in their place; empty for a duplication.
        named: positions, counted from 0, and the wild-type letters that the notation gives there.
        repeated: the residues are duplicated.
    """

    text: str
    start: int
    stop: int
    letters: str
    named: tuple[tuple[int, str], ...]
    repeated: bool = False

    @property
    def substitutes(self) -> bool:
        """Whether one residue takes the place of one."""
        return len(self.letters) == self.stop - self.start == 1


@dataclass(frozen=True, slots=True)
class Variant:
    """The residues of a wild type and of its mutant.

    shifted: residues were inserted and as many deleted, so that positions cannot be compared.
    """

    wildtype: str
    sequence: str
    shifted: bool = False

    @property
    def is_wildtype(self) -> bool:
        return self.sequence == self.wildtype

    @property
    def is_indel(self) -> bool:
        """Whether residues were inserted or deleted."""
        return self.shifted or len(self.sequence) != len(self.wildtype)

    @property
    def positions(self) -> tuple[int, ...]:
        """Residues that differ, counted from 0, ascending; of sequences of one length."""
        own, other = (np.array(list(s)) for s in (self.wildtype, self.sequence))
        return tuple(np.flatnonzero(own != other).tolist())


def parse_mutations(text: str, offset: int = 0) -> tuple[Edit, ...]:
    """Reads a field of mutations; the wild type has none.

    Args:
        text: see the top of this file.
        offset: added to every position, where the wild type is numbered in another sequence.

    Raises:
        ProtlmError: what has no score or more than one meaning, with the reason.
    """
    body = text.strip()
    if body.lower() in WILD_TYPE:
        return ()
    body = _bare(re.sub(r"(?:[NX]P_\d+|ENSP\d+)(?:\.\d+)?:(?=p\.)", "", body))
    shown = repr(text.strip() if len(text.strip()) <= 60 else text.strip()[:57] + "...")
    if "[" in body or "]" in body:
        raise ProtlmError(f"{shown} describes more than one allele; give each its own row")
    parts = [part.strip() for part in re.split("[:;,/+]", body)]
    if not all(parts):
        raise ProtlmError(
            f"{shown} has nothing before or after one of its separators; was a mutation cut off?"
        )
    edits = [edit for part in parts for edit in _part(part)]
    for before, after in itertools.pairwise(sorted(edits, key=_span)):
        if after.start < before.stop or _span(after) == _span(before):
            raise ProtlmError(
                f"{shown} changes position {after.start + 1} twice; name each position once"
            )
    if offset:
        for i, edit in enumerate(edits):
            named = tuple((at + offset, letter) for at, letter in edit.named)
            start, stop = edit.start + offset, edit.stop + offset
            edits[i] = replace(edit, start=start, stop=stop, named=named)
    return tuple(edits)


def check(edits: Sequence[Edit], sequence: str, *, mutated: bool = False) -> None:
    """Compares edits with the wild type, or substitutions with the mutant if `mutated`.

    Raises:
        ProtlmError: a position outside the sequence, or another residue there; says what is
            expected and what is found.
    """
    name = "mutated sequence" if mutated else "wild type"
    for edit in edits:
        for at, letter in [(edit.start, edit.letters)] if mutated else edit.named:
            if not 0 <= at < len(sequence):
                raise ProtlmError(
                    f"{edit.text}: position {at + 1} is outside of the {name}, which has "
                    f"{len(sequence)} residues; positions count from 1"
                )
            found = without_structure(sequence[at])
            if found != letter:
                raise ProtlmError(
                    f"{edit.text}: expected {letter} at position {at + 1} of the {name}, found "
                    f"{found}; is it the right sequence, and do positions count from its "
                    "first residue?"
                )


def mutate(edits: Sequence[Edit], wildtype: str) -> Variant:
    """The mutant that edits make of a wild type; `check` has passed."""
    pieces, done = [], 0
    for edit in sorted(edits, key=_span):
        own, new = wildtype[edit.start : edit.stop], edit.letters
        if edit.substitutes:
            new = in_place_of(new, own)
        pieces += [wildtype[done : edit.start], own * 2 if edit.repeated else new]
        done = edit.stop
    shifted = not all(edit.substitutes for edit in edits)
    return Variant(wildtype, "".join([*pieces, wildtype[done:]]), shifted)


def restored(edits: Sequence[Edit], mutant: str) -> str:
    """The wild type that substitutions turn into `mutant`."""
    letters = list(mutant)
    for edit in edits:
        for at, letter in edit.named:
            letters[at] = in_place_of(letter, letters[at])
    return "".join(letters)


def _span(edit: Edit) -> tuple[int, int]:
    return edit.start, edit.stop


@functools.lru_cache(1 << 16)  # a scan of a protein names each of its single mutations often
def _part(part: str) -> tuple[Edit, ...]:
    """The mutations of one part between separators."""
    words = part.split()
    if len(words) > 1 and not all(re.match(rf"(?:p\.)?\(?{_SITE}", word) for word in words):
        words = ["".join(words)]  # "A 42 G"
    found: list[Edit] = []
    for word in map(_bare, words):
        several = not (_substitution(word) or _indel(word)) and _several(word)
        found += map(_edit, re.findall(_SINGLE, word) if several else [word])
    return tuple(found)


def _edit(word: str) -> Edit:
    shown = word if len(word) <= 30 else word[:27] + "..."
    if _frameshift(word):
        raise ProtlmError(f"{shown!r}: frameshifts and extensions are not scored")
    if match := _indel(word):
        return _insertion_or_deletion(match, shown)
    if match := _substitution(word):
        code, position, new = match.groups()
        if len(new) > 1 and len(code) == 1:
            raise ProtlmError(
                f"{shown!r} mixes letters and three-letter codes; write S2G or Ser2Gly"
            )
        at, own = _position(position, shown), _residue(code, shown)
        letters = {"=": own, "-": ""}.get(new)
        letters = _residue(new, shown) if letters is None else letters
        return Edit(shown, at, at + 1, letters, ((at, own),))
    if match := _without_wildtype(word):
        raise ProtlmError(
            f"{shown!r} does not name the wild-type residue at position {match[1][:_MOST_DIGITS]}, "
            "so that its numbering cannot be checked; write it before the position, as in A42G"
        )
    raise ProtlmError(
        f"{shown!r} is no mutation like A42G (wild-type residue, position counted from 1, mutant "
        "residue), A42del, A42_L43insGP, A42_L50delinsGP or A42dup"
    )


def _insertion_or_deletion(match: re.Match[str], shown: str) -> Edit:
    first_code, first, last_code, last, kind, new = match.groups()
    start, named_first = _position(first, shown), _residue(first_code, shown)
    named: tuple[tuple[int, str], ...] = ((start, named_first),)
    end = start
    if last is not None:
        end = _position(last, shown)
        named += ((end, _residue(last_code, shown)),)
        if end <= start:
            raise ProtlmError(f"{shown!r}: the second position must come after the first")
    if ("ins" in kind) != bool(new):
        raise ProtlmError(f"{shown!r}: {'nothing is' if 'ins' in kind else new + ' is'} inserted")
    if kind == "ins":
        if end != start + 1:
            raise ProtlmError(
                f"{shown!r}: an insertion stands between two neighbours, as in A42_L43insGP"
            )
        return Edit(shown, end, end, _residues(new, shown), named)
    return Edit(shown, start, end + 1, _residues(new, shown), named, repeated=kind == "dup")


def _position(digits: str, shown: str) -> int:
    """A position as it is written, from 0."""
    digits = digits.partition(".")[0]
    if len(digits) > _MOST_DIGITS:
        raise ProtlmError(f"{shown!r}: a position of {len(digits):,} digits; no protein is so long")
    return int(digits) - 1


def _residue(code: str, shown: str) -> str:
    letter = _THREE.get(code.title(), "") if len(code) == 3 else code.upper()
    if letter == "*":
        raise ProtlmError(f"{shown!r}: stops are not scored; the model has no probability for them")
    if not letter or letter not in AMINO_ACIDS:
        raise ProtlmError(
            f"{shown!r}: {code} is none of the 20 amino acids ({AMINO_ACIDS}); the model has no "
            "probability for it to compare"
        )
    return letter


def _residues(text: str, shown: str) -> str:
    """Inserted residues: letters in upper case, or three-letter codes as in GlyPro."""
    if len(text) % 3 == 0 and re.fullmatch(r"(?:[A-Z][a-z]{2})+", text):
        return "".join(_residue(text[i : i + 3], shown) for i in range(0, len(text), 3))
    if text != text.upper():
        raise ProtlmError(f"{shown!r}: write inserted residues as GP or as GlyPro")
    return "".join(_residue(letter, shown) for letter in text)


def _bare(text: str) -> str:
    """Without HGVS's p. and its brackets or parentheses around the whole."""
    text = text.removeprefix("p.")
    for opening, closing in ("[]", "()"):
        inner = text[1:-1]
        if text.startswith(opening) and text.endswith(closing) and opening not in inner:
            text = inner
    return text
