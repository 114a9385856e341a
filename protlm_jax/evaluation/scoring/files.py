"""`protlm score`: a FASTA file or a table of variants in, a CSV file of their scores out.

Records that cannot be scored keep their row, with the reason in the column `error`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.data.fasta import BadRecord, read_every_record, text_lines
from protlm_jax.data.tables import is_number, number
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.finite import reason
from protlm_jax.evaluation.outcome import Outcome, listed
from protlm_jax.evaluation.parts import Parts
from protlm_jax.evaluation.questions import Softmax
from protlm_jax.evaluation.scoring.mutations import Variant
from protlm_jax.evaluation.scoring.score import (
    SOFTMAX_NAMES,
    Likelihood,
    Strategy,
    choose_strategy,
    effects,
    groups_of,
    kind_of,
    likelihoods,
    method_of,
    questions_of,
    require_scorable,
    residue_limit,
    strategy_of,
)
from protlm_jax.evaluation.scoring.table import VariantTable, read_variants
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
UNCHANGED = "wild type"  # the method of a row without a change
# Variants in one part of the results: a likelihood-ratio takes a row of the model a residue.
_TOGETHER = defaultdict(lambda: 1 << 14, {"likelihood-ratio": 256})


@dataclass(frozen=True)
class Scoring:
    """How all records are scored, and where the results go."""

    loaded: LoadedModel
    output: Path
    length: int | None
    softmax: Softmax
    progress: bool

    @property
    def limit(self) -> int | None:
        """Residues that the model sees at once."""
        return residue_limit(self.loaded, self.length)

    @property
    def options(self) -> dict[str, Any]:
        """Of `likelihoods` and `effects`."""
        return {"softmax": self.softmax, "length": self.length, "progress": self.progress}

    @contextlib.contextmanager
    def computed(
        self,
        method: str,
        records: dict[int, Any],
        count: int,
        compute: Callable[[list[int]], Iterable[tuple[int, np.ndarray]]],
        dtype: np.dtype,
    ) -> Iterator[dict[int, np.ndarray]]:
        """The arrays that `compute` finds for the records, or has found before a kill.

        The work folder with the finite ones stays until the block, which writes the output, ends.
        """
        settings = {
            "identity": identity(self.loaded),
            "input": digest_of_data(json.dumps([[i, r] for i, r in records.items()]).encode()),
            "compute": self.loaded.config.dtype,
            "method": method,
            "softmax": self.softmax,
            "window": self.limit,
        }
        folder = self.output.with_name(self.output.name + ".work")
        with owned(folder, inside=True):
            parts = Parts.open(
                folder, settings, count, ["score"], lambda _, n: (n,), np.dtype(dtype)
            )
            found = {i: parts.read(i, "score") for i in records if parts.done[i]}
            try:
                for i, values in compute([i for i in records if i not in found]):
                    found[i] = values
                    if not np.isinf(values).any():
                        parts.add(i, len(values), {"score": values})
                        parts.flush()
                yield found
            except BaseException:
                parts.flush(whole=True)
                if not parts.done.any():
                    parts.remove()
                raise
            parts.remove()

    def reasons(self, broken: Mapping[int, str]) -> dict[int, str]:
        """Why the results for these sequences are not finite, by record."""
        found: dict[str, str] = {}
        for sequence in dict.fromkeys(broken.values()):
            weights = next((r for r in found.values() if r.startswith("the parameter")), "")
            found[sequence] = weights or reason(self.loaded, sequence)
        return {i: found[sequence] for i, sequence in broken.items()}

    def write(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        write_atomically(self.output, text.getvalue())

    def outcome(self, lines: list[str], failures: list[str]) -> Outcome:
        lines = [*lines, *listed(failures, "not scored"), f"wrote {self.output}"]
        return Outcome("\n".join(lines), len(failures))


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
        path: FASTA file or table, plain or compressed; the first character decides.
        output: CSV file to write, whole or not at all.
        length, softmax: see `score.likelihoods`.
        strategy: of variants, see `score`; None takes the model's default.
        wildtype, columns, offset: of variants, see `table.read_variants`.
        policy: what to do with rare residues and lower case.

    Raises:
        ProtlmError: the file as a whole cannot be read or written, or the model cannot answer.
    """
    kind_of(loaded)
    for file in filter(None, [path, wildtype]):
        if output.is_dir() or (output.exists() and file.exists() and output.samefile(file)):
            raise ProtlmError(
                f"cannot write {output}: it is a folder or the input; choose another file"
            )
    scoring = Scoring(loaded, output, length, softmax, progress)
    first = next((line for _, line in text_lines(str(path)) if line), "")
    if not first.startswith(">"):
        table = read_variants(path, wildtype, policy, columns=columns, offset=offset)
        return score_variants(scoring, table, choose_strategy(loaded, strategy))[0]
    if wildtype is not None or strategy is not None or columns or offset:
        raise ProtlmError(
            f"{path} is a FASTA file: --strategy, --wildtype, --columns and --offset are for "
            "variants"
        )
    return _score_proteins(scoring, path, policy)


def _score_proteins(scoring: Scoring, path: Path, policy: ResiduePolicy) -> Outcome:
    loaded, limit, softmax = scoring.loaded, scoring.limit, scoring.softmax
    records, method = list(read_every_record(path, policy)), method_of(loaded)
    errors = [""] * len(records)
    sequences: dict[int, str] = {}
    for i, record in enumerate(records):
        try:
            if isinstance(record, BadRecord):
                raise record.error
            loaded.vocabulary.encode(record.sequence)
            if not questions_of(loaded, 0, record.sequence, limit):
                raise ProtlmError(
                    "none of its residues can be scored: no standard amino acid to predict"
                )
            sequences[i] = record.sequence
        except ProtlmError as refused:
            errors[i] = str(refused)

    def compute(missing: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        scores = likelihoods(loaded, [sequences[i] for i in missing], **scoring.options)
        for i, score in zip(missing, scores, strict=True):
            yield i, score.log_probabilities

    with scoring.computed(method, sequences, len(records), compute, np.dtype(np.float32)) as found:
        scores = {i: Likelihood(x, min(len(x), limit or len(x))) for i, x in found.items()}
        broken = {i: sequences[i] for i, s in scores.items() if not np.isfinite(s.perplexity)}
        for i, why in scoring.reasons(broken).items():
            errors[i] = f"the log-likelihood is not finite: {why}"
            del scores[i]
        rows = []
        for i, (record, error) in enumerate(zip(records, errors, strict=True)):
            numbers = [""] * 6
            if score := scores.get(i):
                sums = [f"{x:.6f}" for x in (score.total, score.mean, score.perplexity)]
                length = len(score.log_probabilities)
                numbers = [str(length), str(score.scored), *sums, str(score.window)]
            rows.append([record.id, *numbers, method, softmax, error])
        scoring.write(PROTEIN_COLUMNS, rows)

    names = [record.id for record in records]
    failures = [
        f"line {record.line}, {record.id or 'without a name'}: {error}"
        for record, error in zip(records, errors, strict=True)
        if error
    ]
    return scoring.outcome(_protein_summary(scoring, names, scores), failures)


def _protein_summary(
    scoring: Scoring, names: Sequence[str], scores: Mapping[int, Likelihood]
) -> list[str]:
    residues = sum(score.scored for score in scores.values())
    lines = [
        f"{len(scores):,} of {len(names):,} proteins scored, {residues:,} residues: "
        f"{method_of(scoring.loaded)}, softmax over {SOFTMAX_NAMES[scoring.softmax]}"
    ]
    if scores:
        mean = sum(score.total for score in scores.values()) / residues
        median = float(np.median([score.perplexity for score in scores.values()]))
        lines.append(
            f"{mean:.4f} nats per residue, perplexity {np.exp(-mean):.3f} (median protein "
            f"{median:.3f})"
        )
    if kind_of(scoring.loaded) == "denoising":
        lines.append("not comparable with pseudo-perplexity: the decoder sees what comes before")
    lengths = {i: len(scores[i].log_probabilities) for i in sorted(scores)}
    long = [f"{names[i]} ({n})" for i, n in lengths.items() if scores[i].window < n]
    words = f"longer than {scoring.limit} residues, predicted in the window around each one"
    return lines + listed(long, words)


def score_variants(
    scoring: Scoring, table: VariantTable, strategy: Strategy
) -> tuple[Outcome, dict[int, float], list[str]]:
    """Writes the scores of a table; also gives the finite ones by row, and a line a failure."""
    loaded, limit, columns = scoring.loaded, scoring.limit, table.table.columns
    names = _result_columns(columns)
    errors = [row.error for row in table.rows]
    variants: dict[int, Variant] = {}
    for i, row in enumerate(table.rows):
        if row.variant is not None:
            try:
                require_scorable(loaded, row.variant, strategy, limit)
                variants[i] = row.variant
            except ProtlmError as refused:
                errors[i] = str(refused)

    def compute(missing: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(missing), _TOGETHER[strategy]):
            part = missing[start : start + _TOGETHER[strategy]]
            own = [variants[i] for i in part]
            scores = effects(loaded, own, strategy=strategy, **scoring.options)
            yield from zip(part, scores[:, None], strict=True)

    pairs = {i: [v.wildtype, v.sequence] for i, v in variants.items()}
    with scoring.computed(strategy, pairs, len(errors), compute, np.dtype(np.float64)) as found:
        scores = {i: float(value) for i, (value,) in sorted(found.items())}
        broken = {i: variants[i].wildtype for i, s in scores.items() if not np.isfinite(s)}
        for i, why in scoring.reasons(broken).items():
            errors[i] = f"the score is not finite: {why}"
            del variants[i], scores[i]
        methods = {i: _method(variant, strategy, limit) for i, variant in variants.items()}
        rows = []
        for i, (row, error) in enumerate(zip(table.rows, errors, strict=True)):
            cells = [*row.cells, *[""] * len(columns)][: len(columns)]
            score = "" if error else f"{scores[i]:.6f}"
            rows.append([*cells, score, methods.get(i, strategy), error])
        scoring.write((*columns, *names), rows)

    lines = _summary(scoring, table, variants, methods, strategy)
    if "DMS_score" in table.roles:
        lines += _correlations(table, scores, variants, methods)
    wildtypes = dict.fromkeys(v.wildtype for v in variants.values())
    long = [table.name(w) for w in wildtypes if limit is not None and len(w) > limit]
    lines += listed(long, f"longer than {limit} residues, shown in the window around mutations")
    if names != VARIANT_COLUMNS:
        lines.append(f"the table has such columns already: results are in {', '.join(names)}")
    lines += filter(None, [table.hint])
    failures = [f"line {r.line}: {e}" for r, e in zip(table.rows, errors, strict=True) if e]
    return scoring.outcome(lines, failures), scores, failures


def _result_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """Names of the result's columns, with a prefix where the table has one of them already."""
    for prefix in ("", "protlm_"):
        names = tuple(prefix + name for name in VARIANT_COLUMNS)
        if not set(names) & set(columns):
            return names
    taken = sorted(set(names) & set(columns))[0]
    raise ProtlmError(f"the table has a column {taken!r}, which is one of the result's; rename it")


def _method(variant: Variant, strategy: Strategy, limit: int | None) -> str:
    if variant.is_wildtype:
        return UNCHANGED
    own = strategy_of(variant, strategy)
    windows = len(groups_of(variant.positions, limit)) if own == "masked-marginals" else 1
    return own if windows == 1 else f"{own} in {windows} windows"


def _summary(
    scoring: Scoring,
    table: VariantTable,
    variants: dict[int, Variant],
    methods: dict[int, str],
    strategy: Strategy,
) -> list[str]:
    """What was scored and how."""
    wildtypes = {variant.wildtype for variant in variants.values()}
    of = Counter(methods.values())
    ratios, apart = of["likelihood-ratio"], sum(n for m, n in of.items() if m.endswith("windows"))
    mixed = 0 < ratios < len(variants) - of[UNCHANGED]
    kinds: str = "likelihood-ratio" if ratios else strategy
    if mixed:
        kinds = f"{strategy} and likelihood-ratio"
    used = [c if c == r else f"{c} as {r}" for r, c in table.roles.items()]
    lines = [
        f"{len(variants):,} of {len(table.rows):,} variants of {len(wildtypes):,} wild type(s) "
        f"scored: {kinds}, nats, positive where the model prefers the mutant",
        f"columns that were used: {', '.join(used)}",
    ]
    if of[UNCHANGED]:
        lines.append(f"{of[UNCHANGED]:,} without a change: the wild type itself, 0")
    if apart:
        lines.append(
            f"{apart:,} with mutations too far apart for one window: the sum over windows, each "
            "with its own positions masked"
        )
    if ratios:
        lines.append(
            f"likelihood-ratio: {method_of(scoring.loaded)}, summed over residues, softmax over "
            f"{SOFTMAX_NAMES[scoring.softmax]}"
        )
    if mixed:
        lines.append(
            f"{ratios:,} with insertions or deletions are on the scale of likelihood-ratio, not of "
            f"{strategy} (column method): do not rank them together; --strategy likelihood-ratio "
            "scores all variants alike"
        )
    return lines


def _correlations(
    table: VariantTable,
    scores: dict[int, float],
    variants: dict[int, Variant],
    methods: dict[int, str],
) -> list[str]:
    """Spearman's correlation with DMS_score for each wild type, and each scale of scores."""
    column = table.roles["DMS_score"]
    decimal, cells = table.table.decimal(column), table.table.column(column)
    measured = {
        i: number(cells[i], column, decimal) for i in variants if is_number(cells[i], decimal)
    }
    members: dict[str, list[int]] = defaultdict(list)
    for i in measured:
        members[variants[i].wildtype].append(i)
    lines = []
    for wildtype, rows in members.items():
        ratios = {i for i in rows if methods[i] == "likelihood-ratio"}
        marginals = {i for i in rows if methods[i] != UNCHANGED} - ratios
        groups = {"variants": rows}
        if ratios and marginals:  # the wild type is 0 on both scales
            groups = {
                "substitutions": [i for i in rows if i not in ratios],
                "insertions and deletions": [i for i in rows if i not in marginals],
            }
        for what, group in groups.items():
            value = statistics.spearman([scores[i] for i in group], [measured[i] for i in group])
            shown = "not defined" if value is None else f"{value:+.4f}"
            lines.append(
                f"Spearman with {column}: {shown} ({len(group):,} {what} of {table.name(wildtype)})"
            )
    return lines or [f"no scored variant has a number in {column}"]
