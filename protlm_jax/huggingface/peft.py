"""Adapters as PEFT's files: the tensors of an adapter, and the fields of its config.

PEFT names a tensor after the module of the class that will load it, so a key without the class's
prefix matches nothing, and PEFT then loads an adapter that does nothing with a warning alone.

A tensor of theirs that holds queries, keys and values as one (GPT-2, ProGen2) gets one adapter of
so many times the rank, whose B is zero outside of the blocks of each part: the same product.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict

from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.convert import by_tensor, layer_names, pattern
from protlm_jax.models.adapters import TASK_HEAD, TuneConfig
from protlm_jax.models.exchange import Exchange, Key

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_files(
    exchange: Exchange, tune: TuneConfig, base: Any, trained: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields of adapter_config.json and the tensors of an adapter, without a head.

    Args:
        exchange: of the base's family.
        tune: of the run.
        base: the parameters' shapes.
        trained: the run's adapter.

    Raises:
        ProtlmError: PEFT has no form for this adapter.
    """
    flat = flatten_dict(base, sep="/")
    ours = {p: np.asarray(x) for p, x in flatten_dict(trained, sep="/").items()}
    ours = {path: x for path, x in ours.items() if not path.startswith(TASK_HEAD)}
    tensors: dict[str, np.ndarray] = {}
    modules, inner, ranks = [], [], {}
    for keys in by_tensor(exchange, flat):
        parts = [_adapter(key, ours) for key in keys]
        if not any(parts):
            continue
        module = keys[0].theirs.removesuffix(".weight")
        if module == keys[0].theirs or len(_sides(keys[0])[1]) != 2:
            raise ProtlmError(
                f"PEFT has no adapters for {keys[0].theirs}, which is no linear map there: export "
                f"the merged model instead (--merged)"
            )
        modules.append(module)
        if any("ia3_in" in part for part in parts):
            inner.append(module)
        if len(keys) > 1 and tune.method != "ia3":
            ranks[_regex(module)] = tune.rank * sum(map(bool, parts))
        for layer, (name, _) in enumerate(layer_names(keys[0], flat[keys[0].ours].shape)):
            of_layer = [{n: x[layer] for n, x in part.items()} for part in parts]
            found = _scales(keys, of_layer) if tune.method == "ia3" else _factors(keys, of_layer)
            stem = PREFIX + name.removesuffix(".weight")
            tensors |= {f"{stem}.{leaf}": x for leaf, x in found.items()}
    fields: dict[str, Any] = {
        "peft_type": "IA3" if tune.method == "ia3" else "LORA",
        "target_modules": _any_of(modules),
        "fan_in_fan_out": exchange.model_type == "gpt2",
        "inference_mode": True,
    }
    if tune.method == "ia3":
        return fields | {"feedforward_modules": _any_of(inner) if inner else []}, tensors
    more = {"r": tune.rank, "lora_alpha": tune.alpha, "use_dora": tune.method == "dora"}
    alphas = {name: tune.alpha * rank / tune.rank for name, rank in ranks.items()}
    return fields | more | {"bias": "none", "rank_pattern": ranks, "alpha_pattern": alphas}, tensors


def _adapter(key: Key, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of the adapter beside a kernel; {} without one."""
    if not key.ours.endswith("/kernel"):
        return {}
    stem = key.ours.removesuffix("kernel")
    leaves = ("lora_a", "lora_b", "magnitude", "ia3_in", "ia3_out")
    return {leaf: ours[stem + leaf] for leaf in leaves if stem + leaf in ours}


def _sides(key: Key) -> tuple[list[str], list[str]]:
    """Axes of ours and of theirs in a layout."""
    ours, theirs = key.layout.split("->")
    return tuple(re.findall(r"\([^)]*\)|\S+", side) for side in (ours, theirs))  # type: ignore


def _maps(key: Key) -> tuple[list[str], list[str], str]:
    """Our axes that go into a map and those that come out, and what theirs makes of the latter."""
    ours, theirs = _sides(key)
    inputs = 2 if ours[0] == "H" else 1
    own = next(i for i, side in enumerate(theirs) if ours[0] in re.findall(r"\w+", side))
    return ours[:inputs], ours[inputs:], theirs[1 - own]


def _outputs(keys: list[Key], parts: list[np.ndarray], before: str = "") -> np.ndarray:
    """[before, out...] of each part as [out, before] of theirs."""
    _, out, theirs = _maps(keys[0])
    first = "P " if len(keys) > 1 else ""
    array = np.stack(parts) if len(keys) > 1 else parts[0]
    layout = f"{first}{before} {' '.join(out)} -> {theirs} {before}"
    left, right, sizes = pattern(layout, array.shape)
    return np.ascontiguousarray(rearrange(array, f"{left} -> {right}", **sizes))


def _factors(keys: list[Key], parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """A, B and DoRA's magnitude of one module of theirs."""
    there = [part for part in parts if part]
    rank, width = there[0]["lora_a"].shape[-1], len(there)
    a = np.concatenate([np.moveaxis(p["lora_a"], -1, 0).reshape(rank, -1) for p in there])
    blocks = [np.zeros((width * rank, *there[0]["lora_b"].shape[1:]), np.float32) for _ in parts]
    begin = 0
    for part, block in zip(parts, blocks, strict=True):
        if part:
            block[begin : begin + rank] = part["lora_b"]
            begin += rank
    found = {"lora_A.weight": np.ascontiguousarray(a), "lora_B.weight": _outputs(keys, blocks, "R")}
    if "magnitude" in there[0]:
        if width < len(parts):
            raise ProtlmError(
                f"{keys[0].theirs} is one tensor of {len(parts)} maps, of which DoRA changes "
                f"{width}: export the merged model (--format huggingface)"
            )
        found["lora_magnitude_vector"] = _outputs(keys, [part["magnitude"] for part in parts])
    return found


def _scales(keys: list[Key], parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """IA3's vector of one module of theirs."""
    if "ia3_in" in parts[0]:
        return {"ia3_l": parts[0]["ia3_in"].reshape(1, -1)}
    shape = next(part["ia3_out"].shape for part in parts if part)
    ones = np.ones(shape, np.float32)
    return {"ia3_l": _outputs(keys, [part.get("ia3_out", ones) for part in parts]).reshape(-1, 1)}


def _regex(module: str) -> str:
    return re.escape(module).replace(re.escape("{layer}"), r"\d+")


def _any_of(modules: list[str]) -> str:
    """Matches the whole name of any of these modules."""
    return "|".join(map(_regex, modules))
