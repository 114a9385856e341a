"""The user's own proteins as a benchmark, from a table (`table`) or FASTA files.

FASTA comes as biotrainer has it: `>name SET=train VALIDATION=False`, with `TARGET=...` for a label
of the protein; or with a second file of the same names and a letter for each residue, "?" where it
is unknown, and possibly a third one with 1 for each residue that counts and 0 for the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from protlm_jax.data.fasta import entries, name_of, read_fasta
from protlm_jax.data.sources import explained, open_source
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data import splits, table
from protlm_jax.evaluation.probe_data.base import (
    UNKNOWN,
    Benchmark,
    LabelledProtein,
    Level,
    Target,
    View,
    known,
)
from protlm_jax.evaluation.probe_data.labels import LabelColumn, Labels, parse
from protlm_jax.evaluation.probe_data.splits import UserProtein
from protlm_jax.vocabularies import AS_WRITTEN

UNKNOWN_RESIDUE = "?"


def read(
    path: Path,
    labels: Path | None = None,
    mask: Path | None = None,
    *,
    targets: Sequence[str] = (),
    multilabel: Sequence[str] = (),
    split: Sequence[str] = (),
) -> Benchmark:
    """A benchmark of the user's files, read now.

    Args:
        path: a table or a FASTA file (recognised by its first character), possibly compressed.
        labels, mask: with FASTA, a letter for each residue (None: the headers say TARGET=...), and
            1 for each residue that counts.
        targets: columns of labels, as "stability" or "stability:number"; () takes those that
            neither identify, nor divide, nor describe the proteins.
        multilabel: columns whose cells hold several labels, separated by "|" or ";".
        split: the column that divides the proteins, "random", or words as "train=0,1,2".

    Raises:
        ProtlmError: what is wrong, with file, line and column, and what to do about it.
    """
    request = splits.parse_split(split)
    notes: list[str] = []
    columns: list[LabelColumn] = []
    level: Level = "residue" if labels else "protein"
    column = request.column or "SET"
    if not (labels or _is_fasta(path)):
        found, columns, column, notes = table.read(path, targets, multilabel, request)
    elif request.column or (labels and (targets or multilabel)):
        raise ProtlmError(f"{path} is a FASTA file: it has no columns to name")
    elif labels is None:
        name = next(iter((*multilabel, *targets)), "target")
        found, target = _read_annotated(path, name, several=bool(multilabel))
        columns = [target]
    else:
        found = _read_pair(path, labels, mask)
    if mask and not labels:
        raise ProtlmError("--mask belongs to --labels: give both, or none")
    found, more = splits.assign(labels or path, found, request, column)
    notes += more + splits.duplicates(found)
    made = [_residue_classes(found)] if labels else []
    for one in columns:
        of_column, more = parse(one)
        made += of_column
        notes += more
    names = [of.target.name for of in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ProtlmError(f"{path}: two columns hold {twice[0]!r}; rename one of them")
    for of in made:
        notes += _checked(path, of, found)
    return _benchmark(path, level, found, made, notes)


def split_of(description: str) -> str:
    """The split by biotrainer's attributes: SET=train with VALIDATION=True is valid."""
    attributes = _attributes(description)
    split = attributes.get("SET", "")
    if split.casefold() == "train" and attributes.get("VALIDATION", "").casefold() == "true":
        return "valid"
    return split


def _attributes(description: str) -> dict[str, str]:
    """KEY=value words of a header."""
    words = (word.partition("=") for word in description.split())
    return {key.upper(): value for key, equals, value in words if equals}


def _is_fasta(path: Path) -> bool:
    with explained(str(path), lambda: 0), open_source(str(path)) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b">")


def _read_annotated(path: Path, name: str, several: bool) -> tuple[list[UserProtein], LabelColumn]:
    """Proteins whose headers give their label as TARGET=..., and these labels."""
    found = []
    for record in read_fasta(path, policy=AS_WRITTEN):
        label = _attributes(record.description).get("TARGET")
        if label is None:
            raise ProtlmError(
                f"{path}, line {record.line}: {record.id!r} has no label: write TARGET=... into "
                f"its header, or give the labels of residues in a file of their own"
            )
        split = split_of(record.description)
        found.append(UserProtein(record.line, record.id, record.sequence, split, label))
    kind = table.named(["target"], name, str(path)).kind
    places = [f"{path}, line {p.line}, TARGET" for p in found]
    cells = [p.label for p in found]
    return found, LabelColumn("target", kind, cells, places, str(path), several=several)


def _read_pair(path: Path, labels: Path, mask: Path | None) -> list[UserProtein]:
    """Proteins of one FASTA file with the residues' labels of another."""
    letters = {name: (line, text, split) for line, name, text, split in _strings(labels)}
    masks = {name: (line, text) for line, name, text, _ in _strings(mask)} if mask else {}
    found = []
    for record in read_fasta(path, policy=AS_WRITTEN):
        line, text, split = letters.pop(record.id, (0, "", ""))
        where = f"{path}, line {record.line}: {record.id!r}"
        if not line:
            raise ProtlmError(f"{where} has no labels in {labels}; add them or remove it")
        _require_length(labels, line, record.id, text, record.sequence)
        counted = ""
        if mask:
            mask_line, counted = masks.pop(record.id, (0, ""))
            if not mask_line:
                raise ProtlmError(f"{where} has no mask in {mask}; add one or remove it")
            _require_length(mask, mask_line, record.id, counted, record.sequence)
            if not set(counted) <= {"0", "1"}:
                raise ProtlmError(
                    f"{mask}, line {mask_line}: a mask with other characters than 0 and 1"
                )
        split = split or split_of(record.description)
        found.append(UserProtein(line, record.id, record.sequence, split, text, counted))
    for file, left in ((labels, list(letters)), (mask, list(masks))):
        if left:
            raise ProtlmError(f"{file}: {left[0]!r} has no sequence in {path}; add or remove it")
    return found


def _strings(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """(line, name, letters, split) of each entry of a FASTA file that holds no residues."""
    seen: set[str] = set()
    for line, header, below in entries(str(path)):
        name, description = name_of(header)
        if not name or name in seen:
            what = f"the name {name!r} a second time" if name else "a header without a name"
            raise ProtlmError(f"{path}, line {line}: {what}; give every protein its own")
        seen.add(name)
        letters = "".join("".join(text.split()) for _, text in below)
        yield line, name, letters, split_of(description)


def _require_length(file: Path, line: int, name: str, text: str, sequence: str) -> None:
    if len(text) != len(sequence):
        raise ProtlmError(
            f"{file}, line {line}: {name!r} has {len(text)} letters for {len(sequence)} residues; "
            f"give one for each residue ('?' where the label is unknown)"
        )


def _residue_classes(found: list[UserProtein]) -> Labels:
    letters = "".join(sorted(set().union(*(p.label for p in found)) - {UNKNOWN_RESIDUE}))
    codes = {letter: code for code, letter in enumerate(letters)} | {UNKNOWN_RESIDUE: UNKNOWN}
    values = []
    for p in found:
        classes = np.array([codes[letter] for letter in p.label], np.int16)
        counted = np.array([c == "1" for c in p.counted]) if p.counted else True
        values.append(np.where(counted, classes, np.int16(UNKNOWN)))
    return Labels(Target("label", "classes", tuple(letters), letters=letters), values)


def _checked(path: Path, of: Labels, found: list[UserProtein]) -> list[str]:
    """Notes on the labels of a target in the splits; ProtlmError where a split has none."""
    target = of.target
    by_side: dict[str, list[np.ndarray]] = {"train": [], "valid": [], "test": []}
    for p, value in zip(found, of.values, strict=True):
        by_side[splits.side(p.split)].append(value[known(target, value)])
    labels = {side: np.unique(np.concatenate(values)) for side, values in by_side.items()}
    for side, different in labels.items():
        if not different.size:
            raise ProtlmError(
                f"{path}, {target.name!r}: no protein in split {side!r} has a label; name another "
                "column in --targets, or divide the proteins anew (--split random)"
            )
    notes = _conflicts(of, found) if of.values[0].ndim == 0 else []
    if labels["train"].size < 2:
        notes.append(
            f"WARNING: all labels of {target.name!r} in training are the same: a head has nothing "
            "to learn."
        )
    if target.kind == "classes":
        unseen = sorted(set(range(len(target.classes))) - set(labels["train"].tolist()))
        if unseen:
            names = [target.classes[code] for code in unseen[:10]]
            notes.append(f"{target.name}: never in training: {', '.join(names)}.")
    return notes


def _conflicts(of: Labels, found: list[UserProtein]) -> list[str]:
    """A warning about sequences that training has with different labels."""
    labels: dict[str, set[float]] = {}
    first: dict[str, str] = {}
    for p, value in zip(found, of.values, strict=True):
        if p.split == "train" and known(of.target, value):
            labels.setdefault(p.sequence, set()).add(float(value))
            first.setdefault(p.sequence, p.id)
    names = [first[sequence] for sequence, different in labels.items() if len(different) > 1]
    warning = (
        f"WARNING: {len(names):,} sequences are in training several times with different labels "
        f"in {of.target.name!r} ({splits.shown(names)})."
    )
    return [warning] if names else []


def _benchmark(
    path: Path, level: Level, found: list[UserProtein], made: list[Labels], notes: list[str]
) -> Benchmark:
    by_split: dict[str, list[LabelledProtein]] = {"train": [], "valid": []}
    for i, p in enumerate(found):
        values = {of.target.name: of.values[i] for of in made}
        by_split.setdefault(p.split, []).append(LabelledProtein(p.id, p.sequence, values))
    tests = sorted(name for name in by_split if name not in ("train", "valid"))
    return Benchmark(
        name=path.name.partition(".")[0],
        title=path.name,
        level=level,
        targets=tuple(of.target for of in made),
        splits={name: partial(list, by_split[name]) for name in ("train", "valid", *tests)},
        views={name: View(name, name) for name in tests},
        licence="your own",
        source=path.name,
        notes=tuple(notes),
    )
