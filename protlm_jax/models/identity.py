"""What makes a model the same model, whoever wrote it down: one digest, alike on all machines.

A run, its export and an import of that export are one model; with one number changed it is another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.loaded import LoadedModel

VERSION = "v2"  # what is hashed, and how; digests of other versions do not compare

# Fields of the config that do not change what the same parameters compute.
_OF_TRAINING = (
    *("position_init", "initializer_range", "init_depth"),
    *("dropout_rate", "mlp_dropout", "layer_drop"),
)
_OF_COMPUTING = ("dtype", "remat", "attention_backend")  # how exactly, how fast, in what memory
_SAID_OTHERWISE = (
    "vocabulary",  # a name; its content is hashed
    "max_positions",  # of a learned table the parameter's shape; elsewhere a limit on rows alone
    "rotary_dim",  # 0 for all of a head; the size is hashed
)
_PIECE = 1 << 24  # bytes that are hashed at once; part of the definition


def identity(loaded: LoadedModel) -> str:
    """The digest of all parameters, of the fields that decide what is computed, of the vocabulary.

    Parameters are compared by name, shape and their float32 numbers, bit by bit. At about 1 GB/s
    for each core.

    Returns:
        "v2:" and 32 hexadecimal digits (BLAKE2b).
    """
    vocabulary = loaded.vocabulary
    tokens = [vocabulary.tokens, vocabulary.mask_id, vocabulary.prefix_ids, vocabulary.suffix_ids]
    total = hashlib.blake2b(digest_size=16)
    total.update(json.dumps([_deciding(loaded.config), tokens], sort_keys=True).encode())
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        for name, array in _numbers(loaded.params):
            total.update(f"\n{name} {array.shape} ".encode())
            data = array.reshape(-1).view(np.uint8)
            pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]
            for digest in pool.map(_digest, pieces):
                total.update(digest)
    return f"{VERSION}:{total.hexdigest()}"


def _deciding(config: ModelConfig) -> dict[str, Any]:
    """The fields that decide what a model computes from its parameters.

    Defaults are left out, so that a field that is added later changes no digest.
    """
    left_out = {*_OF_TRAINING, *_OF_COMPUTING, *_SAID_OTHERWISE}
    if config.positions != "rotary":
        left_out.add("rotary_pairs")
    fields = {
        field.name: value
        for field in dataclasses.fields(config)
        if field.name not in left_out and (value := getattr(config, field.name)) != field.default
    }
    return fields | ({"rotary_size": config.rotary_size} if config.positions == "rotary" else {})


def _numbers(params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(path, float32 in little-endian order) of every parameter, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    for name in sorted(named):
        yield name, np.ascontiguousarray(named[name], "<f4")  # no copy where it is that already


def _digest(data: np.ndarray) -> bytes:
    return hashlib.blake2b(data.data, digest_size=16).digest()
