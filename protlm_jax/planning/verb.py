"""The verb `protlm plan`: its arguments, and what it prints and writes."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protlm_jax.verbs.arguments import positive

if TYPE_CHECKING:
    from protlm_jax.config.files import ArchitectureOf
    from protlm_jax.planning.topologies import Topology


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Gives the verb its arguments."""
    recipe = verb.add_mutually_exclusive_group(required=True)
    recipe.add_argument("--config", help="a name or path, :variant; all its phases are planned")
    recipe.add_argument("--gin_file", action="append", help="a recipe of T5X; may be repeated")
    verb.add_argument(
        "--gin", action="append", default=[], metavar="NAME=VALUE",
        help="override a parameter of --gin_file",
    )  # fmt: skip
    verb.add_argument("--topology", required=True, help="v3:16x16 is v3-512, v3:16x32 is v3-1024")
    verb.add_argument(
        "--num_slices", type=positive, default=1, metavar="N",
        help="number of these pods, joined by the network of the data center (default 1)",
    )  # fmt: skip
    verb.add_argument("--phase", help="plan this phase of a recipe alone")
    verb.add_argument(
        "--search", type=positive, nargs="?", const=8, metavar="N",
        help="compile N settings of mesh, accumulation and remat (default 8), and name the fastest",
    )  # fmt: skip
    verb.add_argument("--output", type=Path, help="write the plan as JSON here")
    verb.add_argument("--json", action="store_true", help="print JSON instead of a table")
    verb.epilog = (
        "Compiles the very step that train runs, for each phase of the config. Fields are "
        "overridden as in train; a corpus is not needed. Takes one to three minutes per phase and "
        "pip install 'protlm-jax[plan]'. The exit code is 0 when the plan was made, also for a "
        "phase that does not fit: what to change is printed below the table."
    )


def run(arguments: argparse.Namespace, architecture_of: ArchitectureOf) -> dict[str, Any]:
    """Plans the phases of a recipe, or searches for their settings: "summary" and "phases"."""
    from protlm_jax.planning.compile import plan_recipe
    from protlm_jax.planning.table import table
    from protlm_jax.planning.topologies import topology

    pod = topology(arguments.topology, arguments.num_slices)
    if arguments.search:
        return _search(arguments, pod, architecture_of)
    plans = plan_recipe(
        arguments.config, arguments.overrides, pod, arguments.phase, architecture_of
    )
    return {"summary": table(plans), "phases": [plan.to_dict() for plan in plans]}


def _search(
    arguments: argparse.Namespace, pod: Topology, architecture_of: ArchitectureOf
) -> dict[str, Any]:
    """The settings that were compiled for each phase, the fastest first."""
    from protlm_jax.planning.compile import phases_of
    from protlm_jax.planning.search import report, search

    report_line = functools.partial(print, file=sys.stderr, flush=True)
    summary, found = [], []
    for phase in phases_of(arguments.config, arguments.overrides, arguments.phase, architecture_of):
        tried = search(phase, pod, arguments.search, report_line)
        summary.append(report(tried, phase.name))
        settings = [done.to_dict(phase.name) for done in tried]
        found.append({"phase": phase.name, "settings": settings})
    return {"summary": "\n".join(summary), "phases": found}
