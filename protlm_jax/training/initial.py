"""The first state of a run that continues the pretraining of another model.

Parameters are copied, except in two kinds of tables: rows of a vocabulary are matched by token, and
a position table keeps the rows that both models have. Rows without a match start at random.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from protlm_jax import partitioning
from protlm_jax.config.files import read_config
from protlm_jax.config.run import RunConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.models.build import absent_heads
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.identity import identity
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.training.assembly import Assembly
from protlm_jax.training.checkpoints import restore_part, stored_info
from protlm_jax.training.optimizers import opt_state_axes
from protlm_jax.training.state import TrainState
from protlm_jax.vocabularies import Vocabulary, get_vocabulary

# Fields of a model that no parameter depends on: they may differ from the source's.
WITHOUT_PARAMETERS = (
    *("dropout_rate", "mlp_dropout", "dtype", "remat", "attention_backend"),
    *("memory_length", "same_length", "clamp_length"),
)
# Fields that may differ because they concern random values, or tables that are matched.
MAY_DIFFER = (
    *WITHOUT_PARAMETERS,
    *("initializer_range", "position_init", "vocabulary", "vocab_size", "max_positions"),
)

Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """The model that a run starts from, and its checkpoint; None for a Hugging Face folder."""

    model: LoadedModel
    checkpoint: Path | None


Load = Callable[[str], Source]
"""Reads what `init_from` names; called once, by a run without a checkpoint."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run took from its source, in words; saved as init.json.

    `new` starts at random, `left` is only in the source, and `settings` are fields of the model
    that differ without an effect on parameters. `digest` tells a frozen source from other
    models.
    """

    source: str
    name: str
    loaded: str
    new: list[str]
    left: list[str]
    optimizer: str
    settings: list[str]
    digest: str

    def lines(self) -> list[str]:
        """For the screen."""
        several = {"new": self.new, "left": self.left, "differs": self.settings}
        return [
            f"starting from {self.source} ({self.name})",
            f"  loaded: {self.loaded}",
            *(f"  {kind}: {line}" for kind, lines in several.items() for line in lines or ["none"]),
            f"  optimizer: {self.optimizer}",
        ]


def continue_from(
    config: RunConfig, parts: Assembly, fresh: TrainState, load: Load
) -> tuple[TrainState, Report]:
    """The state of step 0 with the parameters of `config.init_from`, which `load` reads.

    `fresh` is the state with random parameters, whose memory may be used again. Raises a
    ProtlmError where there is no model, one of another architecture (each field is named), or no
    optimizer's state where the config asks for it.
    """
    assert config.init_from is not None
    with _in_host_memory():
        found = load(config.init_from)
    source = found.model
    fixed = [f.name for f in dataclasses.fields(ModelConfig) if f.name not in MAY_DIFFER]
    if differences := _differences(source.config, config.model, fixed):
        raise ProtlmError(
            f"the model in {config.init_from} is another one than config.model: "
            f"{'; '.join(differences)}. Set these fields to the first values, or leave "
            f"--config.init_from away"
        )
    rows, new, left = _matching_rows(source, config.model)
    if rows and config.tune.method != "all":
        raise ProtlmError(
            f"{config.init_from} has another vocabulary or position table than config.model, whose "
            f"new rows a frozen model would not learn: use its own, or tune.method=all"
        )
    state = _with_params(config, parts, fresh, source, rows)
    new += [f"{absent_heads(source.config, [name])}, {name}" for name in source.missing]
    optimizer = f"{config.optimizer.name} starts anew"
    if config.init_what == "state":
        stored = _stored_optimizer(config, found.checkpoint)
        moments = _continued_optimizer(stored, fresh, parts.layout, parts.axes, rows)
        state = dataclasses.replace(state, opt_state=moments)
        updates = int(stored["count"])
        optimizer = f"the moments of {config.optimizer.name} after {updates:,} updates are kept"
    optimizer += f"; the schedule begins at its step {config.schedule.first_step:,}"
    arrays = jax.tree.leaves({n: x for n, x in source.params.items() if n not in source.missing})
    report = Report(
        source=config.init_from,
        name=source.name,
        loaded=f"{len(arrays)} arrays of {sum(a.size for a in arrays):,} parameters",
        new=new,
        left=[*left, *source.left],
        optimizer=optimizer,
        settings=_differences(source.config, config.model, WITHOUT_PARAMETERS),
        digest=identity(source) if parts.layout.base else "",
    )
    return state, report


def _with_params(
    config: RunConfig, parts: Assembly, fresh: TrainState, source: LoadedModel, rows: Rows
) -> TrainState:
    """The fresh state with the model's parameters, divided where some of them stay frozen."""
    tuning, layout, axes = parts.step.tuning, parts.layout, parts.axes
    whole, shardings, names = fresh.params, layout.params, axes
    if tuning is not None:
        names = tuning.whole_axes
        shapes = jax.eval_shape(tuning.init, jax.random.key(0))
        shardings = partitioning.shardings(shapes, names, parts.mesh)
        whole = jax.jit(tuning.init, out_shardings=shardings)(jax.random.key(config.train.seed))
    # Heads that were not stored, and one of the task's own, begin as in any new run.
    taken = [name for name in whole if name in source.params and name not in source.missing]
    params = whole | {
        name: jax.tree.map(
            lambda leaf, axes, stored, sharding: _placed(leaf, axes, stored, rows, sharding),
            *(tree[name] for tree in (whole, names, source.params, shardings)),
        )
        for name in taken
    }
    if tuning is None:
        return dataclasses.replace(fresh, params=params)
    split = jax.jit(tuning.split, out_shardings=(layout.base, layout.params))
    base, trained = split(params, jax.random.key(config.train.seed))
    return dataclasses.replace(fresh, base=base, params=trained)


def require_base(checkpoint: Path, digest: str, source: str) -> None:
    """Raises a ProtlmError where a checkpoint was trained on another base than this model."""
    if stored_info(checkpoint).get("base") != digest:
        raise ProtlmError(
            f"{checkpoint} was trained beside another model than {source} is now: put back the "
            f"model that the run started from"
        )


def _differences(source: ModelConfig, own: ModelConfig, fields: Iterable[str]) -> list[str]:
    return [
        f"model.{f}: {getattr(source, f)!r} there, {getattr(own, f)!r} here"
        for f in fields
        if getattr(source, f) != getattr(own, f)
    ]


def _matching_rows(source: LoadedModel, own: ModelConfig) -> tuple[Rows, list[str], list[str]]:
    """The source's row of each row here (int64, -1 for a new one) for the axes "vocab" and
    "positions", where they differ; and what is new and what is left, in words.
    """
    rows: Rows = {}
    new, left = [], []
    there, here = source.vocabulary, get_vocabulary(own.vocabulary)
    sizes = source.config.vocab_size, own.vocab_size
    found = vocabulary_rows(there, here, *sizes)
    if sizes[0] != sizes[1] or (found != np.arange(sizes[1])).any():
        rows["vocab"] = found
        gained = np.flatnonzero(found < 0).tolist()
        lost = np.setdiff1d(np.arange(sizes[0]), found).tolist()
        new += [f"{len(gained)} rows of the vocabulary: {_tokens(here, gained)}"] if gained else []
        left += [f"{len(lost)} rows of the vocabulary: {_tokens(there, lost)}"] if lost else []
    before, after = source.config.position_rows, own.position_rows
    if before != after:
        rows["positions"] = np.where(np.arange(after) < before, np.arange(after), -1)
        if after > before:
            new.append(f"positions {before} to {after - 1} of the position table")
        else:
            left.append(f"positions {after} to {before - 1} of the position table")
    return rows, new, left


def _tokens(vocabulary: Vocabulary, ids: list[int]) -> str:
    names = [vocabulary.tokens[i] if i < vocabulary.size else f"row {i}" for i in ids[:8]]
    return ", ".join(names) + (", ..." if len(ids) > 8 else "")


def vocabulary_rows(
    there: Vocabulary, here: Vocabulary, rows_there: int, rows_here: int
) -> np.ndarray:
    """The source's row of each row here, -1 where there is none: int64 [rows_here].

    Padding, unknown and mask match by role, other rows by token. Rows without a token, added so
    that a table divides evenly, match if both are the same vocabulary.
    """
    found = np.full(rows_here, -1, np.int64)
    if there.name == here.name:
        common = min(rows_there, rows_here)
        found[:common] = np.arange(common)
        return found
    ids = {token: i for i, token in enumerate(there.tokens)}
    for i, token in enumerate(here.tokens):
        found[i] = ids.get(token, -1)
    for part in ("pad_id", "unk_id", "mask_id"):
        ours, theirs = getattr(here, part), getattr(there, part)
        if ours is not None and theirs is not None:
            found[ours] = theirs
    return found


def _stored_optimizer(config: RunConfig, checkpoint: Path | None) -> dict[str, np.ndarray]:
    """Stored arrays by their path inside the optimizer's links, without the schedule's count."""
    stored = None if checkpoint is None else restore_part(checkpoint, "opt_state")
    if checkpoint is None or stored is None:
        raise ProtlmError(
            f"{config.init_from} holds parameters and no optimizer's state: "
            f"use --config.init_what=params"
        )
    used = read_config(checkpoint.parents[1]).optimizer.name
    if used != config.optimizer.name:
        raise ProtlmError(
            f"{config.init_from} was trained with {used}, whose state {config.optimizer.name} "
            f"cannot use: set --config.optimizer.name={used}, or --config.init_what=params"
        )
    flat = jax.tree_util.tree_flatten_with_path(stored[:-1])[0]
    return {_inside_link(path): leaf for path, leaf in flat}


def _continued_optimizer(
    stored: dict[str, np.ndarray], fresh: TrainState, layout: TrainState, axes: Any, rows: Rows
) -> Any:
    """The optimizer's state with the stored moments.

    Its last link, the schedule's count, stays 0: the config says where the schedule begins.
    """

    def take(path: Any, leaf: jax.Array, logical: Any, sharding: Any) -> jax.Array:
        if path[0].idx == len(fresh.opt_state) - 1:
            return leaf
        if (name := _inside_link(path)) not in stored:
            raise ProtlmError(
                f"the stored state of the optimizer has no {name}: use --config.init_what=params"
            )
        return _placed(leaf, logical, stored[name], rows, sharding)

    names = opt_state_axes(fresh.opt_state, fresh.params, axes)
    return jax.tree_util.tree_map_with_path(take, fresh.opt_state, names, layout.opt_state)


def _inside_link(path: Any) -> str:
    """A path without the number of the chain's link, which depends on clipping."""
    return jax.tree_util.keystr(path[1:], simple=True, separator="/")


def _placed(leaf: jax.Array, names: Any, stored: Any, rows: Rows, sharding: Any) -> jax.Array:
    """A stored array laid out like `leaf`; where tables differ, its rows in a copy of `leaf`."""
    stored = np.asarray(stored)
    index: list[Any] = [slice(None)] * leaf.ndim
    for axis, name in enumerate(names):
        if name in rows:
            here = np.flatnonzero(rows[name] >= 0)
            stored = np.take(stored, rows[name][here], axis)
            index[axis] = here
    if not any(isinstance(part, np.ndarray) for part in index):
        if stored.shape != leaf.shape:
            raise ProtlmError(f"an array of shape {stored.shape} cannot become {leaf.shape}")
        return jax.make_array_from_callback(leaf.shape, sharding, lambda part: stored[part])
    put = jax.jit(lambda x, y: x.at[tuple(index)].set(y), out_shardings=sharding)
    return put(leaf, stored)


@contextlib.contextmanager
def _in_host_memory() -> Any:
    """Arrays made inside stay off the accelerator, which may not hold a whole model."""
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
        yield
        return
    with jax.default_device(host):
        yield
