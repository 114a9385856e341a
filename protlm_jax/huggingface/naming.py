"""The names of a folder's tensors: what may stand before them, and which belong to another head.

A model may be stored as its body alone (`BertModel`, without "bert." before its names), inside
another module (DistributedDataParallel, torch.compile, Lightning), or with the head of another
task. Where the body's tensors are says which.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.tensor_files import StoredTensor
from protlm_jax.models.exchange import Exchange

log = logging.getLogger(__name__)

# Names of what changes the body's output though it stands beside it.
_CHANGES_THE_BODY = re.compile(r"lora|adapter|prompt|prefix", re.IGNORECASE)
_OTHER_HEAD = "belongs to a head for another task"


def named_as_in_table(
    folder: Path, exchange: Exchange, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors under names as the family's table has them, and notes on what was changed.

    Raises:
        ProtlmError: two tensors have one name then.
    """
    before, body = _before_the_body(exchange, stored), exchange.body
    if before == body:
        return dict(stored), []
    wrapper = before.removesuffix(body) if body and before.endswith(body) else before
    inside = {
        name.removeprefix(body).partition(".")[0]
        for name in (*_table(exchange), *exchange.aliases, *exchange.unused, *exchange.constants)
        if name.startswith(body)
    }
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        new = name.removeprefix(wrapper)
        rest = name.removeprefix(before)
        if name.startswith(before) and rest.partition(".")[0] in inside:
            new = body + rest
        if new in renamed:
            raise ProtlmError(
                f"{tensor.file}: two tensors are {new} once {before!r} is left out of their names: "
                f"save the model itself, without what it was wrapped in"
            )
        renamed[new] = tensor
    if not wrapper:
        return renamed, []
    log.warning("%s: the names of its tensors are read without %r before them", folder, wrapper)
    return renamed, [f"{wrapper} (a prefix of the tensors' names)"]


def of_other_heads(exchange: Exchange, names: Mapping[str, object]) -> dict[str, str]:
    """Names outside the body and outside the heads that the family's table has, and why."""
    ours = {key.theirs.partition(".")[0] for key in exchange.keys}
    return {
        name: _OTHER_HEAD
        for name in names
        if name.partition(".")[0] not in ours and not _CHANGES_THE_BODY.search(name)
    }


def _before_the_body(exchange: Exchange, stored: Mapping[str, object]) -> str:
    """What stands before the names of the body's tensors: as most of them have it."""
    body = exchange.body
    heads = {key.theirs for key in exchange.keys if exchange.is_head(key)}
    tails = {
        _numbers_left_out(name.replace("{layer}", "0").removeprefix(body))
        for name in _table(exchange)
        if name not in heads
    }
    found: Counter[str] = Counter()
    for name in stored:
        parts = name.split(".")
        for start in range(len(parts)):
            tail = ".".join(parts[start:])
            if _numbers_left_out(tail) in tails:
                found[name[: len(name) - len(tail)]] += 1
                break
    return found.most_common(1)[0][0] if found else body


def _numbers_left_out(name: str) -> str:
    return re.sub(r"\b\d+\b", "#", name)


def _table(exchange: Exchange) -> list[str]:
    return [key.theirs for key in exchange.keys]
