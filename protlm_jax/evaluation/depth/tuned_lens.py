"""The tuned lens (M8; Belrose et al. 2023, arXiv 2303.08112): a trained affine map at each depth.

    q_l = softmax(head(h_l + A_l h_l + b_l)),   trained to minimise KL(p || q_l), the model frozen

A and b start at zero, so that it starts as the logit lens. All depths are trained as one program,
on streams that the model gave once; each keeps the maps that were best on proteins of their own,
and is judged on others.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray

from protlm_jax.evaluation.depth.answers import differences, likenesses
from protlm_jax.evaluation.depth.batches import Proteins
from protlm_jax.evaluation.depth.parts import NOTHING, Part
from protlm_jax.evaluation.depth.positions import Positions, PositionSet, Stat
from protlm_jax.evaluation.depth.results import Quantity, Totals
from protlm_jax.evaluation.depth.streaming import arguments
from protlm_jax.evaluation.depth.subject import observe
from protlm_jax.models.loaded import LoadedModel

STEPS = 300
POINTS = 256  # in a minibatch
LEARNING_RATE = 1e-3
EVERY = 25  # steps between looks at the proteins that choose
Maps = dict[str, jax.Array]  # "A" [N, D, D], "b" [N, D]


def tuned_lens(
    loaded: LoadedModel,
    proteins: Proteins,
    stack: str,
    positions: PositionSet = "asked",
    *,
    seed: int = 0,
    steps: int = STEPS,
    part: Part = NOTHING,
    progress: bool = False,
) -> tuple[dict[str, Quantity], Maps]:
    """Trains the maps on half of the batches, chooses on a quarter, and measures on the last one.

    Args:
        positions: where streams are read, fitted and measured.
        part: where the training is kept, and gone on from.

    Returns:
        "tuned_lens_<name>" (depth) for every name of `logit_lens`, on the last quarter's proteins
        alone, and the maps. Cost: two forwards, and 3 `steps` heads of each depth.

    Raises:
        ValueError: fewer than four batches of proteins.
    """
    if proteins.batches < 4:
        raise ValueError("half, a quarter and a quarter of the batches: more proteins are needed")
    groups: list[list[Any]] = [[], [], []]
    for index in range(proteins.batches):
        batch = proteins.batch(loaded, index)
        group = groups[(0, 1, 0, 2)[index % 4]]
        group.append((batch.owners, arguments(loaded, batch, positions)))
    fitted, choosing = (_points([given for _, given in group], stack) for group in groups[:2])
    maps = fit(loaded, fitted, choosing, seed, steps, part=part, progress=progress)
    totals = Totals(len(proteins.names))
    with jax.default_matmul_precision("float32"):
        for owners, given in groups[2]:
            found = measured_lens(*given, maps, stack=stack)
            totals.add(jax.device_get(found), owners)
    return totals.quantities, maps


def fit(
    loaded: LoadedModel,
    fitted: tuple[jax.Array, jax.Array],
    choosing: tuple[jax.Array, jax.Array],
    seed: int = 0,
    steps: int = STEPS,
    *,
    part: Part = NOTHING,
    progress: bool = False,
) -> Maps:
    """The maps of every depth but the last.

    Args:
        fitted, choosing: streams [N, n, D] and log p [n, 20], the model's own answers.
        part: where maps and optimizer are kept between looks, and taken from.
    """
    from tqdm import tqdm

    number, points, width = fitted[0].shape
    maps = {"A": jnp.zeros((number, width, width)), "b": jnp.zeros((number, width))}
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, max(steps, 1)))
    loss = functools.partial(_losses, loaded)
    judge = jax.jit(loss)
    improve = jax.jit(functools.partial(_steps, loss, optimizer, fitted))
    quiet = None if progress else True
    with jax.default_matmul_precision("float32"):
        fresh = (maps, optimizer.init(maps), maps, judge(maps, *choosing))
        done, trained = _restored(part, fresh)
        for turn in tqdm(range(done, -(-steps // EVERY)), "tuned lens", disable=quiet):
            maps, state, best, lowest = trained
            generator = np.random.default_rng([seed, turn])
            rows = generator.integers(points, size=(EVERY, min(POINTS, points)))
            maps, state = improve(maps, state, jnp.asarray(rows))
            found = judge(maps, *choosing)
            better = found < lowest
            best = jax.tree.map(functools.partial(_where, better), maps, best)
            trained = (maps, state, best, jnp.where(better, found, lowest))
            if part.due:
                part.save(turn + 1, _kept(jax.device_get(jax.tree.leaves(trained))))
    return cast(Maps, trained[2])


def _losses(loaded: LoadedModel, maps: Maps, streams: jax.Array, log_p: jax.Array) -> jax.Array:
    """Mean KL(p || q_l) of each depth, [N]."""
    amino_acids = jnp.asarray(loaded.vocabulary.amino_acid_ids)
    log_q = jax.vmap(functools.partial(_answer, loaded, amino_acids))(maps, streams)
    return jnp.mean(jnp.sum(jnp.exp(log_p)[None] * (log_p[None] - log_q), axis=-1), axis=-1)


def _steps(
    loss: Any,
    optimizer: optax.GradientTransformation,
    fitted: tuple[jax.Array, jax.Array],
    maps: Maps,
    state: Any,
    rows: jax.Array,
) -> Any:
    """Maps and optimizer after a step on each minibatch `rows` [steps, points]."""

    def step(carry: Any, row: jax.Array) -> Any:
        maps, state = carry
        gradient = jax.grad(lambda m: jnp.sum(loss(m, fitted[0][:, row], fitted[1][row])))(maps)
        update, state = optimizer.update(gradient, state, maps)
        return (optax.apply_updates(maps, update), state), None

    return jax.lax.scan(step, (maps, state), rows)[0]


def _kept(leaves: list[Any]) -> xarray.Dataset:
    arrays = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    return xarray.Dataset(
        {n: ([f"{n}_{axis}" for axis in range(x.ndim)], x) for n, x in arrays.items()}
    )


def _restored(part: Part, fresh: Any) -> tuple[int, Any]:
    """How many turns are done and what they left, or `fresh`."""
    done, kept = part.load()
    if not done:
        return 0, fresh
    leaves = [jnp.asarray(kept[f"leaf_{i}"].values) for i in range(len(kept))]
    return done, jax.tree.unflatten(jax.tree.structure(fresh), leaves)


def _where(better: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _answer(
    loaded: LoadedModel, amino_acids: jax.Array, maps: Maps, stream: jax.Array
) -> jax.Array:
    """log q [n, 20] of one depth's stream [n, D] through its map."""
    read = loaded.model.readouts[0].stack
    mapped = (stream + stream @ maps["A"].T + maps["b"][None])[None]
    logits = loaded.model.apply({"params": loaded.params}, {read: mapped}, method="head")
    return jax.nn.log_softmax(logits[0][:, amino_acids])


def _points(batches: list[tuple[Any, ...]], stack: str) -> tuple[jax.Array, jax.Array]:
    """Streams [N, n, D] before every layer and log p [n, 20] at the places that are read."""
    streams, answers = [], []
    for given in batches:
        with jax.default_matmul_precision("float32"):
            found, log_p = jax.device_get(_streams(*given, stack=stack))
        target = np.asarray(given[4].target)
        streams.append(found[:, target])
        answers.append(log_p[target])
    return jnp.asarray(np.concatenate(streams, axis=1)), jnp.asarray(np.concatenate(answers))


@functools.partial(jax.jit, static_argnames=("model", "stack"))
def _streams(
    model: nn.Module,
    params: Any,
    features: dict[str, jax.Array],
    true: jax.Array,
    positions: Positions,
    amino_acids: jax.Array,
    *,
    stack: str,
) -> tuple[jax.Array, jax.Array]:
    subject = observe(model, params, features, true, positions, amino_acids, stack)
    return subject.seen[:-1], subject.said_of(subject.seen[-1])


@functools.partial(jax.jit, static_argnames=("model", "stack"))
def measured_lens(
    model: nn.Module,
    params: Any,
    features: dict[str, jax.Array],
    true: jax.Array,
    positions: Positions,
    amino_acids: jax.Array,
    maps: Maps,
    *,
    stack: str,
) -> dict[str, Stat]:
    """The lens with these maps on one batch; arguments as of `measure.measure`."""
    subject = observe(model, params, features, true, positions, amino_acids, stack)
    base = subject.said_of(subject.seen[-1])

    def at(one: tuple[jax.Array, jax.Array, jax.Array]) -> dict[str, Stat]:
        seen, matrix, offset = one
        other = subject.said_of(seen + seen @ matrix.T + offset[None, None])
        return differences(subject, base, other) | likenesses(subject, base, other)

    found = jax.lax.map(at, (subject.seen[:-1], maps["A"], maps["b"]))
    return {f"tuned_lens_{name}": stat.named("layer") for name, stat in found.items()}
