"""The verb `protlm configs`: the configs that come with the package, and a resolved one."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parents[1]  # of configs/ and gin/; in a clone, these are links
NOWHERE = Path("/nonexistent")  # a workdir that no run has begun in


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    verb.add_argument("name", nargs="?", help="print this config, resolved, as JSON: NAME:VARIANT")
    verb.add_argument("--json", action="store_true", help="print the list as JSON")
    verb.add_argument(
        "--gin", action="store_true",
        help="print the folders of T5X's recipes, for python -m t5x.train --gin_search_paths=",
    )  # fmt: skip
    verb.epilog = (
        "A name works from any folder wherever --config is asked for. With a name, fields are "
        "overridden as in train: --config.train.steps=1000. A copy of a file, changed, is a config "
        "of your own: --config path/to/mine.py:variant."
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints the list of configs, one of them, or where the gin recipes are."""
    from protlm_jax.config.files import config_names

    if arguments.gin:
        print(f"{PLACE},{PLACE / 'gin'}")
    elif arguments.name:
        print(json.dumps(resolved(arguments.name, arguments.overrides), indent=1))
    else:
        rows = [row for name in config_names() for row in described(name)]
        print(json.dumps(rows, indent=1) if arguments.json else _table(rows))


def resolved(spec: str, overrides: list[str]) -> dict[str, Any]:
    """All fields of a config, by phase if it has phases; a corpus to be given is in <>."""
    from protlm_jax.config.files import Required, read_tree
    from protlm_jax.config.recipes import load_recipe
    from protlm_jax.huggingface import read_architecture

    tree = read_tree(spec)
    given = {override.partition("=")[0] for override in overrides}
    asked = [
        f"{field}=<{value.what}>"
        for field, value in _fields(tree)
        if isinstance(value, Required) and value.instead and field not in given
    ]
    phases = load_recipe(spec, [*asked, *overrides], NOWHERE, read_architecture)
    found = {phase.name: phase.config.to_dict() for phase in phases}
    return found.get("", found)


def described(name: str) -> Iterator[dict[str, Any]]:
    """A row for each variant of a config: its parameters, data, steps and hardware."""
    import runpy

    from protlm_jax import models
    from protlm_jax.config.files import CONFIGS, Required, read_tree

    namespace = runpy.run_path(str(CONFIGS / f"{name}.py"))
    header = " ".join(namespace["__doc__"].split())
    hardware = re.search(r"Hardware(?: of the paper)?: (.+?)[.:,] ", header)
    for variant in namespace.get("VARIANTS", ("",)):
        spec = f"{name}:{variant}".removesuffix(":")
        tree = read_tree(spec)
        model = tree.get("model") and models.ModelConfig(**tree["model"])
        trains = [p["config"]["train"] for p in tree.get("phases", [{"config": tree}])]
        corpora = [v.short for _, v in _fields(tree) if isinstance(v, Required) and v.short]
        yield {
            "name": spec,
            "parameters": models.parameter_count(models.abstract_params(models.build(model)))
            if model else None,
            "data": " + ".join(dict.fromkeys(corpora)) or "bundled proteins",
            "steps x rows": " + ".join(f"{t['steps']:,} x {t['batch_size']:,}" for t in trains),
            "hardware": hardware[1] if hardware else "",
        }  # fmt: skip


def _fields(tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names of fields as overrides have them, and values; those of phases too."""
    for section, value in tree.items():
        if section == "phases":
            for phase in value:
                yield from ((f"phases.{phase['name']}.{f}", v) for f, v in _fields(phase["config"]))
        elif isinstance(value, dict):
            yield from ((f"{section}.{field}", v) for field, v in value.items())
        else:
            yield section, value


def _table(rows: list[dict[str, Any]]) -> str:
    from protlm_jax.evaluation.tables import Table

    def size(count: int | None) -> str:
        if count is None:
            return "the model's"
        return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"

    recipes = ", ".join(sorted(file.name for file in (PLACE / "gin").glob("*.gin")))
    return (
        Table.of([{**row, "parameters": size(row["parameters"])} for row in rows]).text()
        + f"\n\nfor python -m t5x.train --gin_search_paths=$(protlm configs --gin) --gin_file=\n"
        f"{textwrap.fill(recipes, 100, initial_indent='  ', subsequent_indent='  ')}"
    )
