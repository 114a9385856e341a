"""Recipes: configs of runs that are made in phases, one after the other, by one command.

A config file names its phases in `config.phases`, a list of dicts:

    {"name": "length2048",
     "config": {"data": {"length": 2048}, "train": {"steps": 100_000, "batch_size": 2560}},
     "optimizer": "keep", "schedule": "continue"}

The rest of the config is common to them. On the command line `--config.SECTION.FIELD=VALUE` holds
for all phases, and `--config.phases.NAME.SECTION.FIELD=VALUE` for one.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

from protlm_jax.config.files import (
    ArchitectureOf,
    apply_override,
    completed,
    load_config,
    read_config,
    read_tree,
    require_given,
)
from protlm_jax.config.folders import has_begun, phase_folder
from protlm_jax.config.run import SECTIONS, RunConfig, require_sections
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.typed import shown, typed

Tree = dict[str, Any]
CHOICES = {"optimizer": ("keep", "reset"), "schedule": ("continue", "restart")}


@dataclasses.dataclass(frozen=True)
class Phase:
    """One part of a recipe, a run; a config without phases is a single one, named "".

    `optimizer` says whether the moments of the phase before are kept, and `schedule` whether the
    learning rate goes on as if there had been one run.
    """

    name: str
    config: RunConfig
    folder: Path
    optimizer: Literal["keep", "reset"] = "reset"
    schedule: Literal["continue", "restart"] = "restart"


def load_recipe(
    spec: str,
    overrides: list[str],
    workdir: Path,
    architecture_of: ArchitectureOf | None = None,
) -> list[Phase]:
    """Reads a config file and applies overrides, as `load_config`; one phase for a plain run.

    An override "phases.NAME.train.steps=100" holds for one phase. `workdir` is the folder of the
    whole recipe; of a config without phases, the run's own.
    """
    tree = read_tree(spec)
    if "phases" not in tree:
        return [Phase("", load_config(spec, overrides, workdir, architecture_of), workdir)]
    phases = tree.pop("phases")
    _check(phases, spec)
    names = [phase["name"] for phase in phases]
    common, own = _by_phase(overrides, names)
    for override in common:
        apply_override(tree, override)
    tree = completed(tree, phase_folder(workdir, 1, names[0]), architecture_of)
    trees = [_merged(tree, phase, common + own[phase["name"]], spec) for phase in phases]
    _join_schedules(trees, phases)
    made: list[Phase] = []
    for number, (described, content) in enumerate(zip(phases, trees, strict=True), start=1):
        folder = phase_folder(workdir, number, described["name"])
        if made:
            content |= _beginning(made[-1], folder, described["optimizer"])
            train = content.setdefault("train", {})
            seed = typed(train.get("seed", 0), int, "config.train.seed")
            train["seed"] = seed + len(made)  # the data in another order
        how = {name: described[name] for name in CHOICES if name in described}
        made.append(Phase(described["name"], RunConfig.from_dict(content), folder, **how))
    return made


def _check(phases: Any, spec: str) -> None:
    """Refuses phases with a field that is missing, unknown or repeated."""
    if not isinstance(phases, list | tuple) or not all(isinstance(p, dict) for p in phases):
        raise ProtlmError(f"{spec}: config.phases is {shown(phases)}; it must be a list of dicts")
    if not phases:
        raise ProtlmError(f"{spec}: config.phases is empty; leave it out for a run without phases")
    for number, phase in enumerate(phases):
        name = phase.get("name", "")
        where = f"{spec}, phase {name if isinstance(name, str) and name else number + 1}"
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_-]{1,80}", name):
            raise ProtlmError(f"{where}: a phase needs a name of small letters, digits, - and _")
        if sum(other.get("name") == name for other in phases) > 1:
            raise ProtlmError(f"{where}: another phase has the same name")
        expected = {"name", "config"} | (set(CHOICES) if number else set())
        if set(phase) != expected:
            raise ProtlmError(
                f"{where} has the fields {', '.join(map(str, phase))}; it needs "
                f"{', '.join(sorted(expected))} (the first phase has no state to keep)"
            )
        if not isinstance(phase["config"], dict):
            raise ProtlmError(f"{where}: config is {shown(phase['config'])}; it must be a dict")
        require_sections(phase["config"], prefix=f"phases.{name}.")
        for field in CHOICES.keys() & phase.keys():
            if phase[field] not in CHOICES[field]:
                known = " or ".join(map(repr, CHOICES[field]))
                raise ProtlmError(f"{where}: {field} is {phase[field]!r}; choose {known}")


def _by_phase(overrides: list[str], names: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides of all phases, and those of each, without "phases.NAME."."""
    common: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in names}
    for text in overrides:
        if not text.startswith("phases."):
            common.append(text)
            continue
        _, name, rest = (*text.split(".", 2), "", "")[:3]
        if name not in own:
            raise ProtlmError(
                f"--config.{shown(text)[1:-1]}: there is no such phase; there are "
                f"{', '.join(names)}"
            )
        own[name].append(rest)
    return common, own


def _merged(tree: Tree, phase: Tree, overrides: list[str], spec: str) -> Tree:
    """The common tree, under this phase's own values, under the command line's."""
    merged = copy.deepcopy(tree)
    own = copy.deepcopy(phase["config"])
    for section, fields in own.items():
        if section in SECTIONS:
            merged[section] = {**merged.get(section, {}), **fields}
        else:
            merged[section] = fields
    for override in overrides:
        apply_override(merged, override)
    require_given(merged, spec, own, prefix=f"phases.{phase['name']}.")
    return merged


def _join_schedules(trees: list[Tree], phases: list[Tree]) -> None:
    """Gives phases whose schedule continues the one before a common beginning and end."""
    chains: list[list[Tree]] = []
    for tree, phase in zip(trees, phases, strict=True):
        if phase.get("schedule") != "continue":
            chains.append([])
        chains[-1].append(tree)
    for chain in chains:
        if len(chain) == 1:
            continue
        steps = [typed(t.get("train", {}).get("steps"), int, "config.train.steps") for t in chain]
        for number, tree in enumerate(chain):
            joined = {"first_step": sum(steps[:number]), "total_steps": sum(steps)}
            tree["schedule"] = tree.get("schedule", {}) | joined


def _beginning(previous: Phase, folder: Path, optimizer: str) -> Tree:
    """Where a later phase starts from: after it began, what its own config says."""
    if has_begun(folder):
        saved = read_config(folder)
        return {"init_from": saved.init_from, "init_what": saved.init_what}
    what = "state" if optimizer == "keep" else "params"
    return {"init_from": str(previous.folder), "init_what": what}
