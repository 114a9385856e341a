"""AdamW, LAMB, Adafactor and Muon for parameters stacked along a leading "layers" axis.

LAMB's trust ratio and Adafactor's statistics are defined per parameter tensor. So optax's
transformations are lifted here with `jax.vmap` over layers, and (heads, kv) are joined into the
matrix dimension that the multiplication sees. The state keeps optax's structure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from optax.contrib import MuonDimensionNumbers

from protlm_jax.config.run import OptimizerConfig
from protlm_jax.errors import ProtlmError

Names = tuple[str | None, ...]
Tree = Any
Links = list[optax.GradientTransformation]

ADAFACTOR_DECAY = 0.8  # the second moment's decay at update t is 1 - t^-0.8
ADAFACTOR_CLIP = 1.0  # largest root mean square of a tensor's update
ADAFACTOR_MIN_SCALE = 1e-3  # a tensor smaller than this still moves
MUON_RMS = 0.2  # root mean square of an update, about AdamW's (2502.16982)
ADAFACTOR_MIN_DIMENSION = 128  # matrices with a smaller side keep a full second moment


def build_optimizer(
    config: OptimizerConfig,
    schedule: optax.Schedule,
    logical_axes: Tree,
    layer_decay: float = 1.0,
) -> optax.GradientTransformation:
    """The transformation from fp32 gradients to updates, which are added to the parameters.

    `logical_axes` is the parameters' tree with a tuple of axis names per leaf: a leading "layers"
    makes a tensor a stack of layers, and neighbouring "heads" and "kv" count as one dimension. The
    state has one entry per link of the chain; the last one is the schedule's count. `layer_decay`
    is that of `TuneConfig`.
    """
    if config.name not in OPTIMIZERS:
        names = f"{', '.join([*OPTIMIZERS][:-1])} or {[*OPTIMIZERS][-1]}"
        raise ProtlmError(f"optimizer.name={config.name!r} is unknown: use {names}")
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    decay = [optax.add_decayed_weights(config.weight_decay, _decay_mask)]
    links = OPTIMIZERS[config.name](config, decay if config.weight_decay else [], logical_axes)
    layers = [_layer_decay(layer_decay, logical_axes)] if layer_decay != 1.0 else []
    chain = optax.chain(*clip, *links, *layers, optax.scale_by_learning_rate(schedule))
    return _with_average(chain, config.ema) if config.ema else chain


class AverageState(NamedTuple):
    """The moving average of the parameters, of so many updates."""

    updates: jax.Array
    average: Tree


def _with_average(chain: optax.GradientTransformation, decay: float) -> Any:
    """The chain, with the average of the parameters after each update before its state."""

    def init(params: Tree) -> Any:
        return AverageState(jnp.zeros([], jnp.int32), params), *chain.init(params)

    def update(updates: Tree, state: Any, params: Tree) -> Any:
        (count, average), *inner = state
        updates, inner = chain.update(updates, tuple(inner), params)
        keep = jnp.minimum(decay, count / (count + 10.0)).astype(jnp.float32)
        after = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: keep * a + (1.0 - keep) * p, average, after)
        return updates, (AverageState(optax.safe_increment(count), average), *inner)

    return optax.GradientTransformation(init, update)


def averaged(opt_state: Any, params: Tree) -> Tree:
    """What is evaluated: the average of the parameters where the optimizer keeps one."""
    first = opt_state[0]
    kept = isinstance(first, AverageState) and int(jax.device_get(first.updates)) > 0
    return first.average if kept else params


def _layer_decay(decay: float, axes: Tree) -> optax.GradientTransformation:
    """Scales the updates of layer l of L by decay^(L - 1 - l), those of tables by decay^L."""

    def update(updates: Tree, state: optax.EmptyState, params: Tree) -> tuple[Tree, Tree]:
        pairs = zip(jax.tree.leaves(axes, is_leaf=_is_names), jax.tree.leaves(updates), strict=True)
        depth = max((len(update) for names, update in pairs if _is_stacked(names)), default=0)

        def scaled(names: Names, update: jax.Array) -> jax.Array:
            if _is_stacked(names):
                powers = decay ** jnp.arange(len(update) - 1, -1, -1, dtype=update.dtype)
                return update * powers.reshape(-1, *(1,) * (update.ndim - 1))
            return update * decay**depth if {"vocab", "positions"} & {*names} else update

        return jax.tree.map(scaled, axes, updates, is_leaf=_is_names), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _adamw(config: OptimizerConfig, decay: Links, axes: Tree) -> Links:
    return [optax.scale_by_adam(config.b1, config.b2, config.eps), *decay]


def _lamb(config: OptimizerConfig, decay: Links, axes: Tree) -> Links:
    return [
        *_adamw(config, decay, axes),
        _per_layer(optax.scale_by_trust_ratio(), axes, is_decayed),
    ]


def _adafactor(config: OptimizerConfig, decay: Links, axes: Tree) -> Links:
    clip_and_scale = optax.chain(
        optax.clip_by_block_rms(ADAFACTOR_CLIP),
        optax.scale_by_param_block_rms(ADAFACTOR_MIN_SCALE),
    )
    return [_factored_rms(axes), _per_layer(clip_and_scale, axes), *decay]


def _muon(config: OptimizerConfig, decay: Links, axes: Tree) -> Links:
    """Muon for the matrices of stacked layers, AdamW for all else; decay acts on both."""
    sides = jax.tree_util.tree_map_with_path(
        lambda path, names: _sides(_dict_keys(path), names), axes, is_leaf=_is_names
    )
    kinds = jax.tree_util.tree_map_with_path(
        lambda path, names: "muon" if _sides(_dict_keys(path), names) else "adamw",
        axes,
        is_leaf=_is_names,
    )

    def scaled(update: jax.Array, of: MuonDimensionNumbers) -> jax.Array:
        larger = max(np.prod([update.shape[axis] for axis in side]) for side in of)
        return update * float(MUON_RMS * np.sqrt(larger))

    muon = optax.chain(
        optax.contrib.scale_by_muon(beta=config.momentum, weight_dimension_numbers=sides),
        optax.stateless(lambda updates, _: jax.tree.map(scaled, updates, sides)),
    )
    adamw = optax.scale_by_adam(config.b1, config.b2, config.eps)
    return [optax.partition({"muon": muon, "adamw": adamw}, kinds), *decay]


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, Links, Tree], Links]] = {
    "adamw": _adamw,
    "lamb": _lamb,
    "adafactor": _adafactor,
    "muon": _muon,
}


def _sides(path: tuple[str, ...], names: Names) -> MuonDimensionNumbers | optax.MaskedNode:
    """The axes of both sides of a stacked layer's matrix, (heads, kv) being one side; an empty node
    for anything else."""
    axes = list(range(1, len(names)))
    joined = next((i for i in axes if names[i : i + 2] == ("heads", "kv")), 0)
    sides = [(i, i + 1) if i == joined else (i,) for i in axes if not joined or i != joined + 1]
    is_matrix = _is_stacked(names) and path[-1] == "kernel" and len(sides) == 2
    return MuonDimensionNumbers(*sides) if is_matrix else optax.MaskedNode()


def is_decayed(path: tuple[str, ...]) -> bool:
    """Whether weight decay applies to the parameter at this path: to all except norms, biases,
    scales of branches, and parameters without a gradient (ESM-2's rotary frequencies and its
    contact head).

    By name, because a stacked bias has the rank of a matrix.
    """
    fixed = {"frequencies", "contact_head"} & set(path)
    return not fixed and not path[-1].endswith(("scale", "bias"))


def _decay_mask(params: Tree) -> Tree:
    return jax.tree_util.tree_map_with_path(lambda path, _: is_decayed(_dict_keys(path)), params)


# --- per-tensor transformations on stacks of layers ---------------------------------------------


def _is_names(node: Any) -> bool:
    return isinstance(node, tuple)


def _is_stacked(names: Names) -> bool:
    return names[:1] == ("layers",)


def _per_layer(
    transform: optax.GradientTransformation,
    logical_axes: Tree,
    applies: Callable[[tuple[str, ...]], bool] = lambda path: True,
) -> optax.GradientTransformation:
    """Lifts a stateless per-tensor transformation to stacks of layers, where it `applies`."""

    def update(updates: Tree, state: optax.EmptyState, params: Tree) -> tuple[Tree, Tree]:
        def tensor(path: Any, names: Names, update: jax.Array, param: jax.Array) -> jax.Array:
            def layer(update: jax.Array, param: jax.Array) -> jax.Array:
                return transform.update(update, transform.init(param), param)[0]

            if not applies(_dict_keys(path)):
                return update
            return (jax.vmap(layer) if _is_stacked(names) else layer)(update, param)

        updates = jax.tree_util.tree_map_with_path(
            tensor, logical_axes, updates, params, is_leaf=_is_names
        )
        return updates, state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _joined(names: Names, shape: tuple[int, ...]) -> tuple[Names, tuple[int, ...]]:
    """Names and shape with neighbouring (heads, kv) as one dimension called "heads"."""
    for i in range(len(names) - 1):
        if names[i : i + 2] == ("heads", "kv"):
            width = shape[i] * shape[i + 1]
            return (*names[: i + 1], *names[i + 2 :]), (*shape[:i], width, *shape[i + 2 :])
    return names, shape


def _factored_rms(logical_axes: Tree) -> optax.GradientTransformation:
    """Adafactor's second moment, factored into the rows and columns of each layer's matrix."""
    inner = optax.scale_by_factored_rms(
        decay_rate=ADAFACTOR_DECAY, min_dim_size_to_factor=ADAFACTOR_MIN_DIMENSION
    )
    # The layers share one count of updates.
    layered = optax.FactoredState(count=None, v_row=0, v_col=0, v=0)
    names_list, treedef = jax.tree.flatten(logical_axes, is_leaf=_is_names)
    split, unflatten = treedef.flatten_up_to, treedef.unflatten  # type: ignore[attr-defined]

    def over_tensors(tensor: Callable, *trees: Tree) -> list[Tree]:
        rows = zip(names_list, *map(split, trees), strict=True)
        return [unflatten(c) for c in zip(*(tensor(*row) for row in rows), strict=True)]

    def init(params: Tree) -> optax.FactoredState:
        def tensor(names: Names, param: jax.Array) -> tuple[jax.Array, ...]:
            matrix = jnp.reshape(param, _joined(names, param.shape)[1])
            initial = inner.init
            if _is_stacked(names):
                initial = jax.vmap(initial, out_axes=layered)
            return tuple(initial(matrix)[1:])

        return optax.FactoredState(jnp.zeros([], jnp.int32), *over_tensors(tensor, params))

    def update(grads: Tree, state: optax.FactoredState, params: Tree) -> tuple[Tree, Tree]:
        def tensor(
            names: Names, grad: jax.Array, row: Any, column: Any, full: Any, param: jax.Array
        ) -> tuple[jax.Array, ...]:
            shape = _joined(names, grad.shape)[1]
            moments = optax.FactoredState(state.count, row, column, full)
            step = inner.update
            if _is_stacked(names):
                step = jax.vmap(step, in_axes=(0, layered, 0), out_axes=(0, layered))
            scaled, moments = step(grad.reshape(shape), moments, param.reshape(shape))
            return scaled.reshape(grad.shape), *moments[1:]

        scaled, *moments = over_tensors(tensor, grads, *state[1:], params)
        return scaled, optax.FactoredState(optax.safe_increment(state.count), *moments)

    return optax.GradientTransformation(init, update)


# --- sharding -----------------------------------------------------------------------------------


def opt_state_axes(abstract_opt_state: Tree, abstract_params: Tree, logical_axes: Tree) -> Tree:
    """Logical axis names for the optimizer's state, so that it is sharded like its parameters.

    Takes shapes; returns the state's structure with the parameter's names for Adam's moments, those
    of the kept dimensions for Adafactor's rows and columns (the joined (heads, kv) being "heads"),
    and () for counts and placeholders. Read it with `jax.tree.map(f, abstract_opt_state, axes)`.
    """
    names = jax.tree.map(
        lambda n, p: (n, p.shape), logical_axes, abstract_params, is_leaf=_is_names
    )
    flat = jax.tree_util.tree_flatten_with_path(names, is_leaf=_is_names)[0]
    parameters = {_dict_keys(path): value for path, value in flat}

    def of_array(path: tuple[Any, ...], array: jax.ShapeDtypeStruct) -> Names:
        keys = _dict_keys(path)
        if keys not in parameters:
            return ()
        names, shape = parameters[keys]
        if array.shape == shape:
            return names
        field = path[-len(keys) - 1]
        names, shape = _joined(names, shape)
        return _moment_axes(getattr(field, "name", ""), array.shape, names, shape)

    return jax.tree_util.tree_map_with_path(of_array, abstract_opt_state)


def _moment_axes(
    field: str, array_shape: tuple[int, ...], names: Names, shape: tuple[int, ...]
) -> Names:
    """Names of one of Adafactor's moments of a parameter with these joined names and shape."""
    if array_shape == shape:
        return names
    first = int(_is_stacked(names))
    order = np.argsort(shape[first:])  # optax averages rows over the largest dimension
    for name, rank in (("v_row", -1), ("v_col", -2)):
        if field == name and len(order) >= 2:
            gone = first + int(order[rank])
            if array_shape == shape[:gone] + shape[gone + 1 :]:
                return names[:gone] + names[gone + 1 :]
    return ()


def _dict_keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The trailing dictionary keys of a path: in an optimizer's state, the parameter's path."""
    keys: list[str] = []
    for entry in reversed(path):
        if not isinstance(entry, jax.tree_util.DictKey):
            break
        keys.append(str(entry.key))
    return tuple(reversed(keys))


# --- what the step did to each layer ------------------------------------------------------------


def layer_statistics(
    grads: Tree, updates: Tree, params: Tree, logical_axes: Tree
) -> dict[str, jax.Array]:
    """Gradient norm and update-to-weight ratio of every layer, in a few reductions.

    Returns `layers/<group>/grad_norm` and `layers/<group>/update_ratio` (0 where the weights are
    all 0) for each top-level name of the parameters, and of a model within the model: fp32 arrays
    [layers] for stacks, scalars for the rest.
    """
    statistics = {}
    trees = (logical_axes, grads, updates, params)
    for group, names, *parts in _groups("", *trees):
        grad, update, weight = (_norms(part, names) for part in parts)
        ratio = jnp.where(weight > 0, update / jnp.where(weight > 0, weight, 1.0), 0.0)
        statistics[f"layers/{group}/grad_norm"] = grad
        statistics[f"layers/{group}/update_ratio"] = ratio
    return statistics


def _groups(prefix: str, names: Tree, *trees: Tree) -> Iterator[tuple[Any, ...]]:
    """Name and subtrees of each part; one that holds a stack and other parts is split further."""
    for name, part in names.items():
        below = [tree[name] for tree in trees]
        if len({_is_stacked(n) for n in jax.tree.leaves(part, is_leaf=_is_names)}) > 1:
            yield from _groups(f"{prefix}{name}/", part, *below)
        else:
            yield (f"{prefix}{name}", part, *below)


def _norms(tree: Tree, names: Tree) -> jax.Array:
    """Euclidean norm over all tensors of a group, per layer where the group is a stack."""

    def squares(names: Names, x: jax.Array) -> jax.Array:
        axes = tuple(range(int(_is_stacked(names)), x.ndim))
        return jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axes)

    sums = jax.tree.leaves(jax.tree.map(squares, names, tree, is_leaf=_is_names))
    return jnp.sqrt(sum(sums[1:], sums[0]))
