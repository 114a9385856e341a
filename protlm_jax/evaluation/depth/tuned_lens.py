"""The tuned lens (M8; Belrose et al. 2023, arXiv 2303.08112): a trained affine map at each depth.

    q_l = softmax(head(h_l + A_l h_l + b_l)),   trained to minimise KL(p || q_l), the model frozen

A and b start at zero, so that it starts as the logit lens. All depths are trained as one program,
on streams that the model gave once; each keeps the maps that were best on proteins of their own,
and is measured on others.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray

from protlm_jax.evaluation.depth.batches import DepthBatch
from protlm_jax.evaluation.depth.positions import Stat
from protlm_jax.evaluation.depth.results import Quantity, Totals
from protlm_jax.evaluation.depth.stream import lens
from protlm_jax.evaluation.depth.subject import Subject
from protlm_jax.evaluation.depth.sweep import Part, Sweep
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.models.readouts import residue_logits

STEPS = 300
POINTS = 256  # in a minibatch
LEARNING_RATE = 1e-3
EVERY = 25  # steps between measurements on the proteins that choose
Maps = dict[str, jax.Array]  # "A" [N, D, D], "b" [N, D]
Points = tuple[jax.Array, jax.Array]  # streams [N, n, D], and log p [n, 20], the model's answers


def tuned_lens(sweep: Sweep) -> dict[str, Quantity]:
    """`trained_lens` without the maps: "tuned_lens_<name>" (layer) for every name of `lens`."""
    return trained_lens(sweep)[0]


def trained_lens(sweep: Sweep, steps: int = STEPS) -> tuple[dict[str, Quantity], Maps]:
    """Trains the maps on half of the batches, chooses on a quarter, and measures on the last one.

    Cost: two forwards, and 3 `steps` heads of each depth.

    Raises:
        ValueError: fewer than four batches of proteins.
    """
    if sweep.proteins.batches < 4:
        raise ValueError("half, a quarter and a quarter of the batches: more proteins are needed")
    groups: list[list[DepthBatch]] = [[], [], []]
    for index, batch in enumerate(sweep.proteins.all_batches(sweep.loaded)):
        groups[(0, 1, 0, 2)[index % 4]].append(batch)
    maps = fit(sweep, _points(sweep, groups[0]), _points(sweep, groups[1]), steps)
    totals = Totals(len(sweep.proteins.names))
    for batch in groups[2]:
        totals.add(sweep.run(measured_lens, sweep.shown(batch), maps), batch.owners)
    return totals.quantities, maps


def measured_lens(subject: Subject, maps: Maps) -> dict[str, Stat]:
    """The lens with these maps on one batch."""
    base = subject.answer_of(subject.seen[-1])

    def at(one: tuple[jax.Array, jax.Array, jax.Array]) -> dict[str, Stat]:
        seen, matrix, offset = one
        return lens(subject, base, seen + seen @ matrix.T + offset[None, None])

    found = jax.lax.map(at, (subject.seen[:-1], maps["A"], maps["b"]))
    return {f"tuned_lens_{name}": stat.named("layer") for name, stat in found.items()}


def fit(sweep: Sweep, fitted: Points, choosing: Points, steps: int) -> Maps:
    """The maps of every depth but the last; maps and optimizer are kept in a part of the sweep."""
    number, points, width = fitted[0].shape
    maps = {"A": jnp.zeros((number, width, width)), "b": jnp.zeros((number, width))}
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, max(steps, 1)))
    loss = functools.partial(_losses, sweep.loaded)
    judge = jax.jit(loss)
    improve = jax.jit(functools.partial(_steps, loss, optimizer, fitted))
    part = sweep.part("tuned_lens")
    with jax.default_matmul_precision("float32"):
        fresh = (maps, optimizer.init(maps), maps, judge(maps, *choosing))
        done, trained = _restored(part, fresh)
        for turn in sweep.bar(range(done, -(-steps // EVERY)), "tuned lens"):
            maps, state, best, lowest = trained
            generator = np.random.default_rng([sweep.seed, turn])
            rows = generator.integers(points, size=(EVERY, min(POINTS, points)))
            maps, state = improve(maps, state, jnp.asarray(rows))
            found = judge(maps, *choosing)
            better = found < lowest
            best = jax.tree.map(
                lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old),  # noqa: B023
                maps, best,
            )  # fmt: skip
            trained = (maps, state, best, jnp.where(better, found, lowest))
            if part.due:
                leaves = enumerate(jax.device_get(jax.tree.leaves(trained)))
                arrays = {f"leaf_{i}": np.asarray(leaf) for i, leaf in leaves}
                axes = {n: [f"{n}_{axis}" for axis in range(x.ndim)] for n, x in arrays.items()}
                part.save(turn + 1, xarray.Dataset({n: (axes[n], x) for n, x in arrays.items()}))
    return cast(Maps, trained[2])


def _losses(loaded: LoadedModel, maps: Maps, streams: jax.Array, log_p: jax.Array) -> jax.Array:
    """Mean KL(p || q_l) of each depth, [N]."""
    amino_acids, read = loaded.vocabulary.amino_acid_columns, loaded.model.readouts[0]

    def answer(one: Maps, stream: jax.Array) -> jax.Array:
        mapped = (stream + stream @ one["A"].T + one["b"][None])[None]
        logits = loaded.model.apply({"params": loaded.params}, {read.stack: mapped}, method="head")
        return jax.nn.log_softmax(residue_logits(logits[0], amino_acids))

    log_q = jax.vmap(answer)(maps, streams)
    return jnp.mean(jnp.sum(jnp.exp(log_p)[None] * (log_p[None] - log_q), axis=-1), axis=-1)


def _steps(
    loss: Any, optimizer: optax.GradientTransformation, fitted: Points,
    maps: Maps, state: Any, rows: jax.Array,
) -> Any:  # fmt: skip
    """Maps and optimizer after a step on each minibatch `rows` [steps, points]."""

    def step(carry: Any, row: jax.Array) -> Any:
        maps, state = carry
        gradient = jax.grad(lambda m: jnp.sum(loss(m, fitted[0][:, row], fitted[1][row])))(maps)
        update, state = optimizer.update(gradient, state, maps)
        return (optax.apply_updates(maps, update), state), None

    return jax.lax.scan(step, (maps, state), rows)[0]


def _restored(part: Part, fresh: Any) -> tuple[int, Any]:
    """How many turns are done and what they left, or `fresh`."""
    done, kept = part.load()
    if not done:
        return 0, fresh
    leaves = [jnp.asarray(kept[f"leaf_{i}"].values) for i in range(len(kept))]
    return done, jax.tree.unflatten(jax.tree.structure(fresh), leaves)


def _points(sweep: Sweep, batches: list[DepthBatch]) -> Points:
    """What is read of all batches."""
    streams, answers = [], []
    for batch in batches:
        shown = sweep.shown(batch)
        found, log_p = sweep.run(_streams, shown)
        target = np.asarray(shown.positions.target)
        streams.append(found[:, target])
        answers.append(log_p[target])
    return jnp.asarray(np.concatenate(streams, axis=1)), jnp.asarray(np.concatenate(answers))


def _streams(subject: Subject) -> Points:
    return subject.seen[:-1], subject.answer_of(subject.seen[-1])
