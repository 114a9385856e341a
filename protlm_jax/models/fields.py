"""The fields of a Hugging Face config.json, with a type and a range for every name that is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from protlm_jax.errors import ProtlmError

_LARGEST = 2**31 - 1

_SIZE = f"a whole number from 1 to {_LARGEST}"
_COUNT = f"a whole number from 0 to {_LARGEST}"
_WHOLE, _NUMBER = "a whole number", "a finite number"
_TEXT, _OBJECT, _FLAG = "text", "an object", "true or false"

_NAMES = {
    _SIZE: "vocab_size vocab_size_emb vocab_size_lm_head n_token hidden_size num_hidden_layers "
    "num_attention_heads intermediate_size max_position_embeddings embedding_size "
    "num_hidden_groups inner_group_num n_positions n_embd embed_dim n_layer n_head n_inner d_model "
    "d_kv d_ff d_head d_inner num_layers num_decoder_layers num_heads rotary_dim "
    "relative_attention_num_buckets relative_attention_max_distance",
    _COUNT: "type_vocab_size mem_len",
    _WHOLE: "clamp_len",
    _NUMBER: "layer_norm_eps layer_norm_epsilon initializer_range initializer_factor init_std "
    "dropout hidden_dropout_prob dropout_rate resid_pdrop attention_dropout rope_theta",
    _TEXT: "hidden_act activation_function ff_activation feed_forward_proj",
    _OBJECT: "rope_parameters",
    _FLAG: "same_length token_dropout use_mems_train",
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}


class Fields(Mapping[str, Any]):
    """A view of config.json that checks a value when it is read; a null counts as absent.

    Raises:
        ProtlmError: a value is of another type or out of range.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = {n: v for n, v in fields.items() if v is not None or n not in _KINDS}

    def __getitem__(self, name: str) -> Any:
        value = self._fields[name]
        if (kind := _KINDS.get(name)) and not _is(value, kind):
            raise ProtlmError(f"{name!r} is {value!r:.60}; it must be {kind}")
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def _is(value: Any, kind: str) -> bool:
    if kind in (_TEXT, _OBJECT, _FLAG):
        return isinstance(value, {_TEXT: str, _OBJECT: dict, _FLAG: bool}[kind])
    if isinstance(value, float):
        return kind == _NUMBER and math.isfinite(value)
    least = {_SIZE: 1, _COUNT: 0}.get(kind, -_LARGEST)
    return type(value) is int and least <= value <= _LARGEST
