"""`protlm score --proteingym`: all assays of ProteinGym, and its official means.

    OUTPUT/assays/DMS_ID.csv    the assay's table with the columns score, method, error
    OUTPUT/assays.csv           one row an assay: Spearman, AUC, Spearman by number of mutations
    OUTPUT/summary.csv          the means

The means are those of ProteinGym's `performance_DMS_benchmarks.py` (Notin et al. 2023), without its
rounding of each assay to three digits: over the assays of a protein and function class, then over
the proteins of a class, then over the classes; by MSA depth and by taxon over the assays of a
protein, then over proteins; by number of mutations over proteins and classes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.data.tables import TextTable, find_column, is_number, read_table
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.outcome import Outcome, listed
from protlm_jax.evaluation.scoring.files import Scoring, score_variants
from protlm_jax.evaluation.scoring.score import Strategy, choose_strategy, kind_of
from protlm_jax.evaluation.scoring.table import VariantTable, read_variants
from protlm_jax.evaluation.tables import Table
from protlm_jax.models.identity import identity
from protlm_jax.storage.digests import digest_of
from protlm_jax.storage.json_files import digest_of_json
from protlm_jax.storage.parts import SETTINGS, claim, finish, finished
from protlm_jax.vocabularies import ResiduePolicy, normalise

DEPTHS = ("1", "2", "3", "4", "5+")  # numbers of mutations
NEEDED = ("DMS_id", "DMS_filename", "target_seq", "UniProt_ID", "coarse_selection_type")
SLICES = {"MSA depth": "MSA_Neff_L_category", "taxon": "taxon"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Assay:
    """A row of the reference file, the assay's file, and why it cannot be scored, or ""."""

    fields: Mapping[str, str]
    file: Path
    fault: str = ""

    @property
    def name(self) -> str:
        return self.fields["DMS_id"]


def read_reference(folder: Path, *, indels: bool = False) -> list[Assay]:
    """The assays of a benchmark's folder, whose files may lie up to two folders deep.

    Raises:
        ProtlmError: there is no reference file, it lacks a column, or no assay's file is there.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    for pattern in ("*", "*/*", "*/*/*"):
        for file in sorted(folder.glob(pattern)):
            files[file.name].append(file)
    wanted = "DMS_indels.csv" if indels else "DMS_substitutions.csv"
    if not files[wanted]:
        raise ProtlmError(f"{folder} has no reference file {wanted}: is it ProteinGym's folder?")
    table = read_table(files[wanted][0])
    if missing := [name for name in NEEDED if name not in table.columns]:
        raise ProtlmError(f"{table.file} has no column {missing[0]!r}: is it the reference file?")
    assays = [_assay(row, table.place(i), files) for i, row in enumerate(table.rows)]
    if all(not assay.file.name for assay in assays):
        raise ProtlmError(f"{folder} has none of the files that {table.file} names")
    names = [assay.name for assay in assays]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ProtlmError(f"{table.file} has two assays {twice!r}")
    return assays


def _assay(fields: Mapping[str, str], place: str, files: Mapping[str, list[Path]]) -> Assay:
    found, fault = files.get(fields["DMS_filename"], []), ""
    if not re.fullmatch(r"\w[\w.+-]{0,150}", fields["DMS_id"]):
        fault = f"{place}: DMS_id {fields['DMS_id']!r:.60} cannot name a file"
    elif not found:
        fault = f"its file {fields['DMS_filename']!r} is missing"
    elif len(found) > 1:
        fault = f"there are {' and '.join(map(str, found))}: keep one of them"
    else:
        empty = [n for n in ("target_seq", "UniProt_ID", "coarse_selection_type") if not fields[n]]
        fault = f"{place}: {empty[0]} is empty" if empty else ""
    return Assay(fields, found[0] if found else Path(), fault)


def score_benchmark(
    scoring: Scoring,
    folder: Path,
    *,
    indels: bool = False,
    strategy: Strategy | None = None,
    policy: ResiduePolicy = ResiduePolicy(),
) -> Outcome:
    """Scores every assay of a folder that is not done yet, and writes the means.

    Args:
        scoring: its output is the folder to fill.
        folder: ProteinGym's, with its reference files.
        indels: the benchmark of insertions and deletions instead of that of substitutions.
        strategy: None is the official one, masked-marginals-additive, where it is defined.
        policy: how sequences are read.

    Raises:
        ProtlmError: the folder is not ProteinGym's, or the output holds something else.
    """
    loaded, output = scoring.loaded, scoring.output
    if strategy is None and kind_of(loaded) != "causal":
        strategy = "masked-marginals-additive"
    strategy = choose_strategy(loaded, strategy)
    assays = read_reference(folder, indels=indels)
    other = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if other and not (output / SETTINGS).is_file():
        raise ProtlmError(f"{output} holds other files: choose another --output")
    settings = {
        "proteingym": "indels" if indels else "substitutions", "identity": identity(loaded),
        "strategy": strategy, "softmax": scoring.softmax, "window": scoring.limit,
        "compute": loaded.config.dtype,
    }  # fmt: skip
    claim(output, settings)
    rows, failures, records = list[Row](), list[str](), 0
    for number, assay in enumerate(assays, start=1):
        try:
            about = _scored(scoring, assay, strategy, policy)
        except ProtlmError as error:
            about = {"measured": {}, "failures": [str(error)]}
        rows.append({"DMS_id": assay.name, **_groups(assay), **about["measured"]})
        failures += [f"{assay.name}: {failure}" for failure in about["failures"]]
        records += about["measured"].get("variants", 0)
        rho = about["measured"].get("Spearman")
        print(f"{number}/{len(assays)} {assay.name}: Spearman {_shown(rho)}", flush=True)
    Table.of(rows).csv(output / "assays.csv")
    means = Table.of(aggregate(rows))
    means.csv(output / "summary.csv")
    lines = [
        f"{sum(row.get('Spearman') is not None for row in rows)} of {len(assays)} assays, "
        f"{records:,} variants: {strategy}",
        means.text(),
        *listed(failures, "faults"),
        f"wrote {output}",
    ]
    return Outcome("\n".join(lines), len(failures))


def _shown(value: float | None) -> str:
    return "not defined" if value is None else f"{value:+.4f}"


def _groups(assay: Assay) -> Row:
    """What an assay is grouped by: protein, function class, and the slices."""
    groups = {"protein": assay.fields["UniProt_ID"], "function": assay.fields[NEEDED[-1]]}
    for name, column in SLICES.items():
        value = assay.fields.get(column, "") or "not stated"
        groups[name] = value[0].upper() + value[1:]
    return groups


def _scored(
    scoring: Scoring, assay: Assay, strategy: Strategy, policy: ResiduePolicy
) -> dict[str, Any]:
    """The note of an assay, which is scored unless it is done: measured numbers and failures."""
    if assay.fault:
        raise ProtlmError(assay.fault)
    output = scoring.output / "assays" / f"{assay.name}.csv"
    # With the digest of what it was made from.
    made_from = {"file": digest_of(assay.file), "reference": digest_of_json(dict(assay.fields))}
    note = output.with_name(f"{assay.name}.json")
    if (about := finished(note)) is not None and about["from"] == made_from:
        return about
    target = normalise(assay.fields["target_seq"], policy, record="target_seq")
    table = read_variants(assay.file, {assay.name: target}, policy)
    if "DMS_score" not in table.roles:
        raise ProtlmError(f"{assay.file} has no column DMS_score")
    _, scores, unscored = score_variants(replace(scoring, output=output), table, strategy)
    measured, failures = _measured(table, scores)
    if unscored:
        failures.insert(0, f"{len(unscored):,} variants without a score, as {unscored[0]}")
    return finish(note, [output], measured=measured, failures=failures, **{"from": made_from})


def _measured(table: VariantTable, scores: Mapping[int, float]) -> tuple[Row, list[str]]:
    """Spearman and AUC of the variants with a score and a measurement, and what is missing."""
    measured = _numbers(table.table, table.roles["DMS_score"])
    both = sorted(scores.keys() & measured.keys())
    failures = []
    if unmeasured := len(scores.keys() - measured.keys()):
        failures.append(f"{unmeasured:,} variants without a number in DMS_score")

    def spearman(rows: Sequence[int]) -> float | None:
        return statistics.spearman([scores[i] for i in rows], [measured[i] for i in rows])

    found: Row = {"variants": len(table.rows), "scored": len(both), "Spearman": spearman(both)}
    if found["Spearman"] is None:
        failures.append("Spearman is not defined: scores or measurements do not differ")
    if column := find_column(table.table, ("DMS_score_bin",)):
        binary = _numbers(table.table, column)
        rows = [i for i in both if i in binary]
        found["AUC"] = statistics.roc_auc([scores[i] for i in rows], [binary[i] for i in rows])
        if found["AUC"] is None:
            failures.append("AUC is not defined: DMS_score_bin has one class")
    by_depth: dict[str, list[int]] = defaultdict(list)
    for i in both:
        variant = table.rows[i].variant
        if variant is not None and not variant.is_indel:
            by_depth[DEPTHS[min(max(len(variant.positions), 1), len(DEPTHS)) - 1]].append(i)
    found |= {depth: spearman(by_depth[depth]) for depth in DEPTHS}
    return found, failures


def _numbers(table: TextTable, column: str) -> dict[int, float]:
    decimal = table.decimal(column)
    cells = enumerate(table.column(column))
    return {i: float(c.replace(decimal, ".")) for i, c in cells if is_number(c, decimal)}


def aggregate(rows: Sequence[Row]) -> list[Row]:
    """The official means of the assays' Spearman and AUC, see the top of this file.

    Args:
        rows: of each assay "protein", "function", the `SLICES`, and by metric a number or None.
    """
    whole: Row = {"mean": "all", "group": ""}
    result = []
    for name in ("function", *SLICES):
        metrics = {m: _by_protein(rows, itemgetter(name), m) for m in ("Spearman", "AUC")}
        groups = sorted({row[name] for row in rows if row.get("Spearman") is not None})
        for group in groups:
            mine = [r for r in rows if r[name] == group and r.get("Spearman") is not None]
            counts = {"assays": len(mine), "proteins": len({r["protein"] for r in mine})}
            values = {metric: means.get(group) for metric, means in metrics.items()}
            result.append({"mean": name, "group": group, **values, **counts})
        if name == "function":
            whole |= {metric: _mean(list(means.values())) for metric, means in metrics.items()}
    for depth in DEPTHS:
        mine = [row for row in rows if row.get(depth) is not None]
        pairs = _by_protein(mine, itemgetter("protein", "function"), depth)
        counts = {"assays": len(mine), "proteins": len({row["protein"] for row in mine})}
        value = {"Spearman": _mean(list(pairs.values())), "AUC": None, **counts}
        result += [{"mean": "mutations", "group": depth, **value}] if mine else []
    used = [row for row in rows if row.get("Spearman") is not None]
    whole |= {"assays": len(used), "proteins": len({row["protein"] for row in used})}
    return [whole, *result]


def _by_protein(
    rows: Sequence[Row], group: Callable[[Row], Any], metric: str
) -> dict[Any, float | None]:
    """The mean of each group over its proteins of the means over the assays of a protein."""
    proteins: dict[Any, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.get(metric) is not None:
            proteins[group(row)][row["protein"]].append(row[metric])
    return {name: _mean([_mean(v) for v in of.values()]) for name, of in proteins.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
