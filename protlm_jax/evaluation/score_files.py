"""`protlm score`: a FASTA file or a table of variants in, one CSV row for each of its records out.

Records that cannot be scored keep their row, with the reason in the column `error`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.data.fasta import BadRecord, Record, read_every_record, text_lines
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.finite import reason
from protlm_jax.evaluation.outcome import Outcome, listed
from protlm_jax.evaluation.parts import Parts
from protlm_jax.evaluation.questions import Softmax
from protlm_jax.evaluation.score import (
    SOFTMAX_NAMES,
    Likelihood,
    kind_of,
    likelihoods,
    method_of,
    questions_of,
    residue_limit,
)
from protlm_jax.evaluation.variant_files import VariantTable, read_variants
from protlm_jax.evaluation.variant_summary import correlations, method_for, scored_lines
from protlm_jax.evaluation.variants import (
    Strategy,
    Variant,
    choose_strategy,
    effects,
    require_scorable,
)
from protlm_jax.models.identity import identity
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.storage.digests import digest_of_data
from protlm_jax.storage.files import write_atomically
from protlm_jax.storage.owner import owned
from protlm_jax.vocabularies import ResiduePolicy

PROTEIN_COLUMNS = (
    "id", "length", "scored", "log_likelihood", "mean_log_likelihood", "perplexity", "window",
    "method", "softmax", "error",
)  # fmt: skip
VARIANT_COLUMNS = ("score", "method", "error")
# Variants between two parts: a likelihood-ratio takes a row of the model for each residue.
_SHARE = defaultdict(lambda: 1 << 14, {"likelihood-ratio": 256})


def score_file(
    loaded: LoadedModel,
    path: Path,
    output: Path,
    *,
    length: int | None = None,
    softmax: Softmax = "residues",
    strategy: Strategy | None = None,
    wildtype: Path | None = None,
    columns: Mapping[str, str] | None = None,
    offset: int = 0,
    policy: ResiduePolicy = ResiduePolicy(),
    progress: bool = False,
) -> Outcome:
    """Scores the proteins of a FASTA file or the variants of a table, in their order.

    Args:
        loaded: the model.
        path: FASTA file or table, plain or compressed; told apart by the first character.
        output: CSV file to write, whole or not at all.
        length: tokens in a row, see `score.likelihoods`.
        softmax: over the 20 amino acids or the whole vocabulary.
        strategy: of variants; None takes the model's own.
        wildtype: FASTA file with the variants' wild types.
        columns: role -> column of the table, see `variant_files.ROLES`.
        offset: added to the positions of mutations.
        policy: what to do with rare residues and lower case.
        progress: draw a progress bar on a terminal.

    Raises:
        ProtlmError: the file as a whole cannot be read or written, or the model cannot answer.
    """
    kind_of(loaded)
    _need_writable(output, path, *filter(None, [wildtype]))
    if not _is_fasta(path):
        table = read_variants(path, wildtype, policy, columns=columns, offset=offset)
        return _score_variants(loaded, table, output, length, softmax, strategy, progress)
    if wildtype is not None or strategy is not None or columns or offset:
        raise ProtlmError(
            f"{path} is a FASTA file: --strategy, --wildtype, --columns and --offset are for "
            "variants"
        )
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
    sequences = {
        i: r.sequence
        for i, (r, error) in enumerate(zip(records, errors, strict=True))
        if isinstance(r, Record) and not error
    }
    scores: dict[int, Likelihood] = {}
    settings = _settings(loaded, softmax, limit, method, list(sequences.items()))
    with _resumable(output, settings, len(records), np.dtype(np.float32)) as parts:
        for i in np.flatnonzero(parts.done).tolist():
            values = parts.read(i, "score")
            scores[i] = Likelihood(values, min(len(values), limit or len(values)))
        left = {i: sequence for i, sequence in sequences.items() if i not in scores}
        found = likelihoods(
            loaded, list(left.values()), softmax=softmax, length=length, progress=progress
        )
        for i, score in zip(left, found, strict=True):
            scores[i] = score
            if score.finite:
                parts.add(i, len(left[i]), {"score": score.log_probabilities})
                parts.flush()
        return _proteins_written(loaded, records, errors, sequences, scores, output, limit, softmax)


def _proteins_written(
    loaded: LoadedModel,
    records: list[Record | BadRecord],
    errors: list[str],
    sequences: dict[int, str],
    scores: dict[int, Likelihood],
    output: Path,
    limit: int | None,
    softmax: Softmax,
) -> Outcome:
    """Writes a row for each record."""
    method = method_of(loaded)
    scores = {i: scores[i] for i in sequences}
    broken = {i: s for i, s in sequences.items() if not np.isfinite(scores[i].perplexity)}
    for i, why in _reasons(loaded, broken).items():
        errors[i] = f"the log-likelihood is not finite: {why}"
        del scores[i]
    named = list(zip(records, errors, strict=True))
    rows = [
        [r.id, *(_numbers(scores[i]) if i in scores else [""] * 6), method, softmax, error]
        for i, (r, error) in enumerate(named)
    ]
    write_atomically(output, _table(PROTEIN_COLUMNS, rows))

    residues = sum(score.scored for score in scores.values())
    lines = [
        f"{len(scores):,} of {len(records):,} proteins scored, {residues:,} residues: {method}, "
        f"softmax over {SOFTMAX_NAMES[softmax]}"
    ]
    if scores:
        mean = sum(score.total for score in scores.values()) / residues
        median = float(np.median([score.perplexity for score in scores.values()]))
        lines.append(
            f"{mean:.4f} nats per residue, perplexity {np.exp(-mean):.3f} (median protein "
            f"{median:.3f})"
        )
    if kind_of(loaded) == "denoising":
        lines.append("not comparable with pseudo-perplexity: the decoder sees what comes before")
    lengths = {i: len(score.log_probabilities) for i, score in scores.items()}
    long = [f"{records[i].id} ({n})" for i, n in lengths.items() if scores[i].window < n]
    lines += listed(long, f"longer than {limit} residues, asked in the window around each residue")
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
    _free_names(table.table.columns)
    strategy, limit = choose_strategy(loaded, strategy), residue_limit(loaded, length)
    errors = [r.error for r in table.rows]
    variants: dict[int, Variant] = {}
    for i, row in enumerate(table.rows):
        if row.variant is not None:
            try:
                require_scorable(loaded, row.variant, strategy, limit)
                variants[i] = row.variant
            except ProtlmError as error:
                errors[i] = str(error)
    scores = np.full(len(errors), np.nan)
    pairs = [[i, v.wildtype, v.sequence] for i, v in variants.items()]
    settings = _settings(loaded, softmax, limit, strategy, pairs)
    with _resumable(output, settings, len(errors), np.dtype(np.float64)) as parts:
        for i in np.flatnonzero(parts.done).tolist():
            (scores[i],) = parts.read(i, "score")
        left, share = [i for i in variants if not parts.done[i]], _SHARE[strategy]
        for start in range(0, len(left), share):
            own = left[start : start + share]
            scores[own] = effects(
                loaded,
                [variants[i] for i in own],
                strategy=strategy,
                softmax=softmax,
                length=length,
                progress=progress,
            )
            for i in own:
                if np.isfinite(scores[i]):
                    parts.add(i, 1, {"score": scores[i : i + 1]})
            parts.flush()
        return _variants_written(
            loaded, table, errors, variants, scores, output, limit, strategy, softmax
        )


def _variants_written(
    loaded: LoadedModel,
    table: VariantTable,
    errors: list[str],
    variants: dict[int, Variant],
    scores: np.ndarray,
    output: Path,
    limit: int | None,
    strategy: Strategy,
    softmax: Softmax,
) -> Outcome:
    """Writes a row for each variant."""
    columns, names = table.table.columns, _free_names(table.table.columns)
    broken = {i: v.wildtype for i, v in variants.items() if not np.isfinite(scores[i])}
    for i, why in _reasons(loaded, broken).items():
        errors[i] = f"the score is not finite: {why}"
        del variants[i]
    methods = {i: method_for(variant, strategy, limit) for i, variant in variants.items()}
    rows = []
    for i, (row, error) in enumerate(zip(table.rows, errors, strict=True)):
        cells = [*row.cells, *[""] * len(columns)][: len(columns)]
        score = "" if error else f"{scores[i]:.6f}"
        rows.append([*cells, score, methods.get(i, strategy), error])
    write_atomically(output, _table((*columns, *names), rows))

    lines = scored_lines(loaded, table, variants, methods, strategy, softmax)
    if "DMS_score" in table.roles:
        lines += correlations(table, scores, variants, methods)
    wildtypes = dict.fromkeys(v.wildtype for v in variants.values())
    long = [table.name(w) for w in wildtypes if limit is not None and len(w) > limit]
    lines += listed(long, f"longer than {limit} residues, asked in the window around mutations")
    failures = [f"line {r.line}: {e}" for r, e in zip(table.rows, errors, strict=True) if e]
    if names != VARIANT_COLUMNS:
        lines.append(f"the table has such columns already: results are in {', '.join(names)}")
    return _outcome([*lines, *filter(None, [table.hint])], failures, output)


@contextlib.contextmanager
def _resumable(
    output: Path, settings: dict[str, Any], records: int, dtype: np.dtype
) -> Iterator[Parts]:
    """Scores of records in a work folder beside the output, until this is written."""
    folder = output.with_name(output.name + ".work")
    with owned(folder, inside=True):
        parts = Parts.open(folder, settings, records, ["score"], lambda _, n: (n,), dtype)
        try:
            yield parts
        except BaseException:
            parts.flush(whole=True)
            if not parts.done.any():
                parts.remove()
            raise
        parts.remove()


def _settings(
    loaded: LoadedModel, softmax: Softmax, limit: int | None, method: str, asked: list[Any]
) -> dict[str, Any]:
    """All that decides what the scores are."""
    return {
        "identity": identity(loaded),
        "input": digest_of_data(json.dumps(asked).encode()),
        "compute": loaded.config.dtype,
        "method": method,
        "softmax": softmax,
        "window": limit,
    }


def _free_names(columns: Sequence[str]) -> tuple[str, ...]:
    """Names of the result's columns, with a prefix where the table has one of them already."""
    for prefix in ("", "protlm_"):
        names = tuple(prefix + name for name in VARIANT_COLUMNS)
        if not set(names) & set(columns):
            return names
    taken = sorted(set(names) & set(columns))[0]
    raise ProtlmError(f"the table has a column {taken!r}, which is one of the result's; rename it")


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


def _reasons(loaded: LoadedModel, broken: dict[int, str]) -> dict[int, str]:
    """Why results are not finite, by record, of the sequences that the model read."""
    found: dict[str, str] = {}
    for sequence in dict.fromkeys(broken.values()):
        weights = next((r for r in found.values() if r.startswith("the parameter")), "")
        found[sequence] = weights or reason(loaded, sequence)
    return {i: found[sequence] for i, sequence in broken.items()}


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


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _outcome(lines: list[str], failures: list[str], output: Path) -> Outcome:
    return Outcome(
        "\n".join([*lines, *listed(failures, "not scored"), f"wrote {output}"]), len(failures)
    )


def _is_fasta(path: Path) -> bool:
    """Whether the first line that is not blank is a FASTA header."""
    first = next((line for _, line in text_lines(str(path)) if line), "")
    return first.startswith(">")


def _need_writable(output: Path, *inputs: Path) -> None:
    """Refuses at once what would fail after the work is done."""
    for path in inputs:
        if output.is_dir() or (output.exists() and path.exists() and output.samefile(path)):
            raise ProtlmError(
                f"cannot write {output}: it is a folder or the input; choose another file"
            )
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ProtlmError(f"cannot write {output}: {folder} is no folder; choose another place")
    if not os.access(folder, os.W_OK):
        raise ProtlmError(f"cannot write {output}: no permission in {folder}; choose another place")
