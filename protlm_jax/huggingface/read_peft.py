"""Reads a folder of PEFT's: an adapter, which is merged into the model that it belongs to.

PEFT loads an adapter whose names match nothing with a warning alone, and the adapter then does
nothing. Here every tensor has its place, or is named in an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import hub
from protlm_jax.huggingface.convert import EXCHANGES, params_from, tensors
from protlm_jax.huggingface.peft import CONFIG, PREFIX, WEIGHTS
from protlm_jax.huggingface.placement import Placement
from protlm_jax.huggingface.tensor_files import open_safetensors
from protlm_jax.models.exchange import Exchange
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.storage.json_files import read_json
from protlm_jax.storage.typed import typed

_PARTS = re.compile(r"\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector|ia3_l)$")
_FIELDS: dict[str, tuple[Any, Any]] = {
    "peft_type": (str, ""),
    "base_model_name_or_path": (str, ""),
    "task_type": (str, ""),
    "r": (int, 8),
    "lora_alpha": (float, 8.0),
    "fan_in_fan_out": (bool, False),
    "use_rslora": (bool, False),
    "rank_pattern": (dict, {}),
    "alpha_pattern": (dict, {}),
    "modules_to_save": (list, []),
}
_HEADS = ("classifier", "score", "qa_outputs", "classification_head")


def load_adapter(folder: Path, load: Callable[[str], LoadedModel]) -> LoadedModel:
    """The base with the adapter of a PEFT folder merged; `load` reads the base.

    Raises a ProtlmError that names the tensor that has no place, another shape or no counterpart.
    """
    fields = read_fields(folder)
    if fields["peft_type"] not in ("LORA", "IA3"):
        raise ProtlmError(f"{folder}: adapters of type {fields['peft_type']!r} cannot be read")
    base = load(str(base_place(folder)))
    exchange = EXCHANGES.get(base.config.family)
    if exchange is None:
        raise ProtlmError(f"{folder}: {base.name} is several models; name the one that it changes")
    state = dict(tensors(exchange, jax.tree.map(np.asarray, base.params)))
    file = folder / WEIGHTS
    if not file.exists():
        raise ProtlmError(f"{file} is missing: a PEFT folder has {CONFIG} and {WEIGHTS}")
    with ExitStack() as stack:
        stored = {name: one.read() for name, one in open_safetensors(file, stack).items()}
    modules: dict[str, dict[str, np.ndarray]] = {}
    heads = []
    for name, array in stored.items():
        own = name.removeprefix(PREFIX)
        found = _PARTS.search(own)
        if own.split(".")[0] in _HEADS:
            heads.append(own)
        elif found:
            place = _placed(file, name, own[: found.start()] + ".weight", exchange, fields, state)
            modules.setdefault(place, {})[found[1]] = array
        else:
            state[_placed(file, name, own, exchange, fields, state)] = array
    if fields["modules_to_save"] and not heads:
        raise ProtlmError(
            f"{file} holds no tensor of {' or '.join(map(str, fields['modules_to_save']))}, which "
            f"{CONFIG} names as modules_to_save: its head is missing"
        )
    for place, parts in modules.items():
        merge = _ia3 if fields["peft_type"] == "IA3" else _lora
        merge(file, place, parts, fields, state)
    abstract = models.abstract_params(base.model)
    placement = Placement(base.model, base.mesh)
    params = params_from(exchange, abstract, lambda name: state[name], placement)
    left = (*base.left, *(f"{name}: a head of the task" for name in heads))
    return replace(base, params=params, name=folder.name, left=left)


def read_fields(folder: Path) -> dict[str, Any]:
    """The fields of adapter_config.json that are read here, each of its type."""
    file = folder / CONFIG
    stored = read_json(file)
    fields = {}
    for name, (hint, default) in _FIELDS.items():
        value = stored.get(name)
        fields[name] = default if value is None else typed(value, hint, f"{file}: {name}")
    if fields["r"] < 1 or any(type(v) not in (int, float) or v <= 0
                              for v in (*fields["rank_pattern"].values(),
                                        *fields["alpha_pattern"].values())):  # fmt: skip
        raise ProtlmError(f"{file}: r, rank_pattern and alpha_pattern must be above 0")
    return fields


def base_place(folder: Path) -> str | Path:
    """Where the base is: as `base` in the folder, where the adapter says, or beside it."""
    named = read_fields(folder)["base_model_name_or_path"]
    places = [Path(named), folder.parent / Path(named).name] if named else []
    try:
        there = [p for p in (folder / "base", *places) if p.is_dir() and not p.samefile(folder)]
    except OSError as error:
        raise ProtlmError(f"{folder / CONFIG}: base_model_name_or_path: {error}") from error
    if there and (there[0] / CONFIG).exists():
        raise ProtlmError(f"{folder} is an adapter of {there[0]}, which is an adapter itself")
    if there or (named and hub.is_id(named)):
        return there[0] if there else named
    raise ProtlmError(
        f"{folder} is an adapter of {named[:200] or 'a model that it does not name'}, which is not "
        f"there: put that model, or a link to it, at {folder / 'base'}"
    )


def _placed(
    file: Path,
    name: str,
    own: str,
    exchange: Exchange,
    fields: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
) -> str:
    """The base's tensor that a tensor of the adapter belongs to."""
    if own in state:
        return own
    bare = fields["task_type"] in ("", "FEATURE_EXTRACTION")
    if (inner := own.removeprefix("transformer.")) in state:  # T5ForTokenClassification
        return inner
    if exchange.body + own in state:
        if bare:
            return exchange.body + own
        raise ProtlmError(
            f"{file}: tensor {name} has no {exchange.body!r} after {PREFIX!r}, and for "
            f"task_type {fields['task_type']} PEFT would load it as an adapter that does nothing: "
            f"write it again from the model that has the head"
        )
    raise ProtlmError(
        f"{file}: tensor {name} belongs to no tensor of the base: it is of another model, or of a "
        f"part that is not linear there"
    )


def _lora(
    file: Path,
    place: str,
    parts: Mapping[str, np.ndarray],
    fields: Mapping[str, Any],
    state: dict[str, np.ndarray],
) -> None:
    """Adds alpha/r B A to a weight, and sets the length of its rows where there is DoRA."""
    stem = place.removesuffix(".weight")
    for part in ("lora_A.weight", "lora_B.weight"):
        if part not in parts:
            raise ProtlmError(f"{file}: tensor {PREFIX}{stem}.{part} is missing")
    rank = _own_value(fields, "rank_pattern", stem, fields["r"])
    alpha = _own_value(fields, "alpha_pattern", stem, fields["lora_alpha"])
    a, b, weight = parts["lora_A.weight"], parts["lora_B.weight"], state[place]
    turned = fields["fan_in_fan_out"]
    out, into = weight.shape[::-1] if turned else weight.shape
    for part, array, shape in (("A", a, (rank, into)), ("B", b, (out, rank))):
        if array.shape != shape:
            raise ProtlmError(
                f"{file}: tensor {PREFIX}{stem}.lora_{part}.weight has shape {list(array.shape)}; "
                f"{CONFIG} (r {rank}) and the base ask for {list(shape)}"
            )
    scale = alpha / (rank**0.5 if fields["use_rslora"] else rank)
    whole = (weight.T if turned else weight) + np.float32(scale) * (b @ a)
    if (magnitude := parts.get("lora_magnitude_vector")) is not None:
        norms = np.linalg.norm(whole, axis=1)
        whole = whole * (magnitude.reshape(-1) / norms)[:, None]
    state[place] = np.ascontiguousarray(whole.T if turned else whole)


def _ia3(
    file: Path,
    place: str,
    parts: Mapping[str, np.ndarray],
    fields: Mapping[str, Any],
    state: dict[str, np.ndarray],
) -> None:
    """Scales what a map puts out, its bias included, or what it takes in."""
    scale, weight = parts["ia3_l"], state[place]
    turned = fields["fan_in_fan_out"]
    out, into = weight.shape[::-1] if turned else weight.shape
    if scale.shape not in ((out, 1), (1, into)):
        raise ProtlmError(
            f"{file}: tensor {PREFIX}{place.removesuffix('.weight')}.ia3_l has shape "
            f"{list(scale.shape)}; the base asks for {[out, 1]} or {[1, into]}"
        )
    state[place] = weight * (scale.T if turned else scale)
    bias = place.removesuffix("weight") + "bias"
    if scale.shape == (out, 1) and bias in state:
        state[bias] = state[bias] * scale[:, 0]


def _own_value(fields: Mapping[str, Any], pattern: str, stem: str, default: Any) -> Any:
    """A module's own rank or alpha."""
    for name, value in fields[pattern].items():
        try:
            matches = re.fullmatch(rf"(.*\.)?({name})", stem)
        except re.error as error:
            raise ProtlmError(f"{CONFIG}: {pattern}: {name[:80]!r}: {error}") from error
        if matches:
            return value
    return default
