"""What each family can do, read from the registry; each column names the test that shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from protlm_jax.models.registry import Family


class Column(NamedTuple):
    """What it says of a family ("" for no), and a test over all families for which that is so."""

    cell: Callable[[Family], str]
    test: str


def _kernels(family: Family) -> str:
    from protlm_jax.models.attention_context import choose_backend

    config = next(iter(family.presets.values())).replace(dtype="bfloat16", dropout_rate=0.0)
    kinds = {"TPU": "TPU v4", "NVIDIA": "NVIDIA H100 80GB HBM3"}
    chosen = {name: choose_backend(config, kind, 512).name for name, kind in kinds.items()}
    return ", ".join(f"{chosen[name]} ({name})" for name in kinds if chosen[name] != "xla")


def _variants(family: Family) -> str:
    from protlm_jax.evaluation.scoring.score import STRATEGIES

    known = STRATEGIES.get(family.module.readouts[0].kind, ())
    return {0: "", 1: known[0] if known else ""}.get(len(known), f"{len(known)} strategies")


def _scores(family: Family) -> str:
    from protlm_jax.evaluation.scoring.score import METHODS

    readout = family.module.readouts[0]
    both = ", both directions" if readout.both_ways else ""
    return METHODS.get(readout.kind, "") and METHODS[readout.kind] + both


def _exported(family: Family) -> str:
    from protlm_jax.models.exchange import Joint

    if isinstance(family.exchange, Joint):
        return " and ".join(family.exchange.parts)
    return family.exchange.architecture


COLUMNS = {
    "published": Column(
        lambda f: ", ".join(f.presets),
        "tests/huggingface/test_save.py::test_published_configs_are_the_presets",
    ),
    "train: objective": Column(
        lambda f: ", ".join(f.module.objectives),
        "tests/training/test_loop.py::test_an_interrupted_run_goes_on_bit_for_bit",
    ),
    "embed, probe, predict": Column(
        lambda f: "yes",
        "tests/evaluation/embedding/test_sequences.py"
        "::test_a_protein_is_the_same_alone_in_any_batch_and_on_any_devices",
    ),
    "score, evaluate": Column(
        _scores,
        "tests/evaluation/scoring/test_score.py::test_a_single_residue_has_a_score_where_something_stands_before_it",
    ),
    "score variants": Column(
        _variants,
        "tests/evaluation/scoring/test_effects.py"
        "::test_insertions_and_deletions_compare_whole_likelihoods",
    ),
    "depth": Column(
        lambda f: "all" if f.module.readouts[0].reads_stream else "without the lens",
        "tests/evaluation/depth/test_every_family.py::test_what_is_defined_has_numbers",
    ),
    "depth by noise": Column(
        lambda f: "" if f.module.readouts[0].why_no_noise else "yes",
        "tests/evaluation/depth/test_every_family.py::test_what_is_not_defined_has_a_reason",
    ),
    "prune": Column(
        lambda f: "" if _exported(f).startswith("generator") else "yes",
        "tests/models/test_pruning.py"
        "::test_a_pruned_model_equals_the_program_that_skips_the_same_layers",
    ),
    "export, import": Column(
        _exported, "tests/huggingface/test_logits.py::test_export_comes_back_bit_for_bit"
    ),
    "fused attention": Column(
        _kernels,
        "tests/models/test_attention_fused.py"
        "::test_the_kernel_that_can_is_chosen_and_else_a_reason_given",
    ),
}


def rows() -> list[dict[str, str]]:
    """A row for each family with published models, by column; "" for no."""
    from protlm_jax.models.registry import FAMILIES

    whole = {name: family for name, family in FAMILIES.items() if family.presets}
    return [
        {"family": name, **{title: column.cell(family) for title, column in COLUMNS.items()}}
        for name, family in whole.items()
    ]


def text() -> str:
    """The rows for a terminal: a paragraph for each family."""
    return "\n\n".join(
        "\n".join([row["family"], *(f"  {title:<22} {row[title] or 'no'}" for title in COLUMNS)])
        for row in rows()
    )


def markdown() -> str:
    """The rows as a table of Markdown, and the tests that show each column."""
    titles = ["family", *COLUMNS]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    lines += [f"| {' | '.join(row[title] or 'no' for title in titles)} |" for row in rows()]
    tests = [f"- {title}: `{column.test}`" for title, column in COLUMNS.items()]
    return "\n".join([*lines, "", "Each column is shown by a test over its families:", "", *tests])
