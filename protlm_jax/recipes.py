"""Recipes: configs of runs that are made in phases, one after the other, by one command.

A config file names its phases in `config.phases`, a list of dicts:

    {"name": "length2048",
     "config": {"data": {"length": 2048}, "train": {"steps": 100_000, "batch_size": 2560}},
     "optimizer": "keep", "schedule": "continue"}

The rest of the config is what they have in common. On the command line
`--config.SECTION.FIELD=VALUE` holds for all phases, and
`--config.phases.NAME.SECTION.FIELD=VALUE` for one.

Where all recipes of ProtTrans in configs/ differ from the paper:
- Rows are packed: several proteins share one, none sees another, and none is padded. The paper's
  rows held one protein or a pair. An update therefore sees more proteins than the paper's;
  `--config.data.pack=False` gives its rows.
- One protein in ten thousand is held out, by a hash of its sequence. The paper kept no split.
- Longer proteins give another random piece in each epoch; the paper cut them.
- Matrix products in bfloat16 (`--config.model.dtype=float32` for the paper's precision on TPUs),
  and activations computed again in the backward pass (`--config.model.remat=none`).
- Which releases of UniRef (2019) and BFD (2018) were used is not known.
- The corpus is held in memory, one byte per residue: 14 GB for UniRef50, 88 for UniRef100, 393 for
  BFD.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

from protlm_jax.configuration import (
    Required,
    RunConfig,
    apply_override,
    completed,
    load_config,
    read_tree,
    require_given,
)
from protlm_jax.errors import ProtlmError
from protlm_jax.models.registry import preset
from protlm_jax.run_folders import phase_folder
from protlm_jax.workdir import has_begun, read_config

Tree = dict[str, Any]
CHOICES = {"optimizer": ("keep", "reset"), "schedule": ("continue", "restart")}


@dataclasses.dataclass(frozen=True)
class Phase:
    """One part of a recipe, an ordinary run; a config without phases is a single one.

    Attributes:
        name: of its folder, after its number; "" where there are no phases.
        config: its run.
        folder: where it is made.
        optimizer: whether the moments of the phase before are kept.
        schedule: whether the learning rate goes on as if there had been one run.
    """

    name: str
    config: RunConfig
    folder: Path
    optimizer: Literal["keep", "reset"] = "reset"
    schedule: Literal["continue", "restart"] = "restart"


def recipe(
    model: str,
    corpus: str,
    *phases: Tree,
    overrides: Mapping[str, Any] | None = None,
    **sections: Any,
) -> ConfigDict:
    """A config for a published run, as the files in configs/ return it.

    Args:
        model: name of a preset.
        corpus: what the paper trained on; the user has to give a FASTA file of it.
        phases: see the top of this file; none makes a plain run.
        overrides: fields of the preset that the run changes.
        sections: objective, data, optimizer, schedule, train: dicts.
    """
    architecture = preset(model).to_dict() | {"dtype": "bfloat16", "remat": "full"}
    data = {"fasta": a_fasta_of(corpus), "heldout_percent": 0.01}
    tree = {**sections, "model": architecture | dict(overrides or {})}
    tree["data"] = data | sections.get("data", {})
    tree["train"] = {"checkpoint_every": 1000, "keep_every": 50_000} | sections["train"]
    return ConfigDict({**tree, "phases": list(phases)} if phases else tree)


def a_fasta_of(corpus: str) -> Required:
    """Only the user has the corpus."""
    return Required(f"a FASTA file of {corpus}, which this recipe trains on")


def prot_t5() -> Tree:
    """Sections that all runs of ProtT5 share."""
    return {
        "objective": {"name": "denoising"},
        "data": {"task": "prott5", "length": 512},
        "optimizer": {"name": "adafactor", "weight_decay": 0.0},
        "schedule": {"name": "rsqrt", "learning_rate": 1.0, "warmup_steps": 10_000},
        "mesh": {"data": 1, "fsdp": -1},
    }


def after_bfd(
    model: str,
    variant: str,
    bfd: tuple[int, int],
    uniref50: tuple[int, int],
    bfd_model: Mapping[str, Any] | None = None,
) -> ConfigDict:
    """ProtT5 on BFD and then on UniRef50, or the second part alone.

    Args:
        model: name of a preset.
        variant: "both", or "uniref50" for the part that starts from a model that is there already.
        bfd, uniref50: steps and rows of each part.
        bfd_model: fields of the model that are others in the first part.

    Raises:
        ValueError: for another variant.
    """
    first, second = ({"steps": steps, "batch_size": rows} for steps, rows in (bfd, uniref50))
    if variant == "uniref50":
        config = recipe(model, "UniRef50", **prot_t5(), train=second)
        config.init_from = Required("the model trained on BFD: a run or a Hugging Face folder")
        config.schedule.first_step = bfd[0]
        return config
    if variant != "both":
        raise ValueError(f"there are the variants both and uniref50, not {variant!r}")
    phases = (
        {
            "name": "bfd",
            "config": {
                "model": dict(bfd_model or {}),
                "data": {"fasta": a_fasta_of("BFD")},
                "train": first,
            },
        },
        {
            "name": "uniref50",
            "config": {"data": {"fasta": a_fasta_of("UniRef50")}, "train": second},
            "optimizer": "keep",
            "schedule": "continue",
        },
    )
    return recipe(model, "BFD", *phases, **prot_t5(), train={})


def load_recipe(spec: str, overrides: list[str], workdir: Path) -> list[Phase]:
    """Reads a config file and applies overrides.

    Args:
        spec: path, or path:variant.
        overrides: such as "train.steps=100", or "phases.NAME.train.steps=100".
        workdir: folder of the whole; of a config without phases, the run's own.

    Raises:
        ProtlmError: as `load_config`; or phases that are not described as they should be.
    """
    tree = read_tree(spec)
    if "phases" not in tree:
        return [Phase("", load_config(spec, overrides, workdir), workdir)]
    phases = tree.pop("phases")
    _check(phases, spec)
    names = [phase["name"] for phase in phases]
    common = [text for text in overrides if not text.startswith("phases.")]
    own = _by_phase(overrides, names)
    for override in common:
        apply_override(tree, override)
    tree = completed(tree, phase_folder(workdir, 1, names[0]))
    trees = [_merged(tree, phase, common + own[phase["name"]], spec) for phase in phases]
    _join_schedules(trees, phases)
    made: list[Phase] = []
    for number, (described, content) in enumerate(zip(phases, trees, strict=True), start=1):
        folder = phase_folder(workdir, number, described["name"])
        if made:
            content |= _beginning(made[-1], folder, described["optimizer"])
            train = content["train"]
            train["seed"] = train.get("seed", 0) + len(made)  # the data in another order
        how = {name: described[name] for name in CHOICES if name in described}
        made.append(Phase(described["name"], RunConfig.from_dict(content), folder, **how))
    return made


def _check(phases: Any, spec: str) -> None:
    """Refuses phases with anything missing, unknown or said twice."""
    for number, phase in enumerate(phases):
        name = phase.get("name", "")
        where = f"{spec}, phase {name or number + 1}"
        if not re.fullmatch(r"[a-z0-9_-]+", name):
            raise ProtlmError(f"{where}: a phase needs a name of small letters, digits, - and _")
        if sum(other.get("name") == name for other in phases) > 1:
            raise ProtlmError(f"{where}: another phase has the same name")
        expected = {"name", "config"} | (set(CHOICES) if number else set())
        if set(phase) != expected:
            raise ProtlmError(
                f"{where} has the fields {', '.join(phase)}; it needs {', '.join(sorted(expected))}"
                f" (the first phase has no state to keep)"
            )
        for field in CHOICES.keys() & phase.keys():
            if phase[field] not in CHOICES[field]:
                known = " or ".join(map(repr, CHOICES[field]))
                raise ProtlmError(f"{where}: {field} is {phase[field]!r}; choose {known}")


def _by_phase(overrides: list[str], names: list[str]) -> dict[str, list[str]]:
    """The overrides that begin with "phases.NAME.", without that."""
    own: dict[str, list[str]] = {name: [] for name in names}
    for text in overrides:
        if not text.startswith("phases."):
            continue
        _, name, rest = (*text.split(".", 2), "", "")[:3]
        if name not in own:
            raise ProtlmError(
                f"--config.{text}: there is no such phase; there are {', '.join(names)}"
            )
        own[name].append(rest)
    return own


def _merged(tree: Tree, phase: Tree, overrides: list[str], spec: str) -> Tree:
    """What the phases have in common, this phase's own values, and the command line's over both."""
    merged = copy.deepcopy(tree)
    own = copy.deepcopy(phase["config"])
    for section, fields in own.items():
        merged[section] = {**merged.get(section, {}), **fields}
    for override in overrides:
        apply_override(merged, override)
    given = {s: {f: merged[s][f] for f in fields} for s, fields in own.items()}
    require_given(given, spec, prefix=f"phases.{phase['name']}.")
    require_given(merged, spec)
    return merged


def _join_schedules(trees: list[Tree], phases: list[Tree]) -> None:
    """Gives the schedules of phases that continue each other one beginning and one end."""
    chains: list[list[Tree]] = []
    for tree, phase in zip(trees, phases, strict=True):
        if phase.get("schedule") == "continue":
            chains[-1].append(tree)
        else:
            chains.append([tree])
    for chain in chains:
        steps = [tree["train"]["steps"] for tree in chain]
        for number, tree in enumerate(chain if len(chain) > 1 else []):
            tree["schedule"] |= {"first_step": sum(steps[:number]), "total_steps": sum(steps)}


def _beginning(previous: Phase, folder: Path, optimizer: str) -> Tree:
    """Where a later phase starts from; once begun, what its own config says, were it moved."""
    if has_begun(folder):
        saved = read_config(folder)
        return {"init_from": saved.init_from, "init_what": saved.init_what}
    what = "state" if optimizer == "keep" else "params"
    return {"init_from": str(previous.folder), "init_what": what}
