"""`protlm score`: a FASTA file or a table of variants in, one CSV row for each of its records out.

Records that cannot be scored keep their row, with the reason in the column `error`.
"""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protlm_jax.data.fasta import BadRecord, Record, read_every_record, text_lines
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.questions import Softmax
from protlm_jax.evaluation.score import (
    Likelihood,
    kind_of,
    likelihoods,
    method_of,
    questions_of,
    residue_limit,
)
from protlm_jax.evaluation.variant_files import VariantTable, read_variants
from protlm_jax.evaluation.variants import Strategy, Variant, choose_strategy, effects, fits
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.storage.files import write_atomically
from protlm_jax.vocabularies import ResiduePolicy

PROTEIN_COLUMNS = (
    "id", "length", "scored", "log_likelihood", "mean_log_likelihood", "perplexity", "window",
    "method", "softmax", "error",
)  # fmt: skip
VARIANT_COLUMNS = ("score", "method", "error")
SOFTMAX_NAMES = {"residues": "the 20 amino acids", "vocabulary": "the whole vocabulary"}

_LISTED = 20  # failures and long proteins named in the summary; the file has all of them


@dataclass(frozen=True)
class Outcome:
    """What was done: the text for people, and how many records have no score."""

    summary: str
    failed: int


def score_file(
    loaded: LoadedModel,
    path: Path,
    output: Path,
    *,
    length: int | None = None,
    softmax: Softmax = "residues",
    strategy: Strategy | None = None,
    wildtype: Path | None = None,
    policy: ResiduePolicy = ResiduePolicy(),
    progress: bool = False,
) -> Outcome:
    """Scores the proteins of a FASTA file or the variants of a CSV table, in their order.

    Args:
        loaded: the model.
        path: FASTA or CSV, plain or compressed; told apart by the first character.
        output: CSV file to write, whole or not at all.
        length: tokens in a row, see `score.likelihoods`.
        softmax: over the 20 amino acids or the whole vocabulary.
        strategy: of variants; None takes the model's own.
        wildtype: FASTA file with the variants' wild types.
        policy: what to do with rare residues and lower case.
        progress: draw a progress bar on a terminal.

    Raises:
        ProtlmError: the file as a whole cannot be read or written, or the model cannot answer.
    """
    kind_of(loaded)
    _need_writable(output, path)
    if not _is_fasta(path):
        table = read_variants(path, wildtype, policy)
        return _score_variants(loaded, table, output, length, softmax, strategy, progress)
    if wildtype is not None or strategy is not None:
        raise ProtlmError(f"{path} is a FASTA file: strategy and wild type are for variants")
    records = list(read_every_record(path, policy))
    return _score_proteins(loaded, records, output, length, softmax, progress)


def _score_proteins(
    loaded: LoadedModel,
    records: list[Record | BadRecord],
    output: Path,
    length: int | None,
    softmax: Softmax,
    progress: bool,
) -> Outcome:
    limit, method = residue_limit(loaded, length), method_of(loaded)
    errors = [_protein_error(loaded, record, limit) for record in records]
    good = [r for r, e in zip(records, errors, strict=True) if isinstance(r, Record) and not e]
    sequences = [record.sequence for record in good]
    scores = list(likelihoods(loaded, sequences, softmax=softmax, length=length, progress=progress))
    results = iter(scores)
    rows = []
    for record, error in zip(records, errors, strict=True):
        numbers = [""] * 6 if error else _numbers(next(results))
        rows.append([record.id, *numbers, method, softmax, error])
    write_atomically(output, _table(PROTEIN_COLUMNS, rows))

    residues = sum(score.scored for score in scores)
    lines = [
        f"{len(scores):,} of {len(records):,} proteins scored, {residues:,} residues: {method}, "
        f"softmax over {SOFTMAX_NAMES[softmax]}"
    ]
    if scores:
        mean = sum(score.total for score in scores) / residues
        median = float(np.median([score.perplexity for score in scores]))
        lines.append(
            f"{mean:.4f} nats per residue, perplexity {np.exp(-mean):.3f} (median protein "
            f"{median:.3f})"
        )
    if kind_of(loaded) == "denoising":
        lines.append("not comparable with pseudo-perplexity: the decoder sees what comes before")
    pairs = zip(good, scores, strict=True)
    long = [f"{r.id} ({len(r.sequence)})" for r, s in pairs if s.window < len(r.sequence)]
    lines += _listed(long, f"longer than {limit} residues, asked in the window around each residue")
    named = zip(records, errors, strict=True)
    failures = [f"line {r.line}, {r.id or 'without a name'}: {e}" for r, e in named if e]
    return _outcome(lines, failures, output)


def _score_variants(
    loaded: LoadedModel,
    table: VariantTable,
    output: Path,
    length: int | None,
    softmax: Softmax,
    strategy: Strategy | None,
    progress: bool,
) -> Outcome:
    if clash := [name for name in VARIANT_COLUMNS if name in table.columns]:
        raise ProtlmError(
            f"the table has a column {clash[0]!r} already, which is one of the result's; rename it"
        )
    strategy, limit = choose_strategy(loaded, strategy), residue_limit(loaded, length)
    errors = [row.error or _variant_error(row.variant, limit) for row in table.rows]
    good = np.array([not error for error in errors])
    variants = [r.variant for r, e in zip(table.rows, errors, strict=True) if r.variant and not e]
    scores = np.full(len(errors), np.nan)
    scores[good] = effects(
        loaded, variants, strategy=strategy, softmax=softmax, length=length, progress=progress
    )
    rows = []
    for row, score, error in zip(table.rows, scores, errors, strict=True):
        fields = [*row.fields, *[""] * len(table.columns)][: len(table.columns)]
        rows.append([*fields, "" if error else f"{score:.6f}", strategy, error])
    write_atomically(output, _table((*table.columns, *VARIANT_COLUMNS), rows))

    wildtypes = list(dict.fromkeys(variant.wildtype for variant in variants))
    lines = [
        f"{len(variants):,} of {len(errors):,} variants of {len(wildtypes):,} wild type(s) scored: "
        f"{strategy}, nats, positive where the model prefers the mutant"
    ]
    if strategy == "likelihood-ratio":
        lines.append(f"softmax over {SOFTMAX_NAMES[softmax]}")
    if "DMS_score" in table.columns:
        lines += _correlations(table, scores, good)
    long = [table.name(w) for w in wildtypes if limit is not None and len(w) > limit]
    lines += _listed(long, f"longer than {limit} residues, asked in the window around mutations")
    failures = [f"line {r.line}: {e}" for r, e in zip(table.rows, errors, strict=True) if e]
    return _outcome(lines, failures, output)


def _correlations(table: VariantTable, scores: np.ndarray, good: np.ndarray) -> list[str]:
    """Spearman's correlation with DMS_score for each wild type."""
    measured = np.array([_float(text) for text in table.column("DMS_score")])
    members: dict[str, list[int]] = defaultdict(list)
    for i in np.flatnonzero(good & np.isfinite(measured)).tolist():
        variant = table.rows[i].variant
        assert variant is not None
        members[variant.wildtype].append(i)
    lines = []
    for wildtype, rows in members.items():
        value = statistics.spearman(scores[rows], measured[rows])
        shown = "not defined" if value is None else f"{value:+.4f}"
        lines.append(
            f"Spearman with DMS_score: {shown} ({len(rows):,} variants of {table.name(wildtype)})"
        )
    return lines or ["no scored variant has a number in DMS_score"]


def _protein_error(loaded: LoadedModel, record: Record | BadRecord, limit: int | None) -> str:
    """Why a protein cannot be scored; "" where it can."""
    if isinstance(record, BadRecord):
        return str(record.error)
    try:
        loaded.vocabulary.encode(record.sequence)
        asked = questions_of(loaded, 0, record.sequence, limit)
    except ProtlmError as error:
        return str(error)
    return "" if asked else "none of its residues can be scored: no standard amino acid to predict"


def _variant_error(variant: Variant | None, limit: int | None) -> str:
    """Why a variant of a known wild type cannot be scored; "" where it can."""
    assert variant is not None
    try:
        fits(variant, limit)
    except ProtlmError as error:
        return str(error)
    return ""


def _numbers(score: Likelihood) -> list[str]:
    """Fields of a protein that was scored."""
    return [
        str(len(score.log_probabilities)),
        str(score.scored),
        f"{score.total:.6f}",
        f"{score.mean:.6f}",
        f"{score.perplexity:.6f}",
        str(score.window),
    ]


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _listed(items: Sequence[str], what: str) -> list[str]:
    """A count, and the first items, one a line."""
    if not items:
        return []
    more = [f"  ... and {len(items) - _LISTED:,} more"] if len(items) > _LISTED else []
    return [f"{len(items):,} {what}:", *(f"  {item}" for item in items[:_LISTED]), *more]


def _outcome(lines: list[str], failures: list[str], output: Path) -> Outcome:
    return Outcome(
        "\n".join([*lines, *_listed(failures, "not scored"), f"wrote {output}"]), len(failures)
    )


def _is_fasta(path: Path) -> bool:
    """Whether the first line that is not blank is a FASTA header."""
    first = next((line for _, line in text_lines(str(path)) if line), "")
    return first.startswith(">")


def _need_writable(output: Path, path: Path) -> None:
    """Refuses at once what would fail after the work is done."""
    if output.is_dir() or (output.exists() and output.samefile(path)):
        raise ProtlmError(
            f"cannot write {output}: it is a folder or the input; choose another file"
        )
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not os.access(folder, os.W_OK):
        raise ProtlmError(f"cannot write {output}: no permission in {folder}; choose another place")
