"""Whose a run's folder is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protlm_jax.config.files import read_config
from protlm_jax.config.folders import PHASES, has_begun, latest_step
from protlm_jax.config.run import RunConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.json_files import write_json
from protlm_jax.training.distributed import leads, require_shared
from protlm_jax.vocabularies.files import find_vocabulary, write_vocabulary

# A run may go on with other values here; everything else would make it another run.
FREE_ON_RESUME = (
    "train.steps",
    "train.log_every",
    "train.evaluate_every",
    "train.evaluate_batches",
    "train.checkpoint_every",
    "train.keep",
    "train.keep_every",
    "train.profile_steps",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.slices",
    "mesh.stream",
    "mesh.auto",
)


def claim_workdir(config: RunConfig, workdir: Path) -> None:
    """Makes the folder this run's own, or checks that it is.

    A folder in which nothing was trained yet (the data were at fault) may change its config. A
    vocabulary that came with a downloaded model is kept beside the config.

    Raises:
        ProtlmError: when the folder belongs to another config, naming each difference.
    """
    file = workdir / "config.json"
    if (workdir / PHASES).exists():
        raise ProtlmError(f"{workdir} holds a run made in phases: use another --workdir")
    if has_begun(workdir):
        differences = _differences(read_config(workdir).to_dict(), config.to_dict())
        refused = [d for d in differences if d.partition(":")[0] not in FREE_ON_RESUME]
        if refused:
            raise ProtlmError(
                f"{workdir} holds a run of another config: {'; '.join(refused)}. "
                f"Use another --workdir, or these values again"
            )
    elif latest_step(workdir / "checkpoints") is not None:
        raise ProtlmError(
            f"{workdir} has checkpoints without config.json and metrics.jsonl: it is not a run "
            f"that can go on; use another --workdir"
        )
    if leads():
        write_vocabulary(find_vocabulary(config.model.vocabulary, workdir), workdir)
        write_json(file, config.to_dict(), indent=2)
    require_shared(file)


def _differences(saved: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    before, after = _flat(saved), _flat(asked)
    return [
        f"{name}: saved {before.get(name)!r}, asked {value!r}"
        for name, value in after.items()
        if before.get(name) != value
    ]


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """{"section.field": value}, and the few fields that stand alone."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        is_section = isinstance(value, dict)
        flat |= {f"{name}.{k}": v for k, v in value.items()} if is_section else {name: value}
    return flat
