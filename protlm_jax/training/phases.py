"""Trains the phases of a recipe one after the other; the same command resumes in the right one.

A phase starts from the last checkpoint of the phase before it. `phases.json` records what becomes
of the moments and of the schedule, and held-out losses on old and new proteins, before and after.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from protlm_jax.config.folders import PHASES, has_begun, latest_step
from protlm_jax.config.recipes import Phase
from protlm_jax.config.run import RunConfig
from protlm_jax.data.config import DataConfig
from protlm_jax.data.splits import source_name
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.json_files import read_json, write_json
from protlm_jax.training.distributed import is_primary, owned_by_hosts, print_once
from protlm_jax.training.initial import Load
from protlm_jax.training.loop import Run, train
from protlm_jax.training.stopping import is_complete
from protlm_jax.training.workdir import claim_workdir

Record = dict[str, Any]


def train_phases(phases: list[Phase], workdir: Path, load: Load) -> int:
    """Trains until the last phase is complete; returns the number of updates made by this call.

    Raises a ProtlmError where the folder holds something else, where a phase that others started
    from gets more steps, and as `train`. A single phase without a name is a plain run.
    """
    if not phases[0].name:
        return train(phases[0].config, workdir, load)
    with owned_by_hosts(workdir):
        if (workdir / "config.json").exists():
            raise ProtlmError(f"{workdir} holds a run without phases: use another --workdir")
        records = _records(phases, workdir)
        made = 0
        for number, phase in enumerate(phases):
            if number + 1 < len(phases) and has_begun(phases[number + 1].folder):
                _require_complete(phase, phases[number + 1])
            claim_workdir(phase.config, phase.folder)
            if _is_complete(phase) and "after" in records[number]:
                continue
            previous = phases[number - 1] if number else None
            made += _train_phase(phase, previous, records, number, workdir, load)
        return made


def _train_phase(
    phase: Phase,
    previous: Phase | None,
    records: list[Record],
    number: int,
    workdir: Path,
    load: Load,
) -> int:
    """One phase, with its held-out losses before and after."""
    record = records[number]
    sources = heldout_sources(phase.config, previous.config if previous else None)
    with contextlib.closing(Run(phase.config, phase.folder, load)) as run:
        if previous is not None and "change" not in record:
            record["change"] = describe_change(previous, phase)
            record["before"] = {name: run.score_heldout(data) for name, data in sources.items()}
            _report(f"phase {phase.name}: {record['change']}", record["before"])
        _write_records(records, workdir)
        made = run.fit()
        record["after"] = {name: run.score_heldout(data) for name, data in sources.items()}
    _report(f"phase {phase.name} is complete", record["after"])
    _write_records(records, workdir)
    return made


def describe_change(previous: Phase, phase: Phase) -> str:
    """What becomes of the optimizer's state and of the schedule between two phases."""
    name, schedule = phase.config.optimizer.name, phase.config.schedule
    moments = f"the moments of {name} are kept"
    if phase.optimizer == "reset":
        moments = f"{name} starts anew with empty moments"
    rate = f"the {schedule.name} schedule goes on at its step {schedule.first_step:,}"
    if phase.schedule == "restart":
        rate = f"the {schedule.name} schedule starts again at step 0"
        if schedule.name != "rsqrt":
            rate += f" with {schedule.warmup_steps:,} steps of warmup"
    return f"starts from phase {previous.name}; {moments}; {rate}"


def heldout_sources(config: RunConfig, previous: RunConfig | None) -> dict[str, DataConfig]:
    """Data sections to score by display name: the previous phase's and this one's; {} without
    evaluation.

    The previous phase's rows keep their length as far as this phase's model has positions.
    """
    if not config.train.evaluate_every:
        return {}
    sections = [config.data]
    if previous is not None:
        old = previous.data
        limit = config.model.max_positions or old.length
        length = min(old.length, limit)
        names = ("fasta", "prepared", "heldout_percent", "rare_residues")
        fields = {name: getattr(old, name) for name in names}
        sections.insert(0, dataclasses.replace(config.data, length=length, **fields))
    return {f"{Path(source_name(d)).name}, rows of {d.length}": d for d in sections}


def _report(headline: str, losses: dict[str, dict[str, float]]) -> None:
    lines = [headline]
    for source, numbers in losses.items():
        shown = {n.removeprefix("heldout/"): v for n, v in numbers.items() if n.endswith("nll")}
        text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        lines.append(f"  held out of {source}: {text}")
    print_once("\n".join(lines))


def _is_complete(phase: Phase) -> bool:
    return is_complete(phase.config.train, phase.folder)


def _require_complete(phase: Phase, following: Phase) -> None:
    if not _is_complete(phase):
        reached = latest_step(phase.folder / "checkpoints")
        raise ProtlmError(
            f"phase {phase.name} is asked for {phase.config.train.steps} steps, but phase "
            f"{following.name} began from its step {reached}: use another --workdir, or "
            f"--config.phases.{phase.name}.train.steps={reached}"
        )


def _records(phases: list[Phase], workdir: Path) -> list[Record]:
    """The entries of phases.json, one per phase; the file is written if there is none."""
    file = workdir / PHASES
    names = [phase.folder.name for phase in phases]
    records = [{"folder": name} for name in names]
    if file.exists():
        try:
            records = read_json(file, remedy="remove it and run again")["phases"]
            there = [f"{record['folder']}" for record in records]
            json.dumps(records, allow_nan=False)
        except (KeyError, TypeError, ValueError) as error:
            raise ProtlmError(f"{file} is damaged ({error!r}): remove it and run again") from error
        if there != names:
            raise ProtlmError(
                f"{workdir} holds the phases {', '.join(there)}, not {', '.join(names)}: "
                f"use another --workdir"
            )
    _write_records(records, workdir)
    return records


def _write_records(records: list[Record], workdir: Path) -> None:
    if is_primary():
        write_json(workdir / PHASES, {"phases": records})
