"""What a fine-tuned run holds beside its model: the frozen base, and the head of its task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save

from protlm_jax.config.files import read_config
from protlm_jax.config.folders import Recorded
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import hub
from protlm_jax.models.adapters import TASK_HEAD, TuneConfig
from protlm_jax.models.identity import identity
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.objectives import build_objective
from protlm_jax.objectives.labels import LabelsObjective
from protlm_jax.storage.json_files import read_json
from protlm_jax.storage.typed import from_fields
from protlm_jax.vocabularies import get_vocabulary

TASK = "task.json"  # in the run's folder: what the labels are
HEAD = "head.safetensors"  # in exports


def tune_of(about: Recorded) -> TuneConfig:
    """What a run trained of its model."""
    return from_fields(TuneConfig, about.section("tune"), f"{about.file}: tune")


def base_of(about: Recorded, checkpoint: Path, load: Callable[[str], LoadedModel]) -> LoadedModel:
    """The frozen model of a tuned run: `base` in the run's folder, or where its config says.

    Raises a ProtlmError where it is not there, or is not the model that the run was trained on.
    """
    from protlm_jax.training.initial import require_base

    source, beside = str(about.fields.get("init_from")), about.file.parent / "base"
    place = str(beside) if beside.is_dir() else source
    if not Path(place).is_dir() and not hub.is_id(place):
        raise ProtlmError(
            f"{checkpoint} holds what was trained beside {source}, which is not there: put that "
            f"model, or a link to it, at {beside}"
        )
    base = load(place)
    require_base(checkpoint, identity(base), place)
    return base


def load_head(checkpoint: Path) -> tuple[LabelsObjective, Any, dict[str, Any]]:
    """The task of a fine-tuned run, the parameters of its head, and what its labels are.

    Raises a ProtlmError where the run has no head.
    """
    from protlm_jax.training.checkpoints import restore_params

    run = checkpoint.parents[1]
    if not (run / TASK).exists():
        raise ProtlmError(
            f"{run} is not a fine-tuned model with a head: make one with protlm finetune, or name "
            f"a probe with --probe"
        )
    config = read_config(run)
    vocabulary = get_vocabulary(config.model.vocabulary)
    objective = build_objective("labels", vocabulary, **config.objective.options)
    assert isinstance(objective, LabelsObjective)
    return objective, restore_params(checkpoint)[TASK_HEAD], read_json(run / TASK)


def head_files(head: tuple[LabelsObjective, Any, dict[str, Any]]) -> dict[str, bytes]:
    """The head as files of an export, by name: its arrays, and what it predicts."""
    objective, arrays, about = head
    flat = {name: np.ascontiguousarray(x) for name, x in flatten_dict(arrays, sep="/").items()}
    own = {"pool": objective.pool, "dense": objective.dense, "outputs": objective.outputs}
    text = json.dumps({**about, "objective": own}, indent=1) + "\n"
    return {HEAD: save(flat, metadata={"format": "pt"}), TASK: text.encode()}
