"""Which config a run's folder belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protlm_jax.config.files import read_config
from protlm_jax.config.folders import PHASES, has_begun, latest_step
from protlm_jax.config.run import RunConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.json_files import write_json
from protlm_jax.training.distributed import is_primary, require_shared
from protlm_jax.vocabularies.files import find_vocabulary, write_vocabulary

# These fields may change when a run is resumed; any other change makes it another run.
FREE_ON_RESUME = (
    "train.steps",
    "train.log_every",
    "train.evaluate_every",
    "train.evaluate_batches",
    "train.checkpoint_every",
    "train.keep",
    "train.keep_every",
    "train.patience",
    "train.profile_steps",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.slices",
    "mesh.stream",
    "mesh.auto",
)


def claim_workdir(config: RunConfig, workdir: Path) -> None:
    """Writes config.json, or checks that the folder belongs to this config; called by all hosts.

    A folder in which nothing was trained yet may change its config. A vocabulary that came with a
    downloaded model is kept beside it. Raises a ProtlmError that names each difference.
    """
    file = workdir / "config.json"
    if (workdir / PHASES).exists():
        raise ProtlmError(f"{workdir} holds a run made in phases: use another --workdir")
    if has_begun(workdir):
        saved, asked = (_flat(c.to_dict()) for c in (read_config(workdir), config))
        refused = [
            f"{name}: saved {saved.get(name)!r}, asked {value!r}"
            for name, value in asked.items()
            if saved.get(name) != value and name not in FREE_ON_RESUME
        ]
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
    if is_primary():
        write_vocabulary(find_vocabulary(config.model.vocabulary, workdir), workdir)
        write_json(file, config.to_dict(), indent=2)
    require_shared(file)


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """{"section.field": value}, and the fields outside sections."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        is_section = isinstance(value, dict)
        flat |= {f"{name}.{k}": v for k, v in value.items()} if is_section else {name: value}
    return flat
