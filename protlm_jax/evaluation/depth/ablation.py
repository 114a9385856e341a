"""What later layers and the answer lose when layers, parts of them or residues are taken away.

A skipped layer is the identity, a post-LN block's own norms included; a skipped sublayer adds
nothing, and norms behind it still act. Every edit is resumed from the cached stream before the
first layer that changes, and all edits of a kind are one compiled loop: a map of all layers costs
half as many forwards as there are layers. Answers are compared by `stream.differences`.

Sources: Csordás et al. 2025, arXiv 2505.13898 (skips, local effects, erasure); Lad et al. 2024,
arXiv 2406.19384 (deletions, swaps); Kapl et al. 2025, arXiv 2512.08819 (blocks); Sun et al. 2024,
arXiv 2407.09298 (order).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.evaluation.depth.batches import DepthBatch
from protlm_jax.evaluation.depth.positions import Stat
from protlm_jax.evaluation.depth.results import Quantity
from protlm_jax.evaluation.depth.stream import differences
from protlm_jax.evaluation.depth.subject import TINY, Subject, norm
from protlm_jax.evaluation.depth.sweep import Sweep
from protlm_jax.models.stack import LayerProgram

RESIDUES = 4  # of each protein that are erased, one at a time
Edit = Callable[[jax.Array], jax.Array]  # layer -> the stream after it, edited: [B, L, D]


def skips(subject: Subject, kinds: Sequence[str]) -> dict[str, Stat]:
    """Each layer ("skips") or sublayer ("sublayer_skips") left out at the sources (M3, M4).

        skip_effect_{s, m} = ||c_m - c'_m|| / max(||c_m||, 1e-6)

    with c'_m what layer m adds after layer s was skipped: "skip_effect" (skipped, affected), zero
    where affected <= skipped, and "skip_<name>" (skipped) of the answers, if the model has any;
    "sublayer_skip_..." with (sublayer, ...) before these dims.

    Cost: of layers (N - 1) / 2 forwards and N heads; of each sublayer (N + 1) / 2, of a pre-LN
    block's last one (N - 1) / 2. An encoder that is read at its decoder takes N decoders beside.
    """
    layers = int("skips" in kinds)
    edits: list[Edit] = [lambda layer: subject.streams[layer]] if layers else []
    if "sublayer_skips" in kinds:
        edits += [_without(subject, index) for index in range(len(subject.sublayers))]
    result = {}
    for name, stat in _after_edits(subject, edits).items():
        dims = ("skipped", "affected") if name == "effect" else ("skipped",)
        if layers:
            result[f"skip_{name}"] = jax.tree.map(lambda x: x[0], stat).named(*dims)
        if "sublayer_skips" in kinds:
            rest = jax.tree.map(lambda x: x[layers:], stat)
            result[f"sublayer_skip_{name}"] = rest.named("sublayer", *dims)
    return result


def local_effects(subject: Subject) -> dict[str, Stat]:
    """What each layer reads of each earlier one directly (M5).

        local_effect_{s, m} = ||c_m - f_m(h_m - c_s)|| / max(||c_m||, 1e-6)

    with f_m(h) what layer m adds to a stream h, no other layer answering to the change:
    "local_effect" (skipped, affected), zero where affected <= skipped. Not defined where h_m is no
    sum, as in post-LN. Cost: (N - 1) / 2 forwards where every position is read; where few are,
    about half of that, since of the others a layer needs keys and values alone.
    """
    number = subject.num_layers
    pairs = [(s, m) for m in range(number) for s in range(m)]
    sources, affected = (jnp.asarray(x, jnp.int32) for x in zip(*pairs, strict=True))

    def one(pair: tuple[jax.Array, jax.Array]) -> Stat:
        source, layer = pair
        clean = subject.streams[layer]
        h = subject.positions.edit(clean, clean - subject.added(source))
        return _change(subject, layer, subject.layer_seen(layer, h) - subject.positions.at(h))

    found = jax.lax.map(one, (sources, affected))
    empty = jnp.zeros((number, number, subject.positions.proteins))
    full = jax.tree.map(lambda x: empty.at[sources, affected].set(x), found)
    return {"local_effect": full.named("skipped", "affected")}


def _without(subject: Subject, sublayer: int) -> Edit:
    """The stream after a layer one of whose sublayers adds nothing."""
    name, last = subject.sublayers[sublayer], sublayer == len(subject.sublayers) - 1
    if subject.pre_norm and last:  # nothing in the layer has read it
        return lambda layer: subject.streams[layer + 1] - subject.taps[name][layer]
    gate = jnp.ones(len(subject.sublayers)).at[sublayer].set(0.0)
    return lambda layer: subject.layer(layer, subject.streams[layer], gate)


def _after_edits(subject: Subject, edits: list[Edit]) -> dict[str, Stat]:
    """Each edit at each layer: effects [edits, N, N, P] on later layers, answers [edits, N, P]."""
    number = subject.num_layers
    nothing = jnp.zeros((number, subject.positions.proteins))
    base = subject.answer(subject.streams[-1]) if subject.answers else None

    def visit(effects: Stat, layer: jax.Array, before: Any, after: Any, _: Any) -> Any:
        added = subject.positions.at(after) - subject.positions.at(before)
        change = _change(subject, layer, added)
        return jax.tree.map(lambda all_, one: all_.at[layer].set(one), effects, change)

    def one(place: tuple[jax.Array, jax.Array]) -> dict[str, Stat]:
        edit, layer = place
        edited = jax.lax.switch(edit, edits, layer)
        h = subject.positions.edit(subject.streams[layer + 1], edited)
        final, effects = subject.resume(h, layer + 1, visit, Stat(nothing, nothing, nothing))
        if base is None:
            return {"effect": effects}
        return {"effect": effects, **differences(subject, base, subject.answer(final))}

    which, layer = jnp.divmod(jnp.arange(len(edits) * number), number)
    found = jax.lax.map(one, (which, layer))
    return jax.tree.map(lambda x: x.reshape(len(edits), number, *x.shape[1:]), found)


def _change(subject: Subject, layer: jax.Array, added: jax.Array) -> Stat:
    """||c_m - c'_m|| / ||c_m|| of what is read, [B, K, D], reduced."""
    clean = subject.seen[layer + 1] - subject.seen[layer]
    return subject.positions.reduce(norm(clean - added) / jnp.maximum(norm(clean), TINY), peak=True)


def under_programs(subject: Subject, programs: LayerProgram) -> dict[str, Stat]:
    """The answer under each of some programs [programs, steps]: "<name>" (program).

    Programs run at every position: a layer that runs twice or elsewhere has no clean counterpart
    to keep at the other positions. Cost: of each its steps from the first change on, and a head.
    """
    base = subject.answer(subject.streams[-1])

    def one(program: LayerProgram) -> dict[str, Stat]:
        start = program.first_change
        before = subject.streams[jnp.minimum(start, subject.num_layers)]
        final, _ = subject.resume(before, start, lambda carry, *_: carry, (), program)
        return differences(subject, base, subject.answer(final))

    found = jax.lax.map(one, programs)
    return {name: stat.named("program") for name, stat in found.items()}


def block_sizes(num_layers: int) -> tuple[int, ...]:
    """2, 4, 8, ... below the number of layers."""
    powers = (1 << power for power in range(1, num_layers.bit_length()))
    return tuple(size for size in powers if size < num_layers)


class Rearrangement(NamedTuple):
    """Programs of one kind: one for each first layer, and, of blocks, for each size."""

    prefix: str  # of the names of results
    dims: tuple[str, ...]
    sizes: Callable[[int], tuple[int, ...]]  # of the number of layers
    edit: Callable[[LayerProgram, int, int], LayerProgram]  # of program, first layer, size


REARRANGEMENTS = {
    "swaps": Rearrangement("swap", ("first",), lambda n: (2,), lambda p, at, _: p.swap(at, at + 1)),
    "repeats": Rearrangement("repeat", ("layer",), lambda n: (1,), lambda p, at, _: p.repeat(at)),
    "block_deletions": Rearrangement(
        "delete", ("size", "first"), block_sizes, lambda p, at, n: p.skip(*range(at, at + n))
    ),
    "reversals": Rearrangement(
        "reverse", ("size", "first"), block_sizes, lambda p, at, n: p.reverse(at, at + n)
    ),
}


def rearranged(subject: Subject, kinds: Sequence[str]) -> dict[str, Stat]:
    """The answer with layers swapped, run twice, deleted or reversed (M10), as one compiled loop.

    Returns:
        "swap_<name>" (first), "repeat_<name>" (layer), "delete_<name>" and "reverse_<name>" (size,
        first); "first" is the first layer that is moved or left out, "size" counts them: 2, 4, 8,
        ... Nothing counts where too few layers are left.
    """
    number, places, programs = subject.num_layers, [], []
    with jax.ensure_compile_time_eval():
        full = LayerProgram.full(number, len(subject.sublayers))
        for kind in kinds:
            for row, size in enumerate(REARRANGEMENTS[kind].sizes(number)):
                for at in range(number - size + 1):
                    places.append((kind, row, at))
                    programs.append(REARRANGEMENTS[kind].edit(full, at, size))
        stacked = LayerProgram.stack(programs)
    found = under_programs(subject, stacked)
    result = {}
    for kind in kinds:
        prefix, dims, _, _ = REARRANGEMENTS[kind]
        mine = np.array([i for i, (k, _, _) in enumerate(places) if k == kind])
        entries = tuple(np.array([places[i][1:] for i in mine]).T)
        for name, stat in found.items():
            spread = jax.tree.map(lambda x, m=mine, e=entries: _spread(x[m], e), stat)
            if len(dims) == 1:
                spread = jax.tree.map(lambda x: x[0], spread)
            result[f"{prefix}_{name}"] = spread.named(*dims)
    return result


def _spread(x: jax.Array, at: tuple[np.ndarray, ...]) -> jax.Array:
    """[programs, P] to [size, layer, P], zero where there is no program."""
    shape = [int(axis.max()) + 1 for axis in at]
    return jnp.zeros((*shape, x.shape[-1])).at[at].set(x)


def erase(
    subject: Subject, means: jax.Array, erased: jax.Array, *, depths: tuple[int, ...]
) -> dict[str, Stat]:
    """The answer after h_l(t) was replaced by the mean stream of that depth (M13).

    Args:
        means: [N + 1, D], means of the stream over the residues of all proteins.
        erased: [B, K] int32, in each row the positions t that are erased, one at a time; -1 for
            none, where nothing differs: leave these out of means.
        depths: l, out of 0 to N - 1.

    Returns:
        "erasure_<name>" (depth, erased). Cost: of each depth and position (N - l) / N forwards.
    """
    base, number = subject.answer(subject.streams[-1]), erased.shape[1]

    def one(place: tuple[jax.Array, jax.Array]) -> dict[str, Stat]:
        depth, column = place
        here = jnp.arange(subject.streams.shape[2])[None] == erased[:, column, None]
        h = jnp.where(here[..., None], means[depth][None, None], subject.streams[depth])
        final, _ = subject.resume(h, depth, lambda carry, *_: carry, ())
        return differences(subject, base, subject.answer(final))

    at = jnp.repeat(jnp.asarray(depths), number)
    found = jax.lax.map(one, (at, jnp.tile(jnp.arange(number), len(depths))))
    found = jax.tree.map(lambda x: x.reshape(len(depths), number, *x.shape[1:]), found)
    return {f"erasure_{name}": s.named("at_depth", "erased") for name, s in found.items()}


def erasure(sweep: Sweep) -> dict[str, Quantity]:
    """`erase` of RESIDUES evenly spaced residues of each protein: (at_depth).

    They are erased where the position set edits layers, those that are asked left out.
    """
    means, count = np.zeros(()), 0
    for batch in sweep.proteins.all_batches(sweep.loaded):
        sums = sweep.run(_stream_sums, sweep.shown(batch), batch.residues)
        means, count = means + np.asarray(sums, np.float64), count + int(batch.residues.sum())
    means = (means / count).astype(np.float32)

    def measure(batch: DepthBatch) -> tuple[dict[str, Stat], None]:
        shown = sweep.shown(batch)
        eligible = batch.residues & ~batch.hidden & np.asarray(shown.positions.source)
        erased = _spaced(eligible, RESIDUES)
        found = sweep.run(erase, shown, means, erased, depths=sweep.depths)
        # Rows are the slots of the proteins here.
        return {name: _over_erased(stat, erased >= 0) for name, stat in found.items()}, None

    return sweep.sums(measure, "erasure")[0]


def _stream_sums(subject: Subject, residues: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(residues[None, ..., None], subject.streams, 0.0), axis=(1, 2))


def _spaced(eligible: np.ndarray, number: int) -> np.ndarray:
    """So many of each row's eligible positions, evenly spaced: [B, number]; -1 where too few."""
    chosen = np.full((len(eligible), number), -1, np.int32)
    for row, mine in enumerate(eligible):
        places = np.flatnonzero(mine)
        if len(places) >= number:
            middle = (np.arange(number) + 0.5) * len(places) / number
            chosen[row] = places[middle.astype(int)]
    return chosen


def _over_erased(stat: Stat, there: np.ndarray) -> Stat:
    """[depth, erased, P] to [depth, P]; only positions that were there count."""
    keep = there.T[None]
    peak = None if stat.peak is None else np.where(keep, stat.peak, 0).max(axis=1)
    total, count = (np.where(keep, x, 0).sum(axis=1) for x in (stat.total, stat.count))
    return Stat(total, count, peak, ("at_depth",))
