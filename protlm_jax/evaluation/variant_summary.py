"""What `protlm score` says about variants that were scored: kinds, scales, correlations."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from protlm_jax.data.tables import is_number, number
from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.questions import Softmax
from protlm_jax.evaluation.score import SOFTMAX_NAMES, method_of
from protlm_jax.evaluation.variant_files import VariantTable
from protlm_jax.evaluation.variants import Strategy, Variant, groups_of, strategy_of
from protlm_jax.models.loaded import LoadedModel

UNCHANGED = "wild type"  # the method of a row without a change


def method_for(variant: Variant, strategy: Strategy, limit: int | None) -> str:
    """How a variant was scored, for its row."""
    if variant.is_wildtype:
        return UNCHANGED
    own = strategy_of(variant, strategy)
    windows = len(groups_of(variant.positions, limit)) if own == "masked-marginals" else 1
    return own if windows == 1 else f"{own} in {windows} windows"


def scored_lines(
    loaded: LoadedModel,
    table: VariantTable,
    variants: dict[int, Variant],
    methods: dict[int, str],
    strategy: Strategy,
    softmax: Softmax,
) -> list[str]:
    """What was scored and how, for people."""
    wildtypes = {variant.wildtype for variant in variants.values()}
    of = Counter(methods.values())
    ratios, apart = of["likelihood-ratio"], sum(n for m, n in of.items() if m.endswith("windows"))
    mixed = 0 < ratios < len(variants) - of[UNCHANGED]
    kinds: str = f"{strategy} and likelihood-ratio" if mixed else strategy
    if ratios and not mixed:
        kinds = "likelihood-ratio"
    lines = [
        f"{len(variants):,} of {len(table.rows):,} variants of {len(wildtypes):,} wild type(s) "
        f"scored: {kinds}, nats, positive where the model prefers the mutant"
    ]
    used = [c if c == r else f"{c} as {r}" for r, c in table.roles.items()]
    lines.append(f"columns that were used: {', '.join(used)}")
    if of[UNCHANGED]:
        lines.append(f"{of[UNCHANGED]:,} without a change: the wild type itself, 0")
    if apart:
        lines.append(
            f"{apart:,} with mutations too far apart for one window: the sum over windows, each "
            "with its own positions masked"
        )
    if ratios:
        lines.append(
            f"likelihood-ratio: {method_of(loaded)}, summed over residues, softmax over "
            f"{SOFTMAX_NAMES[softmax]}"
        )
    if mixed:
        lines.append(
            f"{ratios:,} with insertions or deletions are on the scale of likelihood-ratio, not of "
            f"{strategy} (column method): do not rank them together; --strategy likelihood-ratio "
            "scores all variants alike"
        )
    return lines


def correlations(
    table: VariantTable, scores: np.ndarray, variants: dict[int, Variant], methods: dict[int, str]
) -> list[str]:
    """Spearman's correlation with DMS_score for each wild type, and each scale."""
    column = table.roles["DMS_score"]
    decimal = table.table.decimal(column)
    cells = table.table.column(column)
    measured = {
        i: number(cells[i], column, decimal) for i in variants if is_number(cells[i], decimal)
    }
    members: dict[str, list[int]] = defaultdict(list)
    for i, variant in variants.items():
        if i in measured:
            members[variant.wildtype].append(i)
    lines = []
    for wildtype, rows in members.items():
        ratios = {i for i in rows if methods[i] == "likelihood-ratio"}
        marginals = {i for i in rows if methods[i] != UNCHANGED} - ratios
        parts = {"variants": rows}
        if ratios and marginals:  # two scales; the wild type is 0 on both
            parts = {
                "substitutions": [i for i in rows if i not in ratios],
                "insertions and deletions": [i for i in rows if i not in marginals],
            }
        for what, part in parts.items():
            value = statistics.spearman(scores[part], [measured[i] for i in part])
            shown = "not defined" if value is None else f"{value:+.4f}"
            lines.append(
                f"Spearman with {column}: {shown} ({len(part):,} {what} of {table.name(wildtype)})"
            )
    return lines or [f"no scored variant has a number in {column}"]
