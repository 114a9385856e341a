"""`protlm predict`: what a trained probe or a fine-tuned model predicts for a FASTA file.

Records that cannot be read keep their row, with the reason in the column `error`. Probabilities and
numbers are means over the seeds that the probe was trained with.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from protlm_jax.data.fasta import Record
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.input import Survey, again, survey_file, together
from protlm_jax.evaluation.finite import NotFinite
from protlm_jax.evaluation.outcome import Outcome, listed
from protlm_jax.evaluation.parts import Failure
from protlm_jax.evaluation.probe_data import LabelledProtein, Target
from protlm_jax.evaluation.probes.features import FeatureSource, Store, memory_budget, model_reader
from protlm_jax.evaluation.probes.saved import SavedProbe, require_model
from protlm_jax.evaluation.tuned import TunedModel
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.storage.files import write_atomically
from protlm_jax.vocabularies import ResiduePolicy

TABLES, STRINGS = (".csv",), (".fasta", ".fa")
_MOST_COLUMNS = 50  # classes whose probabilities are all written

Fitted = SavedProbe | TunedModel

Predicted = dict[str, np.ndarray]
"""target -> [items, classes] probabilities, or [items] numbers; float32."""


def predict(
    loaded: LoadedModel, probe: SavedProbe, sequences: Mapping[str, str], *, progress: bool = False
) -> Iterator[tuple[str, Predicted]]:
    """Predicts for normalised sequences, id -> residues, in their order.

    Yields:
        (id, target -> values): of classes probabilities [residues, classes] or [1, classes]; of
        numbers [residues] or [1].

    Raises:
        ProtlmError: the model is not the one that the probe was trained on.
    """
    require_model(probe, loaded)
    yield from _predicted(loaded, probe, sequences, progress)


def predict_file(
    loaded: LoadedModel,
    probe: Fitted,
    path: Path,
    output: Path,
    *,
    policy: ResiduePolicy = ResiduePolicy(),
    progress: bool = False,
) -> Outcome:
    """Predicts for the proteins of a FASTA file, in the order of the file.

    Args:
        output: .csv, or .fasta for residue classes that have letters.
        policy: for rare residues and lower case.

    Raises:
        ProtlmError: the model is another one, or its weights are not finite; the input as a whole
            cannot be read, or the output not be written.
    """
    targets = _written(probe, output)
    if isinstance(probe, SavedProbe):
        require_model(probe, loaded)
    survey = survey_file(loaded, path, probe.about["window"], policy)
    cells: dict[int, list[str]] = {}
    for places, records in together(survey):
        group = list(zip(places, records, strict=True))
        for place, found in _predicted_records(loaded, probe, group, survey, progress):
            cells[place] = [
                cell for t in targets for cell in _cells(t, found[t.name], probe.about["level"])
            ]
    write = _table if output.suffix in TABLES else _strings
    write_atomically(output, write(probe, targets, survey, cells))
    return _outcome(probe, survey, output)


def _predicted(
    loaded: LoadedModel, probe: Fitted, sequences: Mapping[str, str], progress: bool
) -> Iterator[tuple[str, Predicted]]:
    if not sequences:
        return
    if isinstance(probe, TunedModel):
        yield from probe.predict(sequences, progress)
        return
    names, about = list(sequences), probe.about
    proteins = [LabelledProtein(name, sequence, {}) for name, sequence in sequences.items()]
    rows, lengths = about["rows"], [len(s) for s in sequences.values()]
    reader = model_reader(
        loaded, (about["layer"],), (rows,), lengths, about["window"], about["compute"]
    )
    store = Store(reader, proteins, keep=0, hold=memory_budget() // 4, progress=progress)
    source = FeatureSource(store, probe.targets, about["level"], rows)
    for batch in source.batches(None):
        found = probe.heads.predict(batch)
        for slot, (member, start) in enumerate(zip(batch.members, batch.starts, strict=True)):
            place = slice(slot, slot + 1)
            if about["level"] == "residue":
                place = slice(start, start + lengths[member])
            means = {t: found[t.name][:, 0, place].mean(axis=0) for t in probe.targets}
            yield (
                names[member],
                {t.name: mean if t.kind == "classes" else mean[:, 0] for t, mean in means.items()},
            )


def _predicted_records(
    loaded: LoadedModel,
    probe: Fitted,
    group: Sequence[tuple[int, Record]],
    survey: Survey,
    progress: bool,
) -> Iterator[tuple[int, Predicted]]:
    """Predictions by place; records without finite embeddings become failures."""
    left = {f"{record.id}, line {record.line}": (place, record) for place, record in group}
    while left:
        sequences = {name: record.sequence for name, (_, record) in left.items()}
        try:
            for name, found in _predicted(loaded, probe, sequences, progress):
                yield left.pop(name)[0], found
        except NotFinite as error:
            if error.everywhere:
                raise
            place, record = left.pop(error.record)
            survey.failures.append(Failure(place, record.line, record.id, str(error)))


def _columns(target: Target, level: str) -> list[str]:
    """The value; of a protein's class also its probability and those of all classes."""
    if level == "residue" or target.kind == "number":
        return [target.name]
    named = [f"{target.name}: {name}" for name in target.classes]
    return [target.name, f"{target.name} probability", *named[:_MOST_COLUMNS]]


def _cells(target: Target, found: np.ndarray, level: str) -> list[str]:
    """The cells below `_columns`."""
    if target.kind == "number":
        return [" ".join(f"{value:.6g}" for value in found)]
    best = found.argmax(axis=-1)
    if level == "residue":
        if target.letters:
            return ["".join(target.letters[i] for i in best)]
        return ["; ".join(target.classes[i] for i in best)]
    (probabilities,), (index,) = found, best
    every = [f"{p:.6f}" for p in probabilities[:_MOST_COLUMNS]]
    return [target.classes[index], f"{probabilities[index]:.6f}", *every]


def _written(probe: Fitted, output: Path) -> list[Target]:
    """The targets that this kind of file holds."""
    targets = list(probe.targets)
    if output.suffix in TABLES:
        return targets
    if output.suffix not in STRINGS:
        known = ", ".join((*TABLES, *STRINGS))
        raise ProtlmError(f"{output}: the suffix says what to write; choose one of {known}")
    lettered = [t for t in targets if t.kind == "classes" and t.letters]
    if probe.about["level"] != "residue" or not lettered:
        raise ProtlmError(
            f"{output}: strings are of residues whose classes have letters; write a .csv file"
        )
    return lettered


def _table(
    probe: Fitted, targets: list[Target], survey: Survey, cells: dict[int, list[str]]
) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    named = [name for target in targets for name in _columns(target, probe.about["level"])]
    writer.writerow(["id", "residues", *named, "error"])
    reasons = {failure.record: failure.reason for failure in survey.failures}
    for place, record in again(survey):
        residues = int(survey.residues[place]) or ""
        found = cells.get(place, [""] * len(named))
        writer.writerow([record.id, residues, *found, reasons.get(place, "")])
    return text.getvalue()


def _strings(
    probe: Fitted, targets: list[Target], survey: Survey, cells: dict[int, list[str]]
) -> str:
    """Of each protein one record for each target: >id target, and its letters."""
    return "".join(
        f">{record.id} {target.name}\n{letters}\n"
        for place, record in again(survey)
        for target, letters in zip(targets, cells.get(place, ()), strict=False)
    )


def _outcome(probe: Fitted, survey: Survey, output: Path) -> Outcome:
    about, failed = probe.about, len(survey.failures)
    names = ", ".join(target.name for target in probe.targets)
    lines = [
        f"{len(survey.residues) - failed:,} of {len(survey.residues):,} proteins: {names}, "
        f"{probe.described}"
    ]
    if isinstance(probe, SavedProbe) and "identity" not in about:  # format 1, see `require_model`
        lines.append(
            "an older version wrote the probe: only a sample of the model's parameters was compared"
        )
    long = [f"{w['id']} ({w['residues']:,} in {w['windows']})" for w in survey.windowed]
    lines += listed(long, f"longer than {about['window']:,} residues, read through windows")
    failures = [f"line {f.line}, {f.id or 'without a name'}: {f.reason}" for f in survey.failures]
    lines += listed(failures, "not predicted")
    return Outcome("\n".join([*lines, f"wrote {output}"]), failed)
