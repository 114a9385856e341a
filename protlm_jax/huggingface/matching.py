"""Whether the tensors of a folder are those of the model that its config.json describes."""

from __future__ import annotations

import fnmatch
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.convert import expected_shapes, names_of
from protlm_jax.huggingface.tensor_files import StoredTensor
from protlm_jax.models import ModelConfig
from protlm_jax.models.exchange import Exchange

log = logging.getLogger(__name__)

Tensors = dict[str, StoredTensor]

# How TensorFlow's LayerNorm called its parameters; transformers reads these names in every model,
# and 5.23 writes them back where it has read them.
_OLD_NORMS = {"*LayerNorm.gamma": "weight", "*LayerNorm.beta": "bias"}

# Names of what changes the body's output though it stands beside it.
_CHANGES_THE_BODY = re.compile(r"lora|adapter|prompt|prefix", re.IGNORECASE)


@dataclass(frozen=True)
class Matched:
    """What a folder has of the model.

    Attributes:
        tensors: those that the model needs, by the names of the family's table.
        left: what is left of the others: a line and reason each.
        missing: the heads that are not there, as `Exchange.heads` names them.
    """

    tensors: Tensors
    left: tuple[str, ...]
    missing: tuple[str, ...]


def matched(
    folder: Path,
    exchange: Exchange,
    config: ModelConfig,
    abstract: Any,
    stored: Tensors,
    tied: bool = True,
) -> Matched:
    """Finds each tensor of the model, with parameters of these shapes, among those of a folder.

    `tied` is False where config.json says that the head has a table of its own.

    Raises:
        ProtlmError: a tensor is missing, has another shape, has no place in the model, or is not
            what it must be equal to; the message names it.
    """
    expected = expected_shapes(exchange, abstract)
    stored, notes = _named_as_in_table(folder, exchange, stored)
    stored = _by_current_names(exchange.aliases, stored)
    for name, compute in exchange.defaults.items():
        if name not in stored:
            stored[name] = StoredTensor(folder, expected[name], partial(compute, config))
            log.info("%s: %s is not there and follows from config.json", folder, name)
    notes += _without_copies(folder, exchange, expected, stored, tied)
    notes += _without_unused(folder, exchange, stored)
    for name in exchange.constants.keys() & stored.keys():
        tensor, asked = stored.pop(name), exchange.constants[name](config)
        if tensor.shape != asked.shape or not np.allclose(tensor.read(), asked, rtol=1e-3):
            raise ProtlmError(
                f"{tensor.file}: tensor {name} is not the constant that follows from config.json: "
                f"take both from one place"
            )
        notes.append(f"{name} (follows from config.json)")
    if notes:
        log.info("%s: not taken over: %s", folder, "; ".join(sorted(notes)))
    missing = _missing_heads(folder, exchange, abstract, expected, stored)
    _require_all(folder, expected, stored)
    return Matched(stored, tuple(sorted(notes)), missing)


def _named_as_in_table(
    folder: Path, exchange: Exchange, stored: Tensors
) -> tuple[Tensors, list[str]]:
    """The tensors under the names of the family's table, and notes on what was changed.

    A model may be stored as its body alone (`BertModel`, without "bert." before its names), inside
    another module (DistributedDataParallel, torch.compile, Lightning), or with the head of another
    task. The names of the body's tensors show which.
    """
    before, body = _before_the_body(exchange, stored), exchange.body
    if before == body:
        return dict(stored), []
    wrapper = before.removesuffix(body) if body and before.endswith(body) else before
    table = (key.theirs for key in exchange.keys)
    inside = {
        name.removeprefix(body).partition(".")[0]
        for name in (*table, *exchange.aliases, *exchange.unused, *exchange.constants)
        if name.startswith(body)
    }
    renamed: Tensors = {}
    for name, tensor in stored.items():
        new, rest = name.removeprefix(wrapper), name.removeprefix(before)
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


def _before_the_body(exchange: Exchange, stored: Tensors) -> str:
    """What stands before the names of the body's tensors, as most of them have it."""

    def without_numbers(name: str) -> str:
        return re.sub(r"\b\d+\b", "#", name)

    body = exchange.body
    heads = {key.theirs for key in exchange.keys if exchange.is_head(key)}
    tails = {
        without_numbers(key.theirs.replace("{layer}", "0").removeprefix(body))
        for key in exchange.keys
        if key.theirs not in heads
    }
    found: Counter[str] = Counter()
    for name in stored:
        parts = name.split(".")
        starts = (".".join(parts[start:]) for start in range(len(parts)))
        if tail := next((tail for tail in starts if without_numbers(tail) in tails), ""):
            found[name[: len(name) - len(tail)]] += 1
    return found.most_common(1)[0][0] if found else body


def _by_current_names(aliases: Mapping[str, str], stored: Tensors) -> Tensors:
    """The tensors under the names that the table has."""
    renamed: Tensors = {}
    for old, tensor in stored.items():
        name = next((new for pattern, new in aliases.items() if fnmatch.fnmatch(old, pattern)), old)
        for pattern, leaf in _OLD_NORMS.items():
            if fnmatch.fnmatch(old, pattern):
                name = f"{old.rpartition('.')[0]}.{leaf}"
        if name in renamed and not _equal(renamed[name], tensor):
            raise ProtlmError(
                f"{tensor.file}: {old} differs from another tensor that stands for {name}; the "
                f"model has one: take the weights from where they came from"
            )
        renamed[name] = tensor
    return renamed


def _without_copies(
    folder: Path,
    exchange: Exchange,
    expected: Mapping[str, tuple[int, ...]],
    stored: Tensors,
    tied: bool,
) -> list[str]:
    """Takes out what is stored twice, and fills in a copy that the model needs; notes."""
    notes = []
    for copy, original in exchange.copies.items():
        if tied and copy in expected and copy not in stored and original in stored:
            stored[copy] = stored[original]
            log.info("%s: %s is not there, %s is taken for it", folder, copy, original)
        if copy in expected or copy not in stored:
            continue
        tensor = stored.pop(copy)
        if original not in stored:
            stored[original] = tensor
        elif not _equal(tensor, stored[original]):
            raise ProtlmError(
                f"{tensor.file}: {copy} differs from {original}, which config.json says it is tied "
                f"to: with untied weights, this model cannot be read"
            )
        else:
            notes.append(f"{copy} (equals {original})")
    return notes


def _without_unused(folder: Path, exchange: Exchange, stored: Tensors) -> list[str]:
    """Takes out what the model has no use for, heads for other tasks among it; notes."""
    unused = {n: why for p, why in exchange.unused.items() for n in fnmatch.filter(stored, p)}
    ours = {key.theirs.partition(".")[0] for key in exchange.keys}
    others = sorted(
        name
        for name in stored.keys() - unused.keys()
        if name.partition(".")[0] not in ours and not _CHANGES_THE_BODY.search(name)
    )
    for name in (*unused, *others):
        stored.pop(name)
    if others:
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        named = ", ".join(others[:4]) + more
        log.warning("%s: not read, of a head for another task: %s", folder, named)
    reasons = unused | dict.fromkeys(others, "belongs to a head for another task")
    return [f"{name} ({reason})" for name, reason in reasons.items()]


def _missing_heads(
    folder: Path,
    exchange: Exchange,
    abstract: Any,
    expected: Mapping[str, tuple[int, ...]],
    stored: Tensors,
) -> tuple[str, ...]:
    """The heads without any tensor; theirs are filled with NaN, and nothing computes with them."""
    tensors = names_of(exchange, abstract)
    together: dict[str, set[str]] = {}  # parameters of what messages call one head
    for name, called in exchange.heads.items():
        together.setdefault(called, set()).update(tensors.get(name, ()))
    absent = {called for called, names in together.items() if names and not names & stored.keys()}
    for called in absent:
        log.warning("%s has no tensors of %s: what needs it is refused", folder, called)
        for name in together[called]:
            shape = expected[name]
            stored[name] = StoredTensor(folder, shape, partial(np.full, shape, np.float32("nan")))
    return tuple(n for n, called in exchange.heads.items() if called in absent and n in tensors)


def _require_all(folder: Path, expected: Mapping[str, tuple[int, ...]], stored: Tensors) -> None:
    def more(names: list[str]) -> str:
        listed = ", ".join(names[1:4])
        return "" if len(names) == 1 else f" (and {len(names) - 1} more: {listed}...)"

    if missing := [name for name in expected if name not in stored]:
        decoder = all(name.startswith("decoder.") for name in missing)  # of T5
        remedy = ', or, if this is the encoder alone, write "architectures": ["T5EncoderModel"]'
        raise ProtlmError(
            f"{folder}: tensor {missing[0]} of shape {list(expected[missing[0]])} is missing"
            f"{more(missing)}; found {len(stored)} of {len(expected)}. The weights are of another "
            f"model class or size than config.json says: copy both again from one place"
            f"{remedy if decoder else ''}"
        )
    if unexpected := sorted(stored.keys() - expected.keys()):
        tensor = stored[unexpected[0]]
        raise ProtlmError(
            f"{tensor.file}: tensor {unexpected[0]} of shape {list(tensor.shape)} has no place in "
            f"the model of config.json{more(unexpected)}: take config.json and weights from one "
            f"place, or remove the tensor from the file"
        )
    for name, asked in expected.items():
        if stored[name].shape != asked:
            raise ProtlmError(
                f"{stored[name].file}: tensor {name} has shape {list(stored[name].shape)}, "
                f"config.json asks for {list(asked)}: take both from one place"
            )


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    return a.shape == b.shape and bool((a.read() == b.read()).all())
